"""A tiny random model of a known architecture: its class, its way of sharing heads and tying, its chat template."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from modeseek.plan.architectures import Architecture

CONTEXT = 1024  # tokens that a tiny model reads
_HEAD = 8  # width of one attention head
_SPECIAL = re.compile(r"<\|[a-z_]+\|>|<(?:start|end)_of_turn>|</?think>")
_ENDS = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>")  # of a turn, where the template has one


def save_policy(arch: Architecture, folder: Path, seed: int = 0) -> None:
    """A causal language model and its tokenizer, in the form of save_pretrained."""
    made = tokenizer(arch.template)
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(shrunk(arch, made)).save_pretrained(folder)
    made.save_pretrained(folder)


def save_reward_model(arch: Architecture, folder: Path, seed: int = 1) -> None:
    """A sequence-classification model of the same body with one output, and its tokenizer."""
    made = tokenizer(arch.template)
    config = shrunk(arch, made)
    config.num_labels = 1
    torch.manual_seed(seed)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    made.save_pretrained(folder)


def shrunk(arch: Architecture, made: PreTrainedTokenizerBase) -> Any:
    """The architecture's config in small: two layers, narrow, the vocabulary of the tokenizer."""
    told = dict(arch.config)
    heads = told["num_attention_heads"]
    shared = heads // told.get("num_key_value_heads", heads)  # query heads to each key head
    keys = min(2, heads // shared)
    small: dict[str, Any] = {
        "num_hidden_layers": 2,
        "num_attention_heads": shared * keys,
        "hidden_size": shared * keys * _HEAD,
        "intermediate_size": 48,
        "vocab_size": len(made),
        "max_position_embeddings": CONTEXT,
    }
    if "num_key_value_heads" in told:
        small["num_key_value_heads"] = keys
    if "head_dim" in told:
        small |= {"head_dim": 2 * _HEAD, "hidden_size": 32}  # apart from the width, as in the real one
    if told.get("sliding_window"):
        small["sliding_window"] = 16
    if told.get("sliding_window_pattern") or told.get("layer_types"):
        told.pop("sliding_window_pattern", None)
        small["layer_types"] = ["sliding_attention", "full_attention"]
    if "query_pre_attn_scalar" in told:
        small["query_pre_attn_scalar"] = 2 * _HEAD
    ends = {"bos_token_id": made.bos_token_id, "eos_token_id": made.eos_token_id, "pad_token_id": made.pad_token_id}
    for key in ("architectures", "transformers_version", "dtype", "torch_dtype", "_name_or_path"):
        told.pop(key, None)
    kind = told.pop("model_type")
    return AutoConfig.for_model(kind, **{**told, **small, **ends})


def tokenizer(template: str | None) -> PreTrainedTokenizerBase:
    """A token for each byte, and one for each marker of the chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    markers = list(dict.fromkeys(_SPECIAL.findall(template or "")))
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|begin_of_text|>", "<|pad|>", *markers]
    made.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in dict.fromkeys(special)])
    end = next((one for one in _ENDS if one in markers), "<|endoftext|>")
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token=end,
        bos_token="<|begin_of_text|>",
        pad_token="<|pad|>",
        model_max_length=CONTEXT,
    )
    wrapped.chat_template = template
    return wrapped
