"""The methods of 2404.14367 as rows for many seeds at once: a source, stages, an objective, and the dials they have.

The names are those of the shipped configurations, with `offline_` before what learns from the reference's samples
where the configuration learns from the policy's own. `https://arxiv.org/abs/2404.14367`, table 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import nn

from modeseek.batch import Batch
from modeseek.objectives import DPO, IPO, PPO, RWR, SFT, HyPO, NegativeBoN, Objective, PolicyGradient
from modeseek.stages import Reward, Stage, best, group_mean, kl_shaped, ranked, refer, score
from modeseek.studies.base import Dial
from modeseek.studies.worlds.all_pairs import AllPairs
from modeseek.studies.worlds.table import Dials, Progress, Source, Watch, streams, train, uniform


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every dial that some method has. A world gives each method its defaults."""

    steps: int = 120  # optimiser steps
    learning_rate: float = 0.03
    num_generations: int = 10  # responses to a prompt: N
    prompts: int = 10  # offline: prompts of the data set
    prompts_per_round: int = 5  # on policy: prompts drawn at once, B
    minibatch: int = 0  # prompts per optimiser step, M; 0: the whole round
    passes: int = 1  # times a round is gone through, T
    beta: float = 0.1  # temperature, weight of losers or price of a nat, as the method has it
    tau: float = 0.05  # IPO's: the margin is asked to be 1 / (2 tau) nats
    kl: float = 0.01  # HyPO's weight of the KL
    clip: float = 0.2  # PPO's

    def loop(self) -> Dials:
        return Dials(
            steps=self.steps, learning_rate=self.learning_rate, minibatch=self.minibatch or None, passes=self.passes
        )


COMMON = ("steps", "learning_rate", "num_generations", "minibatch")
OFFLINE = (*COMMON, "prompts")
ON_POLICY = (*COMMON, "prompts_per_round", "passes")


Policy = TypeVar("Policy", bound=nn.Module)


@dataclass(frozen=True)
class Parts(Generic[Policy]):
    """What a world lends to a method."""

    policy: Policy  # all seeds, to be trained
    reference: Any  # the start of each seed, frozen: a Seeds that can sample
    reward: Reward  # what labels and scores: the true one, or a proxy
    data: Callable[[int, int], Batch]  # so many prompts of each seed, with so many responses of the reference's
    own: Callable[[int, int], Batch]  # the same with the policy's, as it is now; new ones at each call
    fresh: Callable[[Batch, int], Batch]  # so many of the policy's to the prompts of a batch


FRESH = 2  # HyPO's own samples of each prompt


@dataclass(frozen=True)
class Method:
    """A row: where prompts and responses come from, the stages, the objective, the dials that have an effect."""

    source: Literal["offline", "on_policy", "hybrid"]
    objective: Callable[[Settings], Objective]
    stages: Callable[[Settings, Parts[Any]], Sequence[Stage]]
    dials: tuple[str, ...]

    def settings(self, name: str, defaults: Mapping[str, Dial], dials: Mapping[str, Dial]) -> Settings:
        """The defaults under the dials asked for; one that this method does not have is refused."""
        for dial in dials:
            if dial not in self.dials:
                raise ValueError(f"{dial}: {name} has no such dial; expected one of {', '.join(self.dials)}")
        kept = {**{n: x for n, x in defaults.items() if n in self.dials}, **dials}
        return Settings(**kept)  # type: ignore[arg-type]


def _scored(s: Settings, p: Parts[Any]) -> list[Stage]:
    return [score(p.reward)]


def _best(s: Settings, p: Parts[Any]) -> list[Stage]:
    return [score(p.reward), best]


def _ranked(s: Settings, p: Parts[Any]) -> list[Stage]:
    return [score(p.reward), ranked]


def _pairs(s: Settings, p: Parts[Any]) -> list[Stage]:
    return [score(p.reward), refer(p.reference), ranked]


def _centred(s: Settings, p: Parts[Any]) -> list[Stage]:
    return [score(p.reward), refer(p.reference), kl_shaped(s.beta), group_mean]


_sft = lambda s: SFT()
_rwr = lambda s: RWR(beta=s.beta)
_pref = lambda s: AllPairs(SFT(), keep=1)
_dpo = lambda s: AllPairs(DPO(beta=s.beta))
_ipo = lambda s: AllPairs(IPO(tau=s.tau))
_hypo = lambda s: HyPO(beta=s.beta, kl=s.kl, kl_baseline="leave_one_out")
_mean = lambda s: NegativeBoN(beta=s.beta)
_complement = lambda s: NegativeBoN(beta=s.beta, losers="complement")

METHODS: Mapping[str, Method] = {
    "pref_ft": Method("offline", _pref, _ranked, OFFLINE),
    "offline_best_of_n": Method("offline", _sft, _best, OFFLINE),
    "offline_best_of_n_mean": Method("offline", _mean, _ranked, (*OFFLINE, "beta")),
    "offline_rwr": Method("offline", _rwr, _scored, (*OFFLINE, "beta")),
    "dpo": Method("offline", _dpo, _pairs, (*OFFLINE, "beta")),
    "ipo": Method("offline", _ipo, _pairs, (*OFFLINE, "tau")),
    "hypo": Method("hybrid", _hypo, _pairs, (*OFFLINE, "beta", "kl")),
    "best_of_n": Method("on_policy", _sft, _best, ON_POLICY),
    "best_of_n_mean": Method("on_policy", _mean, _ranked, (*ON_POLICY, "beta")),
    "best_of_n_complement": Method("on_policy", _complement, _ranked, (*ON_POLICY, "beta")),
    "rwr": Method("on_policy", _rwr, _scored, (*ON_POLICY, "beta")),
    "online_dpo": Method("on_policy", _dpo, _pairs, (*ON_POLICY, "beta")),
    "online_ipo": Method("on_policy", _ipo, _pairs, (*ON_POLICY, "tau")),
    "reinforce": Method(
        "on_policy", lambda s: PolicyGradient(), _centred, (*COMMON, "prompts_per_round", "passes", "beta")
    ),
    "ppo": Method("on_policy", lambda s: PPO(clip=s.clip), _centred, (*ON_POLICY, "beta", "clip")),
}


def named(name: str) -> Method:
    """A method by its name."""
    if name not in METHODS:
        raise ValueError(f"method: {name!r}, expected one of {', '.join(METHODS)}")
    return METHODS[name]


def play(name: str, settings: Settings, parts: Parts[Any], seeds: Sequence[int], watch: Watch) -> Progress:
    """Train `parts.policy` by a method."""
    row, loop = named(name), settings.loop()
    stages = row.stages(settings, parts)
    if row.source == "on_policy":
        source = lambda: parts.own(settings.prompts_per_round, settings.num_generations)
    elif row.source == "offline":
        data = parts.data(settings.prompts, settings.num_generations)
        source = lambda: data
    else:
        scored = [score(parts.reward), refer(parts.reference), ends]
        pairs = staged(parts.data(settings.prompts, settings.num_generations), scored)
        source = _hybrid(pairs, settings, parts, seeds)
        stages, loop = [refer(parts.reference)], replace(loop, minibatch=None)  # the source draws the minibatches
    return train(parts.policy, row.objective(settings), source, stages, loop, seeds, watch)


def _hybrid(pairs: Batch, settings: Settings, parts: Parts[Any], seeds: Sequence[int]) -> Source:
    """Some of each seed's pairs, all where `minibatch` is 0, with fresh samples to the same prompts behind them."""
    rngs, count = streams(seeds, "order"), settings.prompts
    first = torch.arange(len(seeds))[:, None] * count

    def source() -> Batch:
        at = uniform(rngs, count).argsort(-1)[:, : settings.minibatch or count] + first
        some = pairs.prompts(at.flatten())
        return some.beside(parts.fresh(some, FRESH))

    return source


def samples(name: str, settings: Settings, progress: Progress) -> int:
    """Responses of each seed that a reward has labelled so far."""
    if named(name).source == "on_policy":
        return progress.rounds * settings.prompts_per_round * settings.num_generations
    return settings.prompts * settings.num_generations


def every(steps: int, wanted: int) -> int:
    """Steps between two checkpoints, for about so many of them."""
    return max(1, steps // wanted)


def ends(batch: Batch) -> Batch:
    """The best and the worst of each group as a pair; one that ties keeps its place and weighs nothing.

    Like the stage `best_worst`, but every seed keeps equally many prompts, as policies batched over seeds need.
    """
    P, K = batch["reward"].shape
    pairs = ranked(batch).take(torch.tensor([0, K - 1]).expand(P, 2))
    tie = pairs["reward"][:, 0] == pairs["reward"][:, 1]
    return replace(pairs, weight=pairs.weight.masked_fill(tie, 0.0))


def staged(batch: Batch, stages: Sequence[Stage]) -> Batch:
    """The batch after these stages."""
    for stage in stages:
        batch = stage(batch)
    return batch
