"""Low-rank adapters, as a config names them. Imports no transformers."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Train low-rank adapters; the base with adapters off is the reference, so there is no second model."""

    r: int = 16  # rank
    alpha: int = 32  # scale: the update counts alpha / r
    target_modules: str = "all-linear"  # which layers, as peft names them
