"""Extrapolation: what happens to the best response when it is never in the data, with and without shared features.

Song et al. 2024, https://arxiv.org/abs/2406.01462, section on function approximation: with rewards linear in features
both DPO and RLHF raise the best response, which nobody compared, while what is in the data falls, and rightly so. With
a table instead, nothing carries over. Fifty responses, ten features, comparisons among fifteen that leave out the five
best. `minimal` is the three-response case of the same, with given features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from modeseek.objectives import DPO, BradleyTerry
from modeseek.studies.base import Dial, Row
from modeseek.studies.worlds.linear import (
    LogLinear,
    Problem,
    descend,
    exact_rows,
    pairs_of,
    settle,
    study_rows,
    table_features,
    told,
    told_metrics,
)
from modeseek.studies.worlds.table import normal, streams, uniform

RESPONSES, FEATURES, COMPARED, BEST_LEFT_OUT, PAIRS = 50, 10, 15, 5, 200
BETA = 0.3
LEARNING: Mapping[str, Dial] = {"steps": 1000, "learning_rate": 2.0, "beta": BETA}
METHODS = ("dpo", "dpo_table", "rlhf", "rlhf_table")


@dataclass(frozen=True)
class Extrapolation:
    """DPO and RLHF (a reward fitted to the pairs, then its Gibbs policy), each with features and with a table."""

    name: str = "extrapolation"
    judged_by: str = "reward"

    def methods(self) -> Sequence[str]:
        return METHODS

    def grid(self, method: str) -> Mapping[str, Sequence[Dial]]:
        return {"beta": (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)}

    def run(self, method: str, seeds: Sequence[int], **dials: Dial) -> list[Row]:
        """`Problem.metrics` and the pairs' log-probabilities, exact, in nats. RLHF has two rows a seed, the
        reference at step 0 and its Gibbs policy at step 1. ValueError for an unknown method, or a dial that it
        lacks."""
        if method not in METHODS:
            raise ValueError(f"method: {method!r}, expected one of {', '.join(METHODS)}")
        dial = settle(f"{method} in {self.name}", LEARNING, dials)
        beta, steps, rate = float(dial["beta"]), int(dial["steps"]), float(dial["learning_rate"])
        problem, features = linear_world(seeds)
        shared = features if not method.endswith("_table") else table_features(*problem.ref.shape)
        policy = LogLinear(problem.ref.log(), shared)
        pairs = pairs_of(*_labels(problem, seeds))
        if method.startswith("dpo"):
            return study_rows(policy, DPO(beta=beta), pairs, problem, seeds, steps, rate)
        descend(policy, BradleyTerry(), lambda: pairs, steps, rate * beta**2)  # so that DPO and RLHF go the same way
        learned = (shared @ policy.theta.detach()[..., None])[..., 0]
        logp = (problem.ref.log() + learned / beta).log_softmax(-1)
        return exact_rows(problem, logp, seeds, lambda now: told_metrics(now, pairs))

    def geometry(self) -> Mapping[str, np.ndarray]:
        problem, _ = linear_world([0])
        order = problem.reward[0].argsort()
        curves = {"reference": problem.ref[0], "reward": problem.reward[0], "data": problem.seen[0].double()}
        return {name: curve[order].numpy() for name, curve in curves.items()}


def linear_world(seeds: Sequence[int]) -> tuple[Problem, Float[Tensor, "S A d"]]:
    """Normal features, a reward linear in them with variance 1, an uneven reference."""
    rngs = streams(seeds, "problem")
    features = normal(rngs, RESPONSES, FEATURES)
    weights = normal(rngs, FEATURES)
    reward = (features @ (weights / weights.norm(dim=-1, keepdim=True))[..., None])[..., 0]
    ref = (normal(rngs, RESPONSES) / 2).softmax(-1)
    lot = uniform(rngs, RESPONSES).scatter(1, reward.topk(BEST_LEFT_OUT).indices, 2.0)  # the best come last
    compared = lot.argsort(-1)[:, :COMPARED]
    seen = torch.zeros_like(ref, dtype=torch.bool).scatter(1, compared, True)
    return Problem(ref=ref, reward=reward, seen=seen, beta=BETA), features


def minimal() -> tuple[Problem, Float[Tensor, "S A d"]]:
    """Three responses with features (1, 0), (1/2, 1/2), (0, 1), uniform; the data know only that 2 is better than 1."""
    features = torch.tensor([[[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]], dtype=torch.float64)
    third = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    seen = torch.tensor([[True, True, False]])
    return Problem(ref=third, reward=features[..., 1] - features[..., 0], seen=seen, beta=1.0), features


def _labels(problem: Problem, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    luck = uniform(streams(seeds, "pairs"), PAIRS, 3)
    places = problem.seen.nonzero()[:, 1].view(-1, COMPARED)  # [S, compared]
    first = (luck[..., 0] * COMPARED).long()
    second = (first + 1 + (luck[..., 1] * (COMPARED - 1)).long()) % COMPARED
    return told(problem.reward, places.gather(-1, first), places.gather(-1, second), luck[..., 2])
