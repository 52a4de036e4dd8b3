"""Rounds of labels: pairs from the reference, from the policy as it is, or where they say most about the reward.

Offline DPO against on-policy DPO and against pairs from a G-optimal design, in a log-linear world whose reference
prefers what is worth little. Each round adds 150 labelled pairs, and DPO is fitted anew to all that there are. After
https://arxiv.org/abs/2601.08421, which has the rates and the preferential G-optimal design.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from modeseek.objectives import DPO
from modeseek.studies.base import Dial, Row
from modeseek.studies.worlds.linear import SA, LogLinear, Problem, descend, draw, pairs_of, referred, settle, told
from modeseek.studies.worlds.table import Ledger, normal, streams, uniform

RESPONSES, FEATURES, PAIRS = 60, 8, 150
BETA = 0.2
TASTE = -2.0  # reference logits per unit of reward
FIT_STEPS, RIDGE = 60, 1e-3
METHODS = ("offline", "on_policy", "g_optimal")
DIALS: Mapping[str, Dial] = {"rounds": 6}

Pairs = tuple[Int[Tensor, "S B"], Int[Tensor, "S B"]]


@dataclass(frozen=True)
class Rounds:
    """A step is a round. `log_gap` is the logarithm of J* - J, whose mean is not ruled by a few unlucky seeds."""

    name: str = "rounds"
    judged_by: str = "reward"

    def methods(self) -> Sequence[str]:
        return METHODS

    def grid(self, method: str) -> Mapping[str, Sequence[Dial]]:
        """Nothing to tune: DPO's loss is convex here and is minimised."""
        return {}

    def run(self, method: str, seeds: Sequence[int], **dials: Dial) -> list[Row]:
        """`Problem.metrics`, exact, and `log_gap`; the row of step n is of the policy fitted to the first n rounds.
        ValueError for an unknown method, or a dial other than `rounds`."""
        if method not in METHODS:
            raise ValueError(f"method: {method!r}, expected one of {', '.join(METHODS)}")
        last = int(settle(f"{method} in {self.name}", DIALS, dials)["rounds"])
        problem, features = anti_correlated(seeds)
        policy = LogLinear(problem.ref.log(), features)
        design = g_optimal(features) if method == "g_optimal" else None
        luck, ledger = streams(seeds, "pairs"), Ledger(seeds, last, 1)
        told_so_far: list[Pairs] = []
        for now in range(last + 1):
            logp = policy.all_logp().detach()
            found = problem.metrics(logp)
            ledger.add(now, found | {"log_gap": found["gap"].clamp(min=1e-12).log()})
            if now < last:
                u = uniform(luck, PAIRS, 3)
                writer = problem.ref if method == "offline" else logp.exp()
                asked = _two(writer, u) if design is None else _from_design(design, u[..., 0])
                told_so_far.append(told(problem.reward, *asked, u[..., 2]))
                fit(policy, problem, told_so_far)
        return ledger.rows

    def geometry(self) -> Mapping[str, np.ndarray]:
        problem, _ = anti_correlated([0])
        order = problem.reward[0].argsort()
        return {"reference": problem.ref[0][order].numpy(), "reward": problem.reward[0][order].numpy()}


def anti_correlated(seeds: Sequence[int]) -> tuple[Problem, Float[Tensor, "S A d"]]:
    """Normal features, a reward linear in them with variance 1, a reference that likes low rewards."""
    rngs = streams(seeds, "problem")
    features = normal(rngs, RESPONSES, FEATURES)
    weights = normal(rngs, FEATURES)
    reward = (features @ (weights / weights.norm(dim=-1, keepdim=True))[..., None])[..., 0]
    ref = (TASTE * reward + normal(rngs, RESPONSES) / 2).softmax(-1)
    seen = torch.ones_like(ref, dtype=torch.bool)
    return Problem(ref=ref, reward=reward, seen=seen, beta=BETA), features


def fit(policy: LogLinear, problem: Problem, told_so_far: Sequence[Pairs]) -> None:
    """DPO to its minimum. The gradient is multiplied by the inverse of a bound of the Hessian, sigma' <= 1 / 4, with a
    small ridge that keeps directions nobody compared from dividing by zero."""
    chosen, rejected = (torch.cat(parts, -1) for parts in zip(*told_so_far, strict=True))
    place = torch.arange(len(chosen))[:, None]
    gaps = policy.features[place, chosen] - policy.features[place, rejected]  # [S, B, d]
    eye = torch.eye(gaps.shape[-1], dtype=gaps.dtype)
    bound = BETA**2 / 4 * (gaps.mT @ gaps / gaps.shape[1] + RIDGE * eye)
    pairs = referred(pairs_of(chosen, rejected), policy.ref_logp)
    descend(policy, DPO(beta=BETA), lambda: pairs, FIT_STEPS, 1.0, precondition=torch.linalg.inv(bound))


def g_optimal(features: Float[Tensor, "S A d"], steps: int = 200) -> tuple[Tensor, Int[Tensor, "2 N"]]:
    """A distribution [S, N] over all pairs whose largest leverage is least, and the pairs' places.

    Frank-Wolfe on the D-optimal design, which is the G-optimal one (Kiefer and Wolfowitz): the largest leverage of a
    pair tends to d, and no design has less. The step is the exact line search of Fedorov and Wynn.
    """
    places = torch.combinations(torch.arange(features.shape[1])).T
    gaps = features[:, places[0]] - features[:, places[1]]  # [S, N, d]
    S, N, d = gaps.shape
    weight, row = torch.full((S, N), 1 / N, dtype=gaps.dtype), torch.arange(S)
    for _ in range(steps):
        value, best = leverage(gaps, weight).max(-1)
        step = (value / d - 1) / (value - 1)
        weight = weight * (1 - step[:, None])
        weight[row, best] += step
    return weight, places


def leverage(gaps: Float[Tensor, "S N d"], weight: Float[Tensor, "S N"]) -> Float[Tensor, "S N"]:
    """x' M^-1 x of each pair's difference x, M the design's second moment."""
    moment = (gaps * weight[..., None]).mT @ gaps
    return (gaps @ torch.linalg.inv(moment) * gaps).sum(-1)


def _two(p: SA, u: Float[Tensor, "S B 3"]) -> Pairs:
    """Two different responses of each draw: the second is drawn from what the first leaves."""
    first = draw(p, u[..., 0])
    rest = p[:, None].expand(-1, u.shape[1], -1).scatter(-1, first[..., None], 0.0)
    cdf = rest.cumsum(-1)
    at = (u[..., 1:2] * cdf[..., -1:]).contiguous()
    second = torch.searchsorted(cdf, at, right=True)[..., 0].clamp(max=p.shape[-1] - 1)
    return first, second


def _from_design(design: tuple[Tensor, Int[Tensor, "2 N"]], u: Float[Tensor, "S B"]) -> Pairs:
    weight, places = design
    at = draw(weight, u)
    return places[0][at], places[1][at]
