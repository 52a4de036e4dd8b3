"""Preference reversal: with a policy class too small for the reward, DPO can raise the second best and lose reward.

Gopalan et al., https://arxiv.org/abs/2510.20413: three responses with rewards 1, 2 and 0, a uniform reference (so
coverage is global, C = 3) and policies (e^t, e^-t, 1) / Z. How often each pair is compared decides the sign of t. RLHF
in two stages fits the reward without such a restriction and then maximises J within the same policies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from modeseek.batch import Batch
from modeseek.objectives import DPO
from modeseek.studies.base import Dial, Row
from modeseek.studies.worlds.linear import LogLinear, Problem, both_orders, exact_rows, settle, study_rows
from modeseek.studies.worlds.table import streams, uniform

FIRST, SECOND = (0, 1, 2), (1, 2, 0)  # the pairs 12, 23 and 31
OFTEN = {"second_with_worst": 2, "best_with_second": 0}  # which pair is compared often
DIALS: Mapping[str, Mapping[str, Dial]] = {
    "dpo": {"often": "second_with_worst", "beta": 1.0, "steps": 400},
    "rlhf": {"beta": 1.0},
}


@dataclass(frozen=True)
class Reversal:
    """A seed draws how often each pair is compared: two of them once to three times, `often` 50 to 150 times."""

    name: str = "reversal"
    judged_by: str = "reward"

    def methods(self) -> Sequence[str]:
        return tuple(DIALS)

    def grid(self, method: str) -> Mapping[str, Sequence[Dial]]:
        """Nothing to tune: both are minimised."""
        return {}

    def run(self, method: str, seeds: Sequence[int], **dials: Dial) -> list[Row]:
        """`Problem.metrics`, exact. RLHF has two rows a seed, the reference at step 0 and at step 1 the best t of a
        grid from -3 to 3. ValueError for an unknown method or `often`, or a dial that the method lacks."""
        if method not in DIALS:
            raise ValueError(f"method: {method!r}, expected one of {', '.join(DIALS)}")
        dial = settle(f"{method} in {self.name}", DIALS[method], dials)
        beta = float(dial["beta"])
        problem, features = one_dimension(len(seeds), beta)
        if method == "rlhf":
            t = torch.linspace(-3, 3, 6001, dtype=torch.float64)
            logp = (problem.ref[:1].log() + t[:, None] * features[0, :, 0]).log_softmax(-1)
            value = (logp.exp() * (problem.reward[0] - beta * (logp - problem.ref[0].log()))).sum(-1)
            return exact_rows(problem, logp[value.argmax()].expand(len(seeds), 3), seeds)
        pairs = compared(problem, counts(seeds, str(dial["often"])))
        policy = LogLinear(problem.ref.log(), features)
        return study_rows(policy, DPO(beta=beta), pairs, problem, seeds, int(dial["steps"]), 1 / beta**2)

    def geometry(self) -> Mapping[str, np.ndarray]:
        problem, features = one_dimension(1, 1.0)
        curves = {"reference": problem.ref[0], "reward": problem.reward[0], "direction": features[0, :, 0]}
        return {name: curve.numpy() for name, curve in curves.items()}


def one_dimension(S: int, beta: float) -> tuple[Problem, Float[Tensor, "S 3 1"]]:
    """Rewards 1, 2, 0; a uniform reference; the policy's one feature is 1, -1, 0."""
    row = lambda *x: torch.tensor(x, dtype=torch.float64).expand(S, 3)
    seen = torch.ones(S, 3, dtype=torch.bool)
    problem = Problem(ref=row(1.0, 1.0, 1.0) / 3, reward=row(1.0, 2.0, 0.0), seen=seen, beta=beta)
    return problem, row(1.0, -1.0, 0.0)[..., None]


def counts(seeds: Sequence[int], often: str) -> Float[Tensor, "S 3"]:
    """How often each of the pairs 12, 23 and 31 is compared."""
    if often not in OFTEN:
        raise ValueError(f"often: {often!r}, expected one of {', '.join(OFTEN)}")
    luck = uniform(streams(seeds, "counts"), 3)
    seldom = 1 + (luck * 3).floor()
    at = torch.arange(3) == OFTEN[often]
    return torch.where(at, 50 + (luck * 101).floor(), seldom)


def compared(problem: Problem, count: Float[Tensor, "S 3"]) -> Batch:
    """The three pairs, each as often as counted, with the labels in their expected shares."""
    places = lambda x: torch.tensor(x).expand(len(count), 3)
    return both_orders(problem.reward, places(FIRST), places(SECOND), count)
