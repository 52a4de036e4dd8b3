"""Where a batch comes from. Source times objective is a method: on policy and DPO is online DPO."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from modeseek.batch import Batch
from modeseek.policies.base import Policy

Source = Callable[[Generator], Batch]


@runtime_checkable
class Stateful(Protocol):
    """A source or a stage that remembers something; the checkpoint asks for it and gives it back."""

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Data(Protocol):
    """Prompts with whatever responses were told: a Batch is one, a tokenised file another."""

    def __len__(self) -> int: ...

    def prompts(self, index: Tensor, /) -> Batch: ...


@dataclass
class Offline:
    """Responses that somebody else wrote: epochs over the data without replacement, each in a new order.

    The last round of an epoch may have fewer prompts.
    """

    data: Data
    size: int  # prompts per round
    device: torch.device | str = "cpu"  # where the policy is; data stay in the host's memory
    epoch: int = 0
    order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    def __call__(self, rng: Generator) -> Batch:
        if not len(self.order):
            self.order = torch.randperm(len(self.data), generator=rng)
            self.epoch += 1
        now, self.order = self.order[: self.size], self.order[self.size :]
        return self.data.prompts(now).to(self.device)

    def state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "order": self.order}

    def restore(self, state: dict[str, Any]) -> None:
        self.epoch, self.order = state["epoch"], state["order"]


@dataclass(kw_only=True)
class Sampler:
    """How fresh responses are drawn."""

    policy: Policy
    k: int  # responses to each prompt
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise ValueError(f"source.top_p: {self.top_p}, expected above 0 and at most 1, which keeps every token")
        for name, least in (("temperature", 0), ("top_k", 0), ("k", 1)):
            if getattr(self, name) < least:
                key = "num_generations" if name == "k" else name
                raise ValueError(f"source.{key}: {getattr(self, name)}, expected at least {least}")

    def __call__(self, told: Batch, rng: Generator) -> Batch:
        own = self.policy.sample(
            told.prompt,
            told.prompt_mask,
            self.k,
            rng,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
        )
        known = {name: x for name, x in told.columns.items() if x.ndim == 1}
        return dataclasses.replace(own.fill(**known), weight=told.weight)


@dataclass
class OnPolicy:
    """The data's prompts, k responses to each by the policy as it is now."""

    sampler: Sampler
    prompts: Offline

    def __call__(self, rng: Generator) -> Batch:
        return self.sampler(self.prompts(rng), rng)

    def state(self) -> dict[str, Any]:
        return self.prompts.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.prompts.restore(state)


@dataclass
class Hybrid:
    """The data's responses first, then k fresh ones to the same prompts."""

    sampler: Sampler
    pairs: Offline

    def __call__(self, rng: Generator) -> Batch:
        told = self.pairs(rng)
        return told.beside(self.sampler(told, rng))

    def state(self) -> dict[str, Any]:
        return self.pairs.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.pairs.restore(state)


def offline(data: Data, size: int) -> Offline:
    """Train on the responses of `data`, `size` prompts a round."""
    return Offline(data, size)


def on_policy(policy: Policy, data: Data, size: int, k: int, **sampling: float) -> OnPolicy:
    """Train on the policy's own responses, `k` to each of `size` prompts a round."""
    return OnPolicy(Sampler(policy=policy, k=k, **sampling), Offline(data, size))  # type: ignore[arg-type]


def hybrid(policy: Policy, data: Data, size: int, k: int) -> Hybrid:
    """Train on the responses of `data` and on `k` fresh ones to the same prompts, at temperature 1."""
    return Hybrid(Sampler(policy=policy, k=k), Offline(data, size))
