"""Worlds R1 and R2: the 100-armed bandit of 2404.14367, all seeds of a cell at once, every expectation exact.

The policy starts at the reference itself. A prompt is one more draw of the single context, so `prompts` is the size of
an offline data set in groups of N, and `prompts_per_round` the groups between two samplings. Labels are the true
reward's. https://arxiv.org/abs/2404.14367, section 5; `data/worlds.py` has the problem.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from modeseek.batch import Batch
from modeseek.data import worlds
from modeseek.stages import all_pairs, refer, score
from modeseek.studies.base import Dial, Row
from modeseek.studies.worlds.methods import METHODS, Parts, every, named, play, samples, staged
from modeseek.studies.worlds.table import (
    Ledger,
    Progress,
    Table,
    forced,
    pair_standing,
    rewarded,
    standing,
    streams,
    uniform,
)

GRID: Mapping[str, Sequence[Dial]] = {
    "learning_rate": (0.03, 0.1, 0.3, 1.0, 3.0),
    "tau": (0.0125, 0.025, 0.05, 0.2),  # margins of 40, 20, 10 and 2.5 nats; the paper's scripts take 10
}
BETAS: Mapping[str, Sequence[Dial]] = {
    "dpo": (0.03, 0.1, 0.3, 1.0),
    "online_dpo": (0.03, 0.1, 0.3, 1.0),
    "hypo": (0.03, 0.1, 0.3),
    "offline_rwr": (0.1, 0.3, 1.0),
    "rwr": (0.1, 0.3, 1.0),
}
DEFAULTS: Mapping[str, Dial] = {"learning_rate": 0.1}
OF_METHOD: Mapping[str, Mapping[str, Dial]] = {
    "pref_ft": {"learning_rate": 0.3},
    "offline_best_of_n": {"learning_rate": 0.3},
    "dpo": {"learning_rate": 1.0},
    "ipo": {"learning_rate": 0.3},
    "hypo": {"learning_rate": 0.3},
    "reinforce": {"beta": 0.0},
    "ppo": {"beta": 0.0},
    "best_of_n_mean": {"beta": 0.3},
    "offline_best_of_n_mean": {"beta": 0.3, "learning_rate": 0.3},
    "best_of_n_complement": {"beta": 0.3},
}


@dataclass(frozen=True)
class BanditWorld:
    """The didactic bandit. R1: the reward's peak is where the reference is not; R2: it is where the reference is."""

    name: str = "R1"
    judged_by: str = "reward"
    checkpoints: int = 20  # after the start

    def methods(self) -> Sequence[str]:
        return tuple(METHODS)

    def grid(self, method: str) -> Mapping[str, Sequence[Dial]]:
        """`learning_rate` of every method; IPO's margin; the temperature where it is the method's main dial."""
        kept = {name: values for name, values in GRID.items() if name in named(method).dials}
        return kept | ({"beta": BETAS[method]} if method in BETAS else {})

    def run(self, method: str, seeds: Sequence[int], **dials: Dial) -> list[Row]:
        """Exact sums over arms, `kl`, `kl_forward` and `entropy` in nats; of the data's pairs log-probability and
        gain in nats; `samples` that a reward has labelled so far, of one seed. ValueError for a dial that the method
        lacks."""
        settings = named(method).settings(f"{method} in {self.name}", {**DEFAULTS, **OF_METHOD.get(method, {})}, dials)
        problem, parts = worlds.bandit(self.name), parts_of(self.name, seeds)
        data = parts.data(settings.prompts, settings.num_generations)
        pairs = staged(data, [score(parts.reward), refer(parts.reference), all_pairs()])
        ledger = Ledger(seeds, settings.steps, every(settings.steps, self.checkpoints))
        reference = problem.reference.log()

        def watch(progress: Progress) -> None:
            if ledger.due(progress.step):
                exact = standing(parts.policy.all_logp(), reference, problem.reward)
                told = pair_standing(parts.policy, pairs, pairs.prompt[:, 0])
                ledger.add(progress.step, exact | told | {"samples": float(samples(method, settings, progress))})

        play(method, settings, parts, seeds, watch)
        return ledger.rows

    def geometry(self) -> Mapping[str, np.ndarray]:
        problem = worlds.bandit(self.name)
        return {"reference": problem.reference.numpy(), "reward": problem.reward.numpy()}


def parts_of(name: str, seeds: Sequence[int]) -> Parts[Table]:
    """A bandit's table for each seed, with one context: prompt s is the seed in place s."""
    problem, S = worlds.bandit(name), len(seeds)
    start = problem.reference.log().expand(S, 1, -1)
    policy, reference = Table(start), Table(start)
    luck = streams(seeds, "samples")
    prompts = lambda count: policy.prompts(torch.zeros(S, count, dtype=torch.long))

    def data(count: int, k: int) -> Batch:
        drawn = reference.sample(prompts(count), uniform(streams(seeds, "data"), count, k).flatten(0, 1))
        return forced(drawn.prompt, drawn.response[..., 0])

    def fresh(batch: Batch, k: int) -> Batch:
        return policy.sample(batch.prompt, uniform(luck, len(batch) // S, k).flatten(0, 1))

    def own(count: int, k: int) -> Batch:
        return policy.sample(prompts(count), uniform(luck, count, k).flatten(0, 1))

    return Parts(policy, reference, rewarded(problem.reward[None]), data, own, fresh)
