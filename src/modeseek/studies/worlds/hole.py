"""A hole in the reference: responses that the data never compare and the reference hardly ever writes.

Song et al. 2024, https://arxiv.org/abs/2406.01462, section 4: a policy whose implicit reward is right up to sqrt(eps)
on all that the reference covers may hold most of its mass where the reference has none, and DPO's loss cannot see it.
The policy of their proof, written down here, has pi(y) = pi*(y) exp(-sqrt(eps) / beta) on every covered y; what is
left over, 1 - exp(-sqrt(eps) / beta), lies in the hole. With a hole of mass eta its KL grows by that much for each nat
of 1 / eta. With two covered responses it is the counterexample of three responses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modeseek.batch import Batch
from modeseek.objectives import DPO, HyPO, call
from modeseek.studies.base import Dial, Row
from modeseek.studies.worlds.linear import (
    SA,
    LogLinear,
    Problem,
    both_orders,
    exact_rows,
    pairs_of,
    referred,
    settle,
    study_rows,
    table_features,
)
from modeseek.studies.worlds.table import normal, streams, uniform

PROBLEM: Mapping[str, Dial] = {"covered": 2, "eta": 1e-8, "beta": 0.1}
DIALS: Mapping[str, Mapping[str, Dial]] = {
    "dpo_set": {**PROBLEM, "eps": 0.01},
    "rlhf": {**PROBLEM, "bound": 1.0},
    "dpo": {**PROBLEM, "steps": 1000},
}


@dataclass(frozen=True)
class Hole:
    """`dpo_set` is the worst policy of those that are right up to `eps` on what is covered; `rlhf` the Gibbs policy of
    a learned reward that is right there and at its bound in the hole; `dpo` what descent from the reference finds."""

    name: str = "hole"
    judged_by: str = "reward"

    def methods(self) -> Sequence[str]:
        return tuple(DIALS)

    def grid(self, method: str) -> Mapping[str, Sequence[Dial]]:
        """Nothing to tune: two of the policies are written down, the third minimises a convex loss."""
        return {}

    def run(self, method: str, seeds: Sequence[int], **dials: Dial) -> list[Row]:
        """`Problem.metrics`, exact, KLs in nats and `gap` in units of reward. Written policies have two rows a seed,
        the reference at step 0 and themselves at step 1. ValueError for an unknown method, or a dial that it lacks."""
        if method not in DIALS:
            raise ValueError(f"method: {method!r}, expected one of {', '.join(DIALS)}")
        told = settle(f"{method} in {self.name}", DIALS[method], dials)
        covered, eta, beta = int(told["covered"]), float(told["eta"]), float(told["beta"])
        problem = random_hole(seeds, covered, eta, beta)
        if method == "dpo_set":
            eps = float(told["eps"])
            return exact_rows(problem, shifted(problem, eps), seeds, lambda _: blindness(problem, eps))
        if method == "rlhf":
            bound = float(told["bound"])
            above = lambda logp: {"kl_above_bound": problem.metrics(logp)["kl"] - kl_bound(bound, beta)}
            return exact_rows(problem, gibbs(problem, bound), seeds, above)
        S, A = problem.ref.shape
        first, second = torch.combinations(torch.arange(covered)).T.unsqueeze(1).expand(2, S, -1)
        policy = LogLinear(problem.ref.log(), table_features(S, A))
        pairs = both_orders(problem.reward, first, second)
        rate = 2 / beta**2 * first.shape[1] / covered  # below 2 over the largest curvature, beta^2 covered / 4 pairs
        return study_rows(policy, DPO(beta=beta), pairs, problem, seeds, int(told["steps"]), rate)

    def geometry(self) -> Mapping[str, np.ndarray]:
        problem = random_hole([0], 2, 1e-8, 0.1)
        return {"reference": problem.ref[0].numpy(), "reward": problem.reward[0].numpy()}


def random_hole(seeds: Sequence[int], covered: int, eta: float, beta: float) -> Problem:
    """Uneven covered masses, rewards in [0, 1), and a hole of mass `eta` and reward 0 in the last place."""
    if covered < 2 or not 0 < eta < 1:
        raise ValueError(f"covered: {covered} and eta: {eta}, expected at least 2 and a mass between 0 and 1")
    rngs = streams(seeds, "problem")
    masses = normal(rngs, covered).softmax(-1) * (1 - eta)
    reward = uniform(rngs, covered)
    end = torch.ones(len(seeds), 1, dtype=torch.float64)
    seen = torch.arange(covered + 1).expand(len(seeds), -1) < covered
    return Problem(
        ref=torch.cat([masses, eta * end], -1), reward=torch.cat([reward, 0 * end], -1), seen=seen, beta=beta
    )


def without_hole(problem: Problem) -> SA:
    """log pi* of the covered responses alone: all of the mass is theirs."""
    return (problem.ref.log() + problem.reward / problem.beta).masked_fill(~problem.seen, -torch.inf).log_softmax(-1)


def shifted(problem: Problem, eps: float) -> SA:
    """The counterexample's log-probabilities: sqrt(eps) of implicit reward too little on all that is covered."""
    shift = math.sqrt(eps) / problem.beta
    left = math.log(-math.expm1(-shift)) - math.log((~problem.seen[0]).sum())
    return (without_hole(problem) - shift).masked_fill(~problem.seen, left)


def gibbs(problem: Problem, bound: float) -> SA:
    """pi_ref exp(r_hat / beta) / Z where r_hat is the true reward on what is covered and `bound` in the hole."""
    learned = problem.reward.clamp(-bound, bound).masked_fill(~problem.seen, bound)
    return (problem.ref.log() + learned / problem.beta).log_softmax(-1)


def kl_bound(bound: float, beta: float) -> float:
    """The most KL that a Gibbs policy of a reward within plus or minus `bound` can have, in nats.

    Optimality gives 2 R / beta. The KL is also the integral over t from 0 to 1 of t Var(r / beta) under the policy
    at reward t r, and that variance is at most (R / beta)^2: R^2 / (2 beta^2). The paper's constant is larger.
    """
    return min(2 * bound / beta, bound**2 / (2 * beta**2))


def blindness(problem: Problem, eps: float) -> dict[str, Tensor]:
    """What DPO's loss and HyPO's KL see of the shift, and the error that the shift makes on what is covered."""
    before, after = without_hole(problem), shifted(problem, eps)
    error = (problem.beta * (after - before).masked_fill(~problem.seen, 0.0)).square()  # beta log pi / pi*
    weight = problem.ref * problem.seen
    return {
        "error": (error * weight).sum(-1) / weight.sum(-1),
        "error_less_eps": (error * weight).sum(-1) / weight.sum(-1) - eps,
        "hole_predicted": torch.full_like(error[:, 0], -math.expm1(-math.sqrt(eps) / problem.beta)),
        "dpo_loss_change": _dpo_loss(problem, after) - _dpo_loss(problem, before),
        "hypo_kl_change": _hypo_kl(problem, after) - _hypo_kl(problem, before),
    }


def _dpo_loss(problem: Problem, logp: SA) -> Tensor:
    S, covered = len(logp), int(problem.seen[0].sum())
    first, second = torch.combinations(torch.arange(covered)).T.unsqueeze(1).expand(2, S, -1)
    pairs = both_orders(problem.reward, first, second)
    loss = call(DPO(beta=problem.beta), *_said(problem, logp, pairs)).per_prompt
    return (loss * pairs.weight).view(S, -1).mean(-1)


def _hypo_kl(problem: Problem, logp: SA) -> Tensor:
    """The expectation over fresh samples of the KL that HyPO reports, every response being one with its probability."""
    S, A = logp.shape
    zero = torch.zeros(S, A, dtype=torch.long)
    told = pairs_of(zero, zero + 1)
    every = Batch.own(
        told.prompt, told.prompt_mask, torch.arange(A).repeat(S)[:, None, None], told.mask[:, :1], **told.columns
    )
    said = call(HyPO(beta=problem.beta), *_said(problem, logp, told.beside(every))).metrics["kl"].view(S, A)
    return torch.where(logp > -torch.inf, logp.exp() * said, 0.0).sum(-1)


def _said(problem: Problem, logp: SA, batch: Batch) -> tuple[Batch, Mapping[str, Tensor]]:
    return referred(batch, problem.ref.log()), {"logp": logp[batch.prompt, batch.response[..., 0]][..., None]}
