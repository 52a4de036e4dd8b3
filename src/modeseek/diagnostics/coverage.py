"""Does the data cover what the model does? Linear coverage, support, and how far the model is from its reference."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import scipy.linalg
from jaxtyping import Float, Int
from scipy import stats

from modeseek import estimate
from modeseek.diagnostics import drift
from modeseek.diagnostics.look import Look
from modeseek.diagnostics.tails import Found, Refused, jackknife, unless_heavy
from modeseek.estimate import Estimate

FACTORS = (4, 16, 64, 256)
RIDGE = 1e-4  # of the mean eigenvalue: keeps a direction that no pair has from dividing by zero

Matrices = Float[np.ndarray, "P d d"]


def coverage(look: Look) -> list[Found]:
    """The section's numbers. Linear coverage, leverage and OOD mass read features; the rest reads likelihoods."""
    found: list[Found] = []
    for k, side in enumerate(look.sides):
        gap = look.own_mean_logp.mean(1) - look.told_mean_logp[:, k]
        found.append(estimate.mean(gap, name=f"support_gap/{side}"))
        found.append(estimate.share(look.told_rare[:, k], name=f"rare_tokens/{side}"))
    found += [*_linear(look), drift.outside(look), *_likelihood_ratios(look)]
    return found


def _linear(look: Look) -> list[Found]:
    if len(look.sides) < 2:
        reason = "needs pairs: a single response to a prompt says nothing of differences"
        return [Refused(name=n, reason=reason) for n in ("linear_coverage", "leverage", "leverage/95%")]
    if len(look) < 16:
        reason = f"{len(look)} prompts are too few for a covariance; give --prompts 64 or more"
        return [Refused(name=n, reason=reason) for n in ("linear_coverage", "leverage", "leverage/95%")]
    own, told = drift.directions(look)
    data, model = pair_moments(told), pair_moments(own)
    gaps = own[:, 0] - own[:, 1]
    return [
        linear_coverage(data, model),
        leverage(data, model),
        leverage_quantile(data, gaps),
        effective_dimension(data, name="effective_dimension/data"),
        effective_dimension(model, name="effective_dimension/model"),
    ]


def pair_moments(features: Float[np.ndarray, "P k d"]) -> Matrices:
    """The mean over a prompt's pairs of responses of difference x difference: twice their covariance."""
    k = features.shape[1]
    centred = features - features.mean(1, keepdims=True)
    return 2 * np.einsum("pki,pkj->pij", centred, centred) / (k - 1)


def linear_coverage(data: Matrices, model: Matrices, *, name: str = "linear_coverage") -> Estimate:
    """sup_w E_model[(w d)^2] / E_data[(w d)^2], d the difference of a pair: the coverage constant of linear rewards
    (2406.01462, function approximation). 1 where the data are the model's own; a supremum, so biased upwards by what
    the jackknife leaves: with n pairs and d directions by a factor of about (1 + sqrt(d / n))^2."""

    def largest(at: np.ndarray) -> float:
        ours, theirs = model[at].mean(0), _regular(data[at].mean(0))
        return float(scipy.linalg.eigh(ours, theirs, eigvals_only=True)[-1])

    return _above_zero(largest, len(data), name)


def leverage(data: Matrices, model: Matrices, *, name: str = "leverage") -> Estimate:
    """E_model[d' S^-1 d] / rank, S the data's E[d d']: how much noisier than on its own pairs a linear reward fitted
    to the data is on the model's. 1 where the data are the model's own."""

    def mean(at: np.ndarray) -> float:
        return float(np.trace(np.linalg.solve(_regular(data[at].mean(0)), model[at].mean(0))) / data.shape[1])

    return _above_zero(mean, len(data), name)


def leverage_quantile(
    data: Matrices, gaps: Float[np.ndarray, "P d"], *, q: float = 0.95, name: str = "leverage/95%"
) -> Estimate:
    """The 95% quantile of the leverage of the model's own pairs, its interval from order statistics."""
    inverse = np.linalg.inv(_regular(data.mean(0)))
    value = np.sort(np.einsum("pi,ij,pj->p", gaps, inverse, gaps) / data.shape[1])
    low, high = (int(x) for x in stats.binom.ppf([0.025, 0.975], len(value), q))
    return Estimate(
        value=float(np.quantile(value, q)),
        low=float(value[max(low - 1, 0)]),
        high=float(value[min(high, len(value) - 1)]),
        n=len(value),
        name=name,
        standard_error=float("nan"),
        interval="order statistics",
    )


def effective_dimension(moments: Matrices, *, name: str) -> Estimate:
    """(tr S)^2 / tr S^2: how many directions the pairs differ in, were they equal (the participation ratio)."""

    def participation(at: np.ndarray) -> float:
        s = moments[at].mean(0)
        return float(np.trace(s) ** 2 / (s * s).sum())

    return _above_zero(participation, len(moments), name)


def profile(log_ratio: Float[np.ndarray, "P K"], factor: int, *, name: str) -> Estimate:
    """P(log-ratio >= log N): the coverage profile (2510.15020), which stays informative where no moment does."""
    return estimate.share((log_ratio >= np.log(factor)).astype(np.float64), name=name)


def _likelihood_ratios(look: Look) -> list[Found]:
    names = [f"profile/{n}" for n in FACTORS]
    names += ["kl/k1", "kl/k2", "kl/k3", "kl/rao_blackwell", "kl/forward", "ess"]
    if look.own_ref_logp is None:
        reason = "needs the likelihood under whoever wrote the data; give --reference MODEL"
        return [Refused(name=name, reason=reason) for name in names]
    u = look.own_logp - look.own_ref_logp
    found: list[Found] = [profile(u, n, name=f"profile/{n}") for n in FACTORS]
    found += [estimate.kl(u, name="kl/k1"), estimate.mean(u**2 / 2, name="kl/k2")]
    exact: Found = Refused(name="kl/rao_blackwell", reason="this model cannot say the exact KL of each token")
    if look.own_kl is not None:
        exact = estimate.mean(look.own_kl, name="kl/rao_blackwell")
    return [*found, _guarded(u, "kl/k3", k3), exact, _guarded(u, "kl/forward", forward_kl), _guarded(u, "ess", ess)]


def k3(u: Float[np.ndarray, "P K"], *, name: str = "kl/k3") -> Estimate:
    """KL(pi || pi_ref) as E[1/r - 1 + log r], r = pi / pi_ref on samples of pi: unbiased, never negative."""
    return estimate.mean(np.expm1(-u) + u, name=name)


def forward_kl(u: Float[np.ndarray, "P K"], *, name: str = "kl/forward") -> Estimate:
    """KL(pi_ref || pi) by importance weights w = pi_ref / pi on samples of pi: E[w log w - w + 1], unbiased."""
    return estimate.mean(-u * np.exp(-u) - np.expm1(-u), name=name)


def ess(u: Float[np.ndarray, "P K"], *, name: str = "ess") -> Estimate:
    """The share of the model's samples that they are worth as samples of the reference: 1 / (1 + chi^2(ref || pi))."""
    w = np.exp(-u - (-u).max())
    first, second = w.mean(1), (w * w).mean(1)
    found = jackknife(lambda at: float(first[at].mean() ** 2 / second[at].mean()), len(u), name=name)
    return dataclasses.replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))


def _guarded(u: Float[np.ndarray, "P K"], name: str, found: Callable[..., Estimate]) -> Found:
    weights = np.exp(np.clip(-u - (-u).max(), -700, 0))
    return unless_heavy(weights, name, lambda: found(u, name=name))


def _regular(s: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    return s + RIDGE * np.trace(s) / len(s) * np.eye(len(s))


def _above_zero(statistic: Callable[[Int[np.ndarray, " p"]], float], n: int, name: str) -> Estimate:
    """The jackknife of a number above zero, on its logarithm, where it is more nearly normal."""
    found = jackknife(lambda at: math.log(statistic(at)), n, name=name)
    value, low, high = (math.exp(min(x, 700.0)) for x in (found.value, found.low, found.high))
    return dataclasses.replace(found, value=value, low=low, high=high, standard_error=value * found.standard_error)
