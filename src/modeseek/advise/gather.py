"""What to collect next: a plan that `modeseek collect` runs, with what its labels are expected to bring.

Pairs are random: of the designs that `collect` has none surely needs fewer labels (`benchmarks/advice_collect.py`), for
they name pairs before a label is known. The numbers (where to sample, responses to each prompt, temperature, how many
labels) come from what the look at the model found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from modeseek.advise import belief
from modeseek.advise.acquire import informative, tilted
from modeseek.advise.advice import Advice
from modeseek.advise.belief import linear_kernel
from modeseek.advise.diagnose import diagnoses
from modeseek.advise.prior import Prior
from modeseek.advise.worlds import Worlds

LEAST, MOST = 100, 1000  # labels of a plan


@dataclass(frozen=True, kw_only=True)
class Gathering:
    """The plan's keys, and why."""

    plan: dict[str, Any]
    reasons: tuple[str, ...]
    per_label: float  # expected gain of a label, in log-odds: the mean over the plan's labels


def plan_for(problem: Worlds, advice: Advice, prior: Prior, *, model: str, label: str, seed: int = 0) -> Gathering:
    """Where to sample, how many, which pairs, how many labels. Without a `label`, people are asked."""
    loss, each = ignorance(problem, prior)
    labels = int(min(MOST, max(LEAST, 50 * math.ceil(loss / max(each, 1e-9) / 50))))
    named = advice.diagnoses
    reach = named["best of 8 above chosen, by the proxy"]
    flat = named["entropy of the reference"] < 0.5
    generations = 8 if reach < 0 else 4
    plan = {
        "policies": [model],
        "temperature": 1.2 if flat else 1.0,
        "num_generations": generations,
        "prompts": labels,
        "select": "random",
        "label": label or "people",
        "seed": seed,
    }
    reasons = [
        f"own samples: the chosen responses stand at rank {named['rank of chosen among own']:.2f} among them;"
        " a label of a pair that the model would write lowers what is not known of what it will write",
        "two of them at random: what needed fewer labels in worlds chooses anew after each batch of labels",
        f"{generations} responses to a prompt: best of 8 is {'below' if reach < 0 else 'above'} the chosen",
        f"{labels} labels: not knowing the reward costs {loss:.2f} log-odds now, and the first label saves {each:.4f}",
    ]
    return Gathering(plan=plan, reasons=tuple(reasons), per_label=min(loss, labels * each) / labels)


def ignorance(problem: Worlds, prior: Prior) -> tuple[float, float]:
    """What not knowing the reward costs the policy that is best for what is believed, and what one more label of a pair
    of its own responses saves of that, both in log-odds.

    To second order the loss is half the variance of the error over the policy's own responses (the KL's price being 1).
    """
    kernel = linear_kernel(problem.seen.flatten(1, 2))
    fits = belief.fit(kernel, problem.pairs, problem.count, problem.proxy, problem.given, prior.settings)
    held = prior.belief(fits, diagnoses(problem), rehearsed=True)
    base = problem.mass(problem.still()).clamp(min=1e-300).log()
    X = problem.contexts
    p = tilted(base, held.mean, X)[0].view(X, -1)  # [X, A]
    share = p / p.sum(1, keepdim=True)
    A = p.shape[1]
    blocks = torch.stack([held.covariance[0, x * A : (x + 1) * A, x * A : (x + 1) * A] for x in range(X)])
    mean = held.mean[0].view(X, A)
    about = torch.einsum("xa,xaa->x", share, blocks) - torch.einsum("xa,xab,xb->x", share, blocks, share)
    loss = float((about * p.sum(1)).sum() / 2)
    rng = torch.Generator().manual_seed(0)
    prompt = torch.randint(X, (64,), generator=rng)
    pair = torch.multinomial(share[prompt], 2, replacement=True, generator=rng)  # [64, 2]
    place = pair + A * prompt[:, None]
    effect = held.covariance[0, place[:, 0]] - held.covariance[0, place[:, 1]]  # [64, M]
    row = torch.arange(64)
    variance = (effect[row, place[:, 0]] - effect[row, place[:, 1]]).clamp(min=0)
    gap = mean.flatten()[place[:, 0]] - mean.flatten()[place[:, 1]]
    told = informative(gap[None], variance[None], 0.1)[0]
    parts = effect.view(64, X, A)
    own = (parts - (share * parts).sum(-1, keepdim=True)).flatten(1)
    saved = told / (1 + told * variance) * (own.square() @ p.flatten()) / 2
    return loss, float(saved.mean())
