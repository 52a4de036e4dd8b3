"""Partial coverage with a spurious feature: what the data never compare looks good to a linear reward, and is not.

The argument of Song et al. 2024, https://arxiv.org/abs/2406.01462, as a world of ours: 150 responses hold .999 of the
reference's mass, 50 the rest. Rewards are linear in ten normal features, of which the first is larger outside the
support, and outside there is a penalty with a feature of its own, zero on the support. The reward is in the class
(nothing is misspecified), but pairs from the support say nothing of the penalty. `coverage` says where the pairs come
from: `local` is the reference's support, `global` all responses alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from modeseek.batch import Batch
from modeseek.objectives import DPO, IPO, BradleyTerry, ChiPO, HyPO, Objective
from modeseek.studies.base import Dial, Row
from modeseek.studies.worlds.linear import (
    SA,
    LogLinear,
    Problem,
    descend,
    exact_rows,
    pairs_of,
    settle,
    study_rows,
    told,
)
from modeseek.studies.worlds.table import normal, streams, uniform

SUPPORTED, OUTSIDE, FEATURES, PAIRS = 150, 50, 10, 150
MASS_OUTSIDE = 0.001
WORST = -2.0  # mean reward outside
FRESH = 2  # HyPO's samples to each pair
OPTIMUM_BETA = 0.1  # of J, whatever a method's own beta

LEARNING: Mapping[str, Dial] = {"steps": 1500, "learning_rate": 1.0, "coverage": "local"}
DIALS: Mapping[str, Mapping[str, Dial]] = {
    "dpo": {**LEARNING, "beta": 0.1},
    "dpo_stopped": {**LEARNING, "beta": 0.1, "steps": 100},
    "dpo_tuned": {**LEARNING, "beta": 0.2, "steps": 200},
    "hypo": {**LEARNING, "beta": 0.1, "kl": 3e-3},
    "ipo": {**LEARNING, "learning_rate": 0.05, "tau": 0.05},
    "chipo": {**LEARNING, "beta": 0.1},
    "rlhf": {**LEARNING, "beta": 0.1, "bound": "none"},
}
GRID: Mapping[str, Mapping[str, Sequence[Dial]]] = {
    "dpo": {"beta": (0.05, 0.1, 0.2, 0.3, 0.5)},
    "dpo_stopped": {"steps": (25, 50, 100, 200, 400)},
    "dpo_tuned": {"beta": (0.05, 0.1, 0.2, 0.3, 0.5), "steps": (50, 100, 200, 400, 1500)},
    "hypo": {"kl": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)},
    "ipo": {"tau": (0.02, 0.03, 0.05, 0.1, 0.2)},
    "chipo": {"beta": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)},
    "rlhf": {"beta": (0.05, 0.1, 0.2, 0.3, 0.5)},
}


@dataclass(frozen=True)
class PartialCoverage:
    """Every learner has one dial to tune with five values (chi-squared PO six); `dpo_stopped` is DPO with its number of
    steps tuned, and `dpo_tuned`, for which more is spent, has both beta and the number of steps.

    `rlhf` fits a linear reward to the pairs and takes its Gibbs policy; `bound: data` clips the reward to its range
    over the responses of the data, which the paper's theorem asks for in assuming a bounded reward.
    """

    name: str = "partial"
    judged_by: str = "reward"
    spurious: float = 1.5  # mean of the first feature outside the support, in its standard deviations inside

    def methods(self) -> Sequence[str]:
        return tuple(DIALS)

    def grid(self, method: str) -> Mapping[str, Sequence[Dial]]:
        return GRID[method]

    def run(self, method: str, seeds: Sequence[int], **dials: Dial) -> list[Row]:
        """`Problem.metrics`, exact, KLs in nats; `gap` is at beta 0.1 whatever the method's own. `rlhf` has two rows
        a seed, the reference at step 0 and its Gibbs policy at step 1. ValueError for an unknown method, dial or
        coverage."""
        if method not in DIALS:
            raise ValueError(f"method: {method!r}, expected one of {', '.join(DIALS)}")
        dial = settle(f"{method} in {self.name}", DIALS[method], dials)
        problem, features = partial(seeds, self.spurious)
        pairs = preferences(problem, seeds, str(dial["coverage"]))
        policy = LogLinear(problem.ref.log(), features)
        steps, rate = int(dial["steps"]), float(dial["learning_rate"])
        if method == "rlhf":
            descend(policy, BradleyTerry(), lambda: pairs, steps, rate * float(dial["beta"]) ** 2)
            learned = bounded(policy.features @ policy.theta[..., None], pairs, str(dial["bound"]))
            return exact_rows(problem, (problem.ref.log() + learned / float(dial["beta"])).log_softmax(-1), seeds)
        fresh = own_samples(policy, seeds) if method == "hypo" else None
        return study_rows(policy, objective(method, dial), pairs, problem, seeds, steps, rate, fresh)

    def geometry(self) -> Mapping[str, np.ndarray]:
        problem, features = partial([0], self.spurious)
        curves = {"reference": problem.ref[0], "reward": problem.reward[0], "data": problem.seen[0] / SUPPORTED}
        return {name: curve.numpy() for name, curve in curves.items()} | {"spurious": features[0, :, 0].numpy()}


def objective(method: str, dial: Mapping[str, Dial]) -> Objective:
    """The library's own."""
    match method:
        case "ipo":
            return IPO(tau=float(dial["tau"]))
        case "chipo":
            return ChiPO(beta=float(dial["beta"]))
        case "hypo":
            return HyPO(beta=float(dial["beta"]), kl=float(dial["kl"]), kl_baseline="leave_one_out")
        case _:
            return DPO(beta=float(dial["beta"]))


def partial(seeds: Sequence[int], spurious: float) -> tuple[Problem, Float[Tensor, "S A d"]]:
    """The problem of each seed and its features: ten drawn, and the indicator of being outside."""
    rngs, S = streams(seeds, "problem"), len(seeds)
    A = SUPPORTED + OUTSIDE
    seen = torch.arange(A).expand(S, A) < SUPPORTED
    drawn = normal(rngs, A, FEATURES)
    drawn[..., 0] += spurious * ~seen
    weights = normal(rngs, FEATURES)
    weights[:, 0] = 0
    weights = weights / weights.norm(dim=-1, keepdim=True) * 0.75**0.5
    weights[:, 0] = 0.5  # with the others' .75: rewards on the support have variance 1
    penalty = WORST - 0.5 * spurious
    reward = (drawn @ weights[..., None])[..., 0] + penalty * ~seen
    masses = normal(rngs, A) / 2
    inside = masses.masked_fill(~seen, -torch.inf).softmax(-1) * (1 - MASS_OUTSIDE)
    outside = masses.masked_fill(seen, -torch.inf).softmax(-1) * MASS_OUTSIDE
    problem = Problem(ref=inside + outside, reward=reward, seen=seen, beta=OPTIMUM_BETA)
    return problem, torch.cat([drawn, (~seen).double()[..., None]], -1)


def preferences(problem: Problem, seeds: Sequence[int], coverage: str) -> Batch:
    """Labelled pairs. The same luck picks places, whatever the coverage."""
    luck = uniform(streams(seeds, "pairs"), PAIRS, 3)
    reach = {"local": SUPPORTED, "global": SUPPORTED + OUTSIDE}
    if coverage not in reach:
        raise ValueError(f"coverage: {coverage!r}, expected one of {', '.join(reach)}")
    first: Int[Tensor, "S B"] = (luck[..., 0] * reach[coverage]).long()
    second = (first + 1 + (luck[..., 1] * (reach[coverage] - 1)).long()) % reach[coverage]
    return pairs_of(*told(problem.reward, first, second, luck[..., 2]))


def own_samples(policy: LogLinear, seeds: Sequence[int]) -> Callable[[], Batch]:
    """Fresh samples behind each pair, new ones at each call."""
    rngs, S = streams(seeds, "samples"), len(seeds)
    prompt = torch.arange(S).repeat_interleave(PAIRS)[:, None]
    everywhere = torch.ones(S * PAIRS, FRESH, 1, dtype=torch.bool)

    def fresh() -> Batch:
        written = policy.sample(uniform(rngs, PAIRS * FRESH)).view(-1, FRESH, 1)
        return Batch.own(prompt, torch.ones_like(prompt, dtype=torch.bool), written, everywhere)

    return fresh


def bounded(learned: Float[Tensor, "S A 1"], pairs: Batch, bound: str) -> SA:
    """The learned reward, clipped to what it says of the responses that the data have where that is asked for."""
    score = learned[..., 0].detach()
    if bound == "none":
        return score
    if bound != "data":
        raise ValueError(f"bound: {bound!r}, expected none or data")
    seen = score.gather(-1, pairs.response.view(len(score), -1))
    return score.clamp(seen.amin(-1, keepdim=True), seen.amax(-1, keepdim=True))
