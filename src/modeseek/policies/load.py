"""A transformers causal LM by folder or hub name: its weights, and what its files say of it."""

import importlib.util
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from modeseek.policies.adapter import Lora, adapted


def load_model(
    name: str,
    *,
    dtype: Literal["float32", "bfloat16", "float64"] = "float32",
    lora: Lora | None = None,
    load_in_4bit: bool = False,
    gradient_checkpointing: bool = False,
    trust_remote_code: bool = False,
    device: str = "cpu",
) -> nn.Module:
    """A causal LM by path or hub name, with fresh adapters where `lora` is given.

    Raises ValueError, in the user's words, where the model is not to be had or an option cannot be honoured.
    """
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "trust_remote_code": trust_remote_code}
    if load_in_4bit:
        options["quantization_config"] = _four_bit(device, lora)
    if device == "meta":  # all but the weights, which are not read
        options["device_map"] = device
    if Path(name).exists() and not any((Path(name) / f).exists() for f in ("config.json", "adapter_config.json")):
        raise ValueError(f"model: {name} has no config.json; give the folder that save_pretrained wrote")
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"model: {name} cannot be loaded as a causal LM: {first}") from error
    model.to(device)  # type: ignore[arg-type]
    if gradient_checkpointing:
        enable: Any = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model if lora is None else adapted(model, lora)


def context_length(name: str) -> int | None:
    """The tokens that a model reads at most, from its config alone."""
    return getattr(AutoConfig.from_pretrained(name), "max_position_embeddings", None)


def saved_generation(name: str) -> Any:
    """What a model's folder or hub name says of generating, without its weights; None where it says nothing."""
    try:
        return GenerationConfig.from_pretrained(name)
    except OSError:
        return None


def end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every token id that ends a response: the tokenizer's, and those of the model's generation config, or of one."""
    generation: Any = getattr(model, "generation_config", model)
    known = getattr(generation, "eos_token_id", None)
    several = known if isinstance(known, list | tuple) else [known]
    ends = dict.fromkeys(int(i) for i in [tokenizer.eos_token_id, *several] if i is not None)
    if not ends:
        raise ValueError("the tokenizer has no eos_token, so no response could end: set one and save it")
    return tuple(ends)


def _four_bit(device: str, lora: Lora | None) -> Any:
    if lora is None:
        raise ValueError("load_in_4bit: a 4-bit base cannot be trained itself; add lora")
    if device == "cpu" or importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("load_in_4bit needs a CUDA device and the package bitsandbytes; neither is replaced silently")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
