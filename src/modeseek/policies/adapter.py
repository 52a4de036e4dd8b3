"""Low-rank adapters, as a config names them. Imports no transformers before they are made."""

import warnings
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Train low-rank adapters; the base with adapters off is the reference, so there is no second model."""

    r: int = 16  # rank
    alpha: int = 32  # scale: the update counts alpha / r
    target_modules: str = "all-linear"  # which layers, as peft names them


def unwrapped(model: Any) -> Any:
    """The transformers model, out of peft's wrapping: its adapters sit inside the layers."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def adapted(model: Any, lora: Lora) -> Any:
    """The model with adapters of random numbers, which change nothing yet."""
    from peft import LoraConfig, get_peft_model

    told = {"r": lora.r, "lora_alpha": lora.alpha, "target_modules": lora.target_modules, "lora_dropout": 0.0}
    with warnings.catch_warnings():  # peft asks transformers under a name that is going out of use
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(model, LoraConfig(**told, task_type="CAUSAL_LM"))
