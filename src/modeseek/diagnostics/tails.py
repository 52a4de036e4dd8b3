"""Estimates that are not means: the jackknife over prompts, and when a tail makes a number meaningless."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from modeseek import estimate
from modeseek.estimate import Estimate

LIMIT = 0.7  # of Pareto's k: beyond it a mean of weights does not settle (Vehtari et al., arXiv 1507.02646)
GROUPS = 20  # of prompts, left out one after the other


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A number that is not given, and why."""

    name: str
    reason: str


Found = Estimate | Refused


def jackknife(statistic: Callable[[Int[np.ndarray, " p"]], float], n: int, *, name: str, seed: int = 0) -> Estimate:
    """A smooth function of the sample of prompts, with its first-order bias taken off (Quenouille, Tukey).

    `statistic` is given the places of the prompts to use. The interval is Student's t over the pseudo-values of
    20 random groups of prompts.
    """
    if n < 2:
        raise ValueError(f"{name}: found {n} prompts, expected at least 2")
    groups = np.array_split(np.random.default_rng(seed).permutation(n), min(GROUPS, n))
    whole = statistic(np.arange(n))
    without = [statistic(np.setdiff1d(np.arange(n), group)) for group in groups]
    g = len(groups)
    found = estimate.mean(g * whole - (g - 1) * np.array(without), name=name)
    return dataclasses.replace(found, n=n, interval="jackknife")


def ratio(above: Float[np.ndarray, " P"], below: Float[np.ndarray, " P"], *, name: str) -> Estimate:
    """The ratio of two sums over prompts."""
    return jackknife(lambda at: float(above[at].sum() / below[at].sum()), len(above), name=name)


def pareto_k(weights: Float[np.ndarray, " *n"]) -> float:
    """The shape of the generalised Pareto distribution that fits the largest weights; infinite where there are too few.

    Zhang & Stephens 2009 on the top min(n / 5, 3 sqrt n) weights, as in 1507.02646 (their weak prior on k included).
    A mean needs k below 1, a variance k below 1/2.
    """
    x = np.sort(np.asarray(weights, dtype=np.float64).ravel())
    n = len(x)
    m = int(min(n / 5, 3 * np.sqrt(n)))
    if m < 5:
        return float("inf")
    top = x[-m:] - x[-m - 1]
    top = top[top > 0]
    if len(top) < 5 or top[-1] <= 1e-12 * max(x[-1], 1e-300):
        return float("-inf")  # the largest weights are all alike: no tail
    k = _gpd_shape(top)
    return float((k * len(top) + 5) / (len(top) + 10))


def _gpd_shape(x: Float[np.ndarray, " m"]) -> float:
    """The posterior mean of Zhang & Stephens' profile likelihood, x ascending and above zero."""
    m = len(x)
    tries = 30 + int(np.sqrt(m))
    b = 1 - np.sqrt(tries / (np.arange(1, tries + 1) - 0.5))
    b = b / (3 * x[int(m / 4 + 0.5) - 1]) + 1 / x[-1]
    k = np.log1p(-b[:, None] * x).mean(1)
    likelihood = m * (np.log(-b / k) - k - 1)
    share = 1 / np.exp(likelihood - likelihood[:, None]).sum(1)
    return float(np.log1p(-(b * share).sum() / share.sum() * x).mean())


def unless_heavy(weights: Float[np.ndarray, " *n"], name: str, found: Callable[[], Estimate]) -> Found:
    """The estimate, or a refusal where its weights have too heavy a tail."""
    k = pareto_k(weights)
    if k > LIMIT:
        few = "too few weights to judge their tail" if np.isinf(k) else f"a Pareto k of {k:.2f} is above {LIMIT}"
        return Refused(name=name, reason=f"{few}: a handful of samples would make the number")
    return found()
