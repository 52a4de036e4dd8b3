"""Models made on the spot: a Llama of random weights, and a tokenizer as transformers saves it."""

from typing import Any

from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)


def small_llama(
    vocab: int, *, width: int, layers: int, heads: int, inner: int, context: int, pad: int, bos: int, eos: int
) -> PreTrainedModel:
    """A Llama of random weights (from torch's global seed) with tied embeddings, for models made on the spot."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            initializer_range=0.05,
            pad_token_id=pad,
            bos_token_id=bos,
            eos_token_id=eos,
        )
    )


def as_pretrained(tokenizer: Any, *, pad: str, bos: str, eos: str, context: int) -> PreTrainedTokenizerBase:
    """A tokenizer of the `tokenizers` library as transformers saves and loads it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos, model_max_length=context
    )
