"""Log-linear policies of many seeds, trained by plain gradient descent, in float64 and with every expectation exact.

log pi(y) = log pi_ref(y) + features(y) . theta - log Z, with theta zero at the start, so that step 0 is the reference.
Features that are the identity make a table. Descent has no moments: the laws of 2406.01462's world are about gradients
themselves, and Adam follows others. A prompt is a seed: its id is the seed's place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from modeseek.batch import PK, PKT, Batch
from modeseek.objectives import Objective
from modeseek.studies.base import Dial, Row
from modeseek.studies.worlds.table import Ledger, forced, standing
from modeseek.train import evaluate

SA = Float[Tensor, "S A"]
CHECKPOINTS = 30  # rows of a seed, apart from the first


class LogLinear(nn.Module):
    """A policy for each seed; `features` [S, A, d] may differ between seeds, as the reference may."""

    def __init__(self, ref_logp: SA, features: Float[Tensor, "S A d"]):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(len(features), features.shape[2], dtype=torch.float64))
        self.ref_logp, self.features = ref_logp, features

    def all_logp(self) -> SA:
        """log-probability of every response."""
        return (self.ref_logp + (self.features @ self.theta[..., None])[..., 0]).log_softmax(-1)

    def logp(self, batch: Batch) -> PKT:
        return self.all_logp()[batch.prompt, batch.response[..., 0]][..., None]

    def score(self, batch: Batch) -> PK:
        """features . theta read as a reward, for objectives that train one."""
        return (self.features @ self.theta[..., None])[..., 0][batch.prompt, batch.response[..., 0]]

    @torch.no_grad()
    def sample(self, u: Float[Tensor, "S N"]) -> Int[Tensor, "S N"]:
        """The responses at these places of the cumulative distribution: the same `u`, the same luck."""
        return draw(self.all_logp().exp(), u)


def table_features(S: int, A: int) -> Float[Tensor, "S A A"]:
    """A feature for each response: no two share anything."""
    return torch.eye(A, dtype=torch.float64).expand(S, A, A)


def draw(p: SA, u: Float[Tensor, "S N"]) -> Int[Tensor, "S N"]:
    """Responses by their place in the cumulative distribution."""
    return torch.searchsorted(p.cumsum(-1), u.contiguous(), right=True).clamp(max=p.shape[-1] - 1)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a seed has to solve: everything about it is known."""

    ref: SA  # probabilities
    reward: SA  # the true one
    seen: Bool[Tensor, "S A"]  # what the preference data may contain
    beta: float  # price of a nat in J = E[r] - beta KL(pi || pi_ref)

    def optimum(self) -> SA:
        """log-probabilities of pi* = pi_ref exp(r / beta) / Z, which maximises J."""
        return (self.ref.log() + self.reward / self.beta).log_softmax(-1)

    def gain(self, logp: SA) -> Float[Tensor, " S"]:
        """J of a policy."""
        return (logp.exp() * (self.reward - self.beta * (logp - self.ref.log()))).sum(-1)

    def metrics(self, logp: SA) -> dict[str, Tensor]:
        """Reward, KLs and entropy, exact; J* - J as `gap`, and what it differs by from beta KL(pi || pi*), which is
        rounding; what lies outside the data, and the best response there."""
        exact = standing(logp[:, None], self.ref.log()[:, None], self.reward[:, None])
        outside = (logp.exp() * ~self.seen).sum(-1)
        best = self.reward.masked_fill(self.seen, -torch.inf).argmax(-1, keepdim=True)
        gap = self.gain(self.optimum()) - self.gain(logp)
        return exact | {
            "gap": gap,
            "identity_error": gap - self.beta * (logp.exp() * (logp - self.optimum())).sum(-1),
            "ood_mass": outside,
            "catastrophe": (outside > 0.5).double(),
            "logp_best_unseen": logp.gather(-1, best)[:, 0],
        }


def pairs_of(chosen: Int[Tensor, "S B"], rejected: Int[Tensor, "S B"], weight: Tensor | None = None) -> Batch:
    """Pairs as a batch, seed after seed; `weight` [S, B] says how much each counts, one by default."""
    S, B = chosen.shape
    prompt = torch.arange(S).repeat_interleave(B)[:, None]
    batch = forced(prompt, torch.stack([chosen, rejected], -1).flatten(0, 1))
    return batch if weight is None else replace(batch, weight=weight.flatten())


def told(
    reward: SA, first: Int[Tensor, "S B"], second: Int[Tensor, "S B"], u: Float[Tensor, "S B"]
) -> tuple[Int[Tensor, "S B"], Int[Tensor, "S B"]]:
    """Chosen and rejected, as a Bradley-Terry judge of the true reward says it: P(first) = sigma(difference)."""
    win = u < torch.sigmoid(reward.gather(-1, first) - reward.gather(-1, second))
    return torch.where(win, first, second), torch.where(win, second, first)


def referred(batch: Batch, ref_logp: SA) -> Batch:
    """`ref_logp` filled in."""
    return batch.fill(ref_logp=ref_logp[batch.prompt, batch.response[..., 0]][..., None])


def both_orders(
    reward: SA, first: Int[Tensor, "S B"], second: Int[Tensor, "S B"], count: Tensor | float = 1.0
) -> Batch:
    """Each comparison in both orders, weighed by its Bradley-Terry probability: what infinitely many labels say.

    `count` [S, B] is how often a comparison is made; weights sum to twice the comparisons of a seed, so that the mean
    over prompts is the mean over comparisons.
    """
    win = torch.sigmoid(reward.gather(-1, first) - reward.gather(-1, second)) * count
    lose = torch.sigmoid(reward.gather(-1, second) - reward.gather(-1, first)) * count
    weight = torch.cat([win, lose], -1)
    weight = weight / weight.sum(-1, keepdim=True) * weight.shape[-1]
    return pairs_of(torch.cat([first, second], -1), torch.cat([second, first], -1), weight)


def told_metrics(logp: SA, pairs: Batch) -> dict[str, Tensor]:
    """Mean log-probability of chosen and of rejected responses, by the weight of their pairs."""
    S = len(logp)
    values = logp.detach()[pairs.prompt, pairs.response[..., 0]]  # [P, 2]
    weight = pairs.weight.double().view(S, -1, 1)
    means = (values.view(S, -1, 2) * weight).sum(1) / weight.sum(1)
    return {"logp_chosen": means[:, 0], "logp_rejected": means[:, 1]}


def descend(
    policy: LogLinear,
    objective: Objective,
    source: Callable[[], Batch],
    steps: int,
    rate: float,
    watch: Callable[[int], None] = lambda step: None,
    precondition: Float[Tensor, "S d d"] | None = None,
) -> None:
    """Full-batch gradient descent on each seed's mean loss. `watch` is told the steps taken, 0 among them.

    `precondition` multiplies the gradient: an inverse bound of the Hessian makes it Newton's method's safe cousin.
    """
    for step in range(steps + 1):
        watch(step)
        if step == steps:
            return
        batch = source()
        loss = evaluate(objective, policy, batch).per_prompt
        total = (loss * batch.weight).sum() / (len(batch) // len(policy.theta))
        (gradient,) = torch.autograd.grad(total, policy.theta)
        if precondition is not None:
            gradient = (precondition @ gradient[..., None])[..., 0]
        with torch.no_grad():
            policy.theta.sub_(rate * gradient)


def study_rows(
    policy: LogLinear,
    objective: Objective,
    pairs: Batch,
    problem: Problem,
    seeds: Sequence[int],
    steps: int,
    rate: float,
    fresh: Callable[[], Batch] | None = None,
    more: Callable[[SA], Mapping[str, Tensor]] = lambda logp: {},
) -> list[Row]:
    """Train on pairs, with fresh samples behind them where there are some, and keep a row at every checkpoint."""
    pairs = referred(pairs, policy.ref_logp)
    source = (lambda: pairs) if fresh is None else (lambda: pairs.beside(referred(fresh(), policy.ref_logp)))
    ledger = Ledger(seeds, steps, max(1, steps // CHECKPOINTS))

    def watch(step: int) -> None:
        if ledger.due(step):
            with torch.no_grad():
                logp = policy.all_logp()
            ledger.add(step, problem.metrics(logp) | told_metrics(logp, pairs) | dict(more(logp)))

    descend(policy, objective, source, steps, rate, watch)
    return ledger.rows


def exact_rows(
    problem: Problem,
    logp: SA,
    seeds: Sequence[int],
    more: Callable[[SA], Mapping[str, Tensor]] = lambda logp: {},
) -> list[Row]:
    """The rows of a policy that is written down, not trained: the reference at step 0, the policy at step 1."""
    ledger = Ledger(seeds, 1, 1)
    for step, now in enumerate((problem.ref.log(), logp)):
        ledger.add(step, problem.metrics(now) | dict(more(now)))
    return ledger.rows


def settle(where: str, known: Mapping[str, Dial], dials: Mapping[str, Dial]) -> dict[str, Dial]:
    """The dials of a method with those asked for; one that would change nothing is refused."""
    for name in dials:
        if name not in known:
            raise ValueError(f"{name}: {where} has no such dial; it has {', '.join(known) or 'none'}")
    return {**known, **dials}
