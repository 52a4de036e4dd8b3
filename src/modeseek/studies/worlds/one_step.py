"""The world `one-step`: what a single small gradient step does, in many random cases, against 2404.14367's theory.

A seed is 500 cases. `lemma_6_2` compares a step with a negative gradient with one without it, on softmax tables;
`log_linear` does so where the two responses' features have a given cosine. `theorem_6_5` compares a step on the forward
KL(q || p) with one on the reverse KL(p || q); `toy` goes on for some steps from the paper's example of four bins.
Row 0 is the state before (no number differs from it), row 1 the outcome: shares of cases, or nats per unit of step.
https://arxiv.org/abs/2404.14367, section 6; the exact conditions are our algebra.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from modeseek.objectives import SFT, NegativeBoN
from modeseek.studies.base import Dial, Row
from modeseek.studies.worlds.table import forced, normal, streams, uniform

CASES = 500
ACTIONS, SPREAD = 20, 2.0  # of the lemma's softmaxes: responses, and the standard deviation of their logits
BINS = 8  # of the theorem's
STEP = 1e-4  # small: what is compared is first order
TOY_START, TOY_TARGET = (0.3, 0.3, 0.1, 0.3), (0.2, 0.1, 0.6, 0.1)
METHODS: Mapping[str, Mapping[str, Dial]] = {
    "lemma_6_2": {},
    "log_linear": {"cosine": 0.0},
    "theorem_6_5": {},
    "toy": {},
}


@dataclass(frozen=True)
class OneStep:
    """The theory's world; there is nothing to tune."""

    name: str = "one-step"
    judged_by: str = "agree"

    def methods(self) -> Sequence[str]:
        return tuple(METHODS)

    def grid(self, method: str) -> Mapping[str, Sequence[Dial]]:
        return {}

    def run(self, method: str, seeds: Sequence[int], **dials: Dial) -> list[Row]:
        """Two rows a seed, nothing trained: zeros at step 0, and at step 1 what the method's function found of
        random cases, mostly shares of them. ValueError for an unknown method, or a dial that it lacks."""
        if method not in METHODS:
            raise ValueError(f"method: {method!r} in {self.name}, expected one of {', '.join(METHODS)}")
        if unknown := sorted(dials.keys() - METHODS[method].keys()):
            raise ValueError(f"{unknown[0]}: {method} in {self.name} has no such dial")
        rows: list[Row] = []
        for seed in seeds:
            rng = streams([seed], method)
            if method == "log_linear":
                found = log_linear(rng, float({**METHODS[method], **dials}["cosine"]))
            else:
                found = {"lemma_6_2": lemma, "theorem_6_5": theorem, "toy": toy}[method](rng)
            rows.append({"seed": seed, "step": 0, **dict.fromkeys(found, 0.0)})
            rows.append({"seed": seed, "step": 1, **found})
        return rows

    def geometry(self) -> Mapping[str, np.ndarray]:
        return {"start": np.array(TOY_START), "target": np.array(TOY_TARGET)}


def lemma(rng: list[torch.Generator]) -> dict[str, float]:
    """On softmax tables: how often the negative gradient widens the margin, raises y_w, lowers y_l.

    `agree` is how often the sign of y_w's gain is that of p_w + p_l - |p|^2, which is minus the inner product of the
    two responses' gradients.
    """
    logits = SPREAD * normal(rng, CASES, ACTIONS)[0]
    won, lost = _two(rng, CASES, ACTIONS)
    with_, without = _stepped(logits, won, lost)
    p = logits.softmax(-1)
    at = lambda x, i: x.gather(1, i[:, None])[:, 0]
    condition = at(p, won) + at(p, lost) - p.square().sum(-1)
    found = _compared(with_ - without, won, lost)
    return found | {"agree": _share((at(with_ - without, won) > 0) == (condition > 0))}


def log_linear(rng: list[torch.Generator], cosine: float, width: int = 3) -> dict[str, float]:
    """On policies linear in features, where the features of y_w and y_l have this cosine: the same, and both falling.

    `both_fall` is absolute: after a step with the negative gradient both log-probabilities are lower than before.
    """
    features = normal(rng, CASES, ACTIONS, width)[0]
    won, lost = torch.zeros(CASES, dtype=torch.long), torch.ones(CASES, dtype=torch.long)
    unit = features[:, 0] / features[:, 0].norm(dim=-1, keepdim=True)
    across = features[:, 1] - (features[:, 1] * unit).sum(-1, keepdim=True) * unit
    across = across / across.norm(dim=-1, keepdim=True)
    features[:, 0] = unit * width**0.5
    features[:, 1] = (cosine * unit + (1 - cosine**2) ** 0.5 * across) * width**0.5
    weights = normal(rng, CASES, width)[0]
    with_, without = _stepped(weights, won, lost, features)
    both = (with_[:, 0] < 0) & (with_[:, 1] < 0)
    return _compared(with_ - without, won, lost) | {"both_fall": _share(both)}


def _stepped(
    weights: Float[Tensor, "C D"], won: Tensor, lost: Tensor, features: Float[Tensor, "C A D"] | None = None
) -> tuple[Float[Tensor, "C A"], Float[Tensor, "C A"]]:
    """What one gradient step changes in every log-probability, with the negative gradient and without it."""
    logp_of = lambda x: (x if features is None else torch.einsum("cad,cd->ca", features, x)).log_softmax(-1)
    pairs = forced(torch.zeros(len(won), 1, dtype=torch.long), torch.stack([won, lost], -1))
    before, changes = logp_of(weights), []
    for objective, kept in ((NegativeBoN(beta=1.0), pairs), (SFT(), pairs.take(torch.zeros(len(won), 1).long()))):
        moving = weights.clone().requires_grad_()
        logp = logp_of(moving).gather(1, kept.response[..., 0])[..., None]
        loss = objective(logp, kept.mask, kept.present).per_prompt.sum()
        (gradient,) = torch.autograd.grad(loss, moving)
        changes.append((logp_of(weights - STEP * gradient) - before).detach() / STEP)
    return changes[0], changes[1]


def _compared(gain: Float[Tensor, "C A"], won: Tensor, lost: Tensor) -> dict[str, float]:
    """Shares of cases where the negative gradient widens the margin, raises the chosen, lowers the rejected."""
    chosen, rejected = gain.gather(1, won[:, None])[:, 0], gain.gather(1, lost[:, None])[:, 0]
    return {
        "margin_wider": _share(chosen > rejected),
        "chosen_higher": _share(chosen > 0),
        "rejected_lower": _share(rejected < 0),
    }


def theorem(rng: list[torch.Generator]) -> dict[str, float]:
    """The theorem's three cases, and how often a step on each KL does what the exact conditions say.

    Row `deviation` is the largest gap between a step's outcome and the closed form, in nats per unit of step.
    `agree` is over all three conditions; `case_1`, `case_2`, `case_3` are the shares in which the theorem's own
    conclusion holds, without its conditions on how large p and q are.
    """
    found, deviation, agree = {}, 0.0, []
    for case in (1, 2, 3):
        p, q = normal(rng, CASES, BINS)[0].softmax(-1), normal(rng, CASES, BINS)[0].softmax(-1)
        p, q = _arranged(p, q, case)
        forward, reverse = (_moved(p, q, kind) for kind in ("forward", "reverse"))
        difference = (reverse[:, 0] - reverse[:, 1]) - (forward[:, 0] - forward[:, 1])
        p1, p2, q1, q2 = p[:, 0], p[:, 1], q[:, 0], q[:, 1]
        K = (p * (p / q).log()).sum(-1)
        told = p2 * ((p2 / q2).log() - K) - p1 * ((p1 / q1).log() - K) - ((q1 - p1) - (q2 - p2))
        deviation = max(deviation, float((difference - told).abs().max()))
        if case == 1:  # an equivalence: reverse is faster where p is above the logarithmic mean of q1 and q2
            right = (difference > 0) == (p1 > (q1 - q2) / (q1 / q2).log())
        elif case == 2:
            right = (difference > 0)[q1 > (-K).exp() * p1]
        else:
            right = (difference < 0)[q1 < (-K).exp() * p2]
        agree.append(right)
        found[f"case_{case}"] = _share(difference < 0 if case == 3 else difference > 0)
    return {"agree": _share(torch.cat(agree)), "deviation": deviation, **found}


def _arranged(p: Tensor, q: Tensor, case: int) -> tuple[Tensor, Tensor]:
    """Case 1: the first two bins have equal p, and q's first is larger. Otherwise: equal q, and p's first is larger."""
    p, q = p.clone(), q.clone()
    same, other = (p, q) if case == 1 else (q, p)
    same[:, :2] = same[:, :2].mean(-1, keepdim=True)
    other[:, :2] = other[:, :2].sort(-1, descending=True).values
    return p, q


def _moved(p: Float[Tensor, "C B"], q: Float[Tensor, "C B"], kind: str) -> Float[Tensor, "C B"]:
    """What one gradient step on the logits changes in each log-probability, per unit of step."""
    logits = p.log().requires_grad_()
    (gradient,) = torch.autograd.grad(_kl(logits.log_softmax(-1), q.log(), kind).sum(), logits)
    moved = (logits - STEP * gradient).log_softmax(-1)
    return ((moved - p.log()) / STEP).detach()


def _kl(logp: Tensor, logq: Tensor, kind: str) -> Tensor:
    """`forward`: KL(q || p); `reverse`: KL(p || q)."""
    if kind == "forward":
        return (logq.exp() * (logq - logp)).sum(-1)
    return (logp.exp() * (logp - logq)).sum(-1)


def toy(rng: list[torch.Generator]) -> dict[str, float]:
    """The paper's four bins after 1 to 10 steps of a size between 0.1 and 1, drawn for the seed.

    The figure's caption: the forward KL raises bin 0, which should fall, and the reverse KL raises bin 2, which should
    rise, by more.
    """
    size, steps = 0.1 + 0.9 * float(uniform(rng)[0]), 1 + int(10 * float(uniform(rng)[0]))
    ends: dict[str, Tensor] = {}
    target = torch.tensor(TOY_TARGET, dtype=torch.float64).log()
    for kind in ("forward", "reverse"):
        logits = torch.tensor(TOY_START, dtype=torch.float64).log()
        for _ in range(steps):
            moving = logits.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(_kl(moving.log_softmax(-1), target, kind), moving)
            logits = logits - size * gradient
        ends[kind] = logits.softmax(-1)
    return {
        "forward_bin_0": float(ends["forward"][0] - TOY_START[0]),
        "reverse_bin_0": float(ends["reverse"][0] - TOY_START[0]),
        "reverse_less_forward_bin_2": float(ends["reverse"][2] - ends["forward"][2]),
    }


def _two(rng: list[torch.Generator], cases: int, actions: int) -> tuple[Tensor, Tensor]:
    """Two different actions of each case."""
    first, second = uniform(rng, cases, actions)[0].topk(2, -1).indices.unbind(-1)
    return first, second


def _share(happened: Tensor) -> float:
    return float(happened.double().mean())
