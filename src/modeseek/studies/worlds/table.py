"""Many seeds trained at once: a table of logits for each seed, and a loop in which no seed sees another.

The prompts of all seeds stand in one Batch, seed after seed, so that the library's own stages and objectives do the
work. Losses are summed over prompts and divided by one seed's prompts; Adam is elementwise; nothing is clipped by a
norm: hence a seed's row alone is its row among others. Seed s means the same streams of random numbers in every method.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from modeseek.batch import PKT, Batch
from modeseek.objectives import Objective, max_age
from modeseek.ops import seq
from modeseek.stages import Stage
from modeseek.studies.base import Row
from modeseek.train import evaluate

Source = Callable[[], Batch]  # a round: equally many prompts of every seed, seed after seed
Watch = Callable[["Progress"], None]


def streams(seeds: Sequence[int], purpose: str) -> list[Generator]:
    """A generator for each seed that nothing but this purpose draws from, so that methods are paired."""
    words = lambda seed: np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]).generate_state(2, np.uint32)
    return [Generator().manual_seed(int(a) << 31 ^ int(b)) for a, b in map(words, seeds)]


def uniform(rngs: Sequence[Generator], *shape: int) -> Float[Tensor, "S ..."]:
    """Numbers in [0, 1), each seed's from its own generator."""
    return torch.stack([torch.rand(shape, generator=rng, dtype=torch.float64) for rng in rngs])


def normal(rngs: Sequence[Generator], *shape: int) -> Float[Tensor, "S ..."]:
    """Standard normal numbers, each seed's from its own generator."""
    return torch.stack([torch.randn(shape, generator=rng, dtype=torch.float64) for rng in rngs])


class Table(nn.Module):
    """A softmax policy for each seed and context; prompt s * C + c is context c of the seed in place s.

    In float64: every expectation is a sum and is exact.
    """

    def __init__(self, logits: Float[Tensor, "S C A"]):
        super().__init__()
        self.logits = nn.Parameter(logits.double().clone())

    @property
    def shape(self) -> tuple[int, int, int]:
        """Seeds, contexts, actions."""
        S, C, A = self.logits.shape
        return S, C, A

    def all_logp(self) -> Float[Tensor, "S C A"]:
        """log-probability of every action."""
        return self.logits.log_softmax(-1)

    def logp(self, batch: Batch) -> PKT:
        return self.all_logp().flatten(0, 1)[batch.prompt, batch.response[..., 0]][..., None]

    @torch.no_grad()
    def sample(self, prompt: Int[Tensor, "P 1"], u: Float[Tensor, "P K"]) -> Batch:
        """The actions at these places of the cumulative distribution: the same `u`, the same luck."""
        logp = self.all_logp().flatten(0, 1)[prompt[:, 0]]  # [P, A]
        action = torch.searchsorted(logp.exp().cumsum(-1), u.contiguous(), right=True).clamp(max=logp.shape[-1] - 1)
        everywhere = torch.ones(*action.shape, 1, dtype=torch.bool)
        own = logp.gather(-1, action)[..., None]
        return Batch.own(prompt, torch.ones_like(prompt, dtype=torch.bool), action[..., None], everywhere, old_logp=own)

    def prompts(self, contexts: Int[Tensor, "S B"]) -> Int[Tensor, "P 1"]:
        """Each seed's contexts as prompts, seed after seed."""
        S, C, _ = self.shape
        return (torch.arange(S)[:, None] * C + contexts).reshape(-1, 1)


def rewarded(reward: Float[Tensor, "R A"]) -> Callable[[Batch], Tensor]:
    """The reward of an action by a table: a row for each prompt id, or one row for all. For the stage `score`."""
    if len(reward) == 1:
        return lambda batch: reward[0][batch.response[..., 0]]
    return lambda batch: reward[batch.prompt, batch.response[..., 0]]


def forced(prompt: Int[Tensor, "P 1"], actions: Int[Tensor, "P K"], **columns: Tensor) -> Batch:
    """Somebody else's responses of one token, none of them fresh; pairs are best first."""
    P, K = actions.shape
    return Batch(
        prompt=prompt,
        prompt_mask=torch.ones_like(prompt, dtype=torch.bool),
        response=actions[..., None],
        mask=torch.ones(P, K, 1, dtype=torch.bool),
        fresh=torch.zeros(P, K, dtype=torch.bool),
        present=torch.ones(P, K, dtype=torch.bool),
        weight=torch.ones(P),
        columns=columns,
    )


@dataclass(frozen=True, kw_only=True)
class Dials:
    """How every seed steps. `minibatch` and `passes` are the dials of on-policyness, with the source's round."""

    steps: int = 100  # optimiser steps
    learning_rate: float = 0.01  # Adam's, constant
    minibatch: int | None = None  # prompts of a seed per step; unset: its whole round
    passes: int = 1  # times a round is gone through
    beta1: float = 0.9
    beta2: float = 0.999

    def __post_init__(self) -> None:
        for name in ("steps", "minibatch", "passes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value}, expected at least 1")


@dataclass
class Progress:
    """Where the training of all seeds stands."""

    step: int = 0  # optimiser steps taken
    rounds: int = 0  # rounds drawn


@runtime_checkable
class Seeds(Protocol):
    """Policies of several seeds: every parameter has the seeds as its first axis, and none is shared."""

    def parameters(self) -> Iterator[nn.Parameter]: ...
    def logp(self, batch: Batch) -> PKT: ...


def train(
    policy: nn.Module,
    objective: Objective,
    source: Source,
    stages: Sequence[Stage],
    dials: Dials,
    seeds: Sequence[int],
    watch: Watch = lambda progress: None,
) -> Progress:
    """Train every seed for `dials.steps` steps. `watch` is called before the first step and after each.

    A source that returns the same Batch again has it staged once: a data set.
    """
    optimiser = torch.optim.Adam(policy.parameters(), lr=dials.learning_rate, betas=(dials.beta1, dials.beta2))
    for parameter in policy.parameters():  # a seed whose pairs all tie takes a step of no gradient, alone or not
        parameter.grad = torch.zeros_like(parameter)
    order, progress = streams(seeds, "order"), Progress()
    raw = batch = None
    watch(progress)
    while True:
        if (now := source()) is not raw:
            raw, batch = now, _staged(now, stages)
        assert batch is not None
        drawn = len(now) // len(seeds)  # prompts of a seed
        visits = _visits(order, drawn, dials)
        _refuse_stale(objective, now, len(visits), dials)
        progress.rounds += 1
        for places in visits:  # [S, m]
            part = batch if places.shape[1] == drawn else _part(batch, places, drawn)
            optimiser.zero_grad(set_to_none=False)
            if len(part):  # every pair of this minibatch may be a tie
                loss = evaluate(objective, policy, part).per_prompt
                ((loss * part.weight).sum() / places.shape[1]).backward()
            optimiser.step()
            progress.step += 1
            watch(progress)
            if progress.step >= dials.steps:
                return progress


def _staged(batch: Batch, stages: Sequence[Stage]) -> Batch:
    batch = batch.fill(place=torch.arange(len(batch)))
    for stage in stages:
        batch = stage(batch)
    return batch


def _visits(order: Sequence[Generator], drawn: int, dials: Dials) -> list[Int[Tensor, "S m"]]:
    """Which prompts of its round each seed visits at each of the round's steps."""
    size = dials.minibatch
    if size is None or size >= drawn:
        return [torch.arange(drawn).expand(len(order), drawn)] * dials.passes
    passes = [torch.stack([torch.randperm(drawn, generator=rng) for rng in order]) for _ in range(dials.passes)]
    return [part for places in passes for part in places.split(size, dim=1)]


def _part(batch: Batch, places: Int[Tensor, "S m"], drawn: int) -> Batch:
    wanted = torch.zeros(len(places), drawn, dtype=torch.bool).scatter(1, places, True).flatten()
    return batch.prompts(wanted[batch["place"]])


def _refuse_stale(objective: Objective, batch: Batch, visits: int, dials: Dials) -> None:
    limit = max_age(objective)
    if limit is not None and bool(batch.fresh.any()) and visits - 1 > limit:
        raise ValueError(
            f"{type(objective).__name__} takes samples at most {limit} steps old, but passes: {dials.passes} and "
            f"minibatch: {dials.minibatch} make {visits} steps of a round; leave both out"
        )


@dataclass
class Ledger:
    """Rows in the making: every `every` steps, and at the last one, a number for each seed and metric."""

    seeds: Sequence[int]
    steps: int  # the last one
    every: int
    rows: list[Row] = field(default_factory=list)

    def due(self, step: int) -> bool:
        return step % self.every == 0 or step == self.steps

    def add(self, step: int, metrics: Mapping[str, Tensor | float]) -> None:
        """One row of each seed; a metric is [S], or a number where it is the same for all."""
        columns = {n: x.tolist() if isinstance(x, Tensor) else [x] * len(self.seeds) for n, x in metrics.items()}
        for i, seed in enumerate(self.seeds):
            self.rows.append({"seed": seed, "step": step, **{name: x[i] for name, x in columns.items()}})


@torch.no_grad()
def standing(
    logp: Float[Tensor, "S C A"], ref_logp: Float[Tensor, "... A"], reward: Float[Tensor, "... A"]
) -> dict[str, Tensor]:
    """Exact expectations over actions, the mean over contexts: reward, KL both ways and entropy, in nats. Each [S].

    A reference or a reward that all seeds or contexts share may have fewer axes.
    """
    p, ref_logp = logp.exp(), ref_logp.expand_as(logp)
    over = lambda x: x.sum(-1).mean(-1)
    return {
        "reward": over(p * reward),
        "kl": over(p * (logp - ref_logp)),
        "kl_forward": over(ref_logp.exp() * (ref_logp - logp)),
        "entropy": over(-p * logp),
    }


@torch.no_grad()
def pair_standing(policy: Seeds, pairs: Batch, seed_of: Int[Tensor, " P"]) -> dict[str, Tensor]:
    """What became of the first and second responses of pairs: log-probability, gain over the reference, in nats.

    Means over each seed's pairs by weight; `pairs` has the column `ref_logp`, and `seed_of` says the place of each
    one's seed. Each [S].
    """
    total = seq(policy.logp(pairs), pairs.mask)  # [P, K]
    gain = total - seq(pairs["ref_logp"], pairs.mask)
    values = torch.stack([total[:, 0], total[:, 1], gain[:, 0], gain[:, 1], gain[:, 0] - gain[:, 1]])
    sums = lambda x: x.new_zeros(*x.shape[:-1], int(seed_of.max()) + 1).index_add(-1, seed_of, x)
    means = sums(values * pairs.weight) / sums(pairs.weight)
    names = ("logp_chosen", "logp_rejected", "gain_chosen", "gain_rejected", "margin")
    return dict(zip(names, means, strict=True))
