"""The mass that a table gives to responses outside the data, which follows an exact law.

Song et al. 2024, https://arxiv.org/abs/2406.01462, show that the mean probability of out-of-distribution responses
rises under DPO without function approximation. With a table of logits and gradient descent the change has a closed
form, and its sign depends on the reference alone. Every update adds w to the logit of a chosen response and takes it
from the rejected one's, so logit shifts sum to zero over the compared set S. Fitted to infinitely many labels they are
delta_i = (r_i - mean r) / beta, and with m the mass outside, m becomes m / (m + (1 - m) E[exp(delta)]), the expectation
over the reference given S: it rises if and only if E[exp(delta)] < 1, as where the reference prefers what loses.
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
from modeseek.studies.worlds.linear import SA, LogLinear, Problem, both_orders, settle, study_rows, table_features
from modeseek.studies.worlds.table import normal, streams

RESPONSES, COMPARED = 30, 10
TASTE = {"uniform": 0.0, "correlated": 1.0, "anti": -1.0}  # reference logits per unit of reward / beta
DIALS: Mapping[str, Dial] = {"reference": "uniform", "steps": 1500, "beta": 1.0}


@dataclass(frozen=True)
class UnseenMass:
    """DPO with a table of logits, on every comparison of ten of thirty responses."""

    name: str = "unseen_mass"
    judged_by: str = "reward"

    def methods(self) -> Sequence[str]:
        return ("dpo",)

    def grid(self, method: str) -> Mapping[str, Sequence[Dial]]:
        """Nothing to tune: the loss is convex and is minimised."""
        return {}

    def run(self, method: str, seeds: Sequence[int], **dials: Dial) -> list[Row]:
        """`Problem.metrics`, exact, beside the law: `ood_predicted` is the mass outside it ends at, `ood_error` what
        is still missing as a share of the whole way. ValueError for an unknown method, dial or reference."""
        if method != "dpo":
            raise ValueError(f"method: {method!r}, expected dpo")
        dial = settle(f"dpo in {self.name}", DIALS, dials)
        beta = float(dial["beta"])
        problem = tabular(seeds, str(dial["reference"]), beta)
        pairs = every_comparison(problem)
        policy = LogLinear(problem.ref.log(), table_features(*problem.ref.shape))
        rate = 2 * (COMPARED - 1) / beta**2  # the largest curvature is beta^2 / 4 x 10 / 45 pairs
        law = predicted(problem)
        start = problem.metrics(problem.ref.log())["ood_mass"]

        def more(logp: SA) -> dict[str, Tensor]:
            mass = problem.metrics(logp)["ood_mass"]
            return {"ood_predicted": law, "ood_error": (mass - law).abs() / (law - start).abs(), "rise": _rise(problem)}

        return study_rows(policy, DPO(beta=beta), pairs, problem, seeds, int(dial["steps"]), rate, more=more)

    def geometry(self) -> Mapping[str, np.ndarray]:
        problem = tabular([0], "uniform", 1.0)
        return {"reward": problem.reward[0].numpy(), "data": problem.seen[0].double().numpy()}


def tabular(seeds: Sequence[int], reference: str, beta: float) -> Problem:
    """Normal rewards; the first ten responses are compared. The reference's taste is exp(c r / beta), c by its name."""
    if reference not in TASTE:
        raise ValueError(f"reference: {reference!r}, expected one of {', '.join(TASTE)}")
    reward = normal(streams(seeds, "problem"), RESPONSES)
    ref = (TASTE[reference] * reward / beta).softmax(-1)
    seen = torch.arange(RESPONSES).expand(len(seeds), -1) < COMPARED
    return Problem(ref=ref, reward=reward, seen=seen, beta=beta)


def every_comparison(problem: Problem) -> Batch:
    """All pairs of compared responses, in both orders, weighed by what infinitely many labels say."""
    places = torch.combinations(torch.arange(COMPARED)).T  # [2, pairs]
    return both_orders(problem.reward, *places.unsqueeze(1).expand(2, len(problem.ref), -1))


def predicted(problem: Problem) -> Float[Tensor, " S"]:
    """The law: the mass outside once the labels are fitted."""
    m = (problem.ref * ~problem.seen).sum(-1)
    return m / (m + (1 - m) * growth(problem))


def growth(problem: Problem) -> Float[Tensor, " S"]:
    """E[exp(delta)] over the reference given the compared set."""
    inside = problem.ref * problem.seen
    mean = (problem.reward * problem.seen).sum(-1, keepdim=True) / COMPARED
    delta = (problem.reward - mean) / problem.beta
    return (inside * delta.exp()).sum(-1) / inside.sum(-1)


def first_order(logp: SA, pairs: Batch, beta: float) -> Float[Tensor, " S"]:
    """d log pi(y) of any response outside the data, per unit of learning rate: mean over pairs of
    w (pi(rejected) - pi(chosen)), w = beta sigma(-margin), at the reference, where margins are zero."""
    p = logp.exp()[pairs.prompt, pairs.response[..., 0]]  # [P, 2]
    return (beta / 2 * pairs.weight * (p[:, 1] - p[:, 0])).view(len(logp), -1).mean(-1)


def _rise(problem: Problem) -> Float[Tensor, " S"]:
    return (growth(problem) < 1).double()
