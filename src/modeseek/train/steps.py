"""The dials of the loop: rounds, minibatches, passes, the learning rate."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How the loop steps. The dials of on-policyness are `minibatch`, `passes` and `max_age`, with the source's
    prompts per round: one round of B prompts gives passes x B / minibatch optimiser steps."""

    max_steps: int = 100  # optimiser steps
    learning_rate: float = 1e-5
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up, down to zero
    warmup_steps: int = 0
    warmup_ratio: float = 0.0  # instead: the share of max_steps, rounded up to whole steps
    minibatch: int | None = None  # prompts per optimiser step; unset: the whole round
    passes: int = 1  # times a round is gone through (sample reuse; PPO's epochs)
    max_age: int | None = None  # optimiser steps a fresh sample may be old; a round ends when its samples are older
    microbatch: int | None = None  # prompts per backward pass: changes memory, never the result
    microbatch_tokens: int | None = None  # instead: tokens per backward pass, a prompt counted once for its responses
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    bf16: bool = False  # autocast the forward pass; weights and optimiser stay in float32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_steps", "passes", "minibatch", "microbatch", "microbatch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value}, expected at least 1")
        if self.microbatch and self.microbatch_tokens:
            raise ValueError("microbatch, microbatch_tokens: both given; one bounds a pass by prompts, one by tokens")
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError("warmup_steps, warmup_ratio: both given; one is in optimiser steps, one a share of them")
        if not 0 <= self.warmup_ratio < 1:
            raise ValueError(f"warmup_ratio: {self.warmup_ratio}, expected at least 0 and below 1")
        if self.max_age is not None and self.max_age < 0:
            raise ValueError(f"max_age: {self.max_age}, expected at least 0")

    def rate(self, step: int) -> float:
        """Learning rate of optimiser step `step`, counted from 0."""
        warmup = self.warmup_steps or math.ceil(self.warmup_ratio * self.max_steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - warmup) / max(1, self.max_steps - warmup)
        left = 1 - done if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return self.learning_rate * left
