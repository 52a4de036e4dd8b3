"""Estimates: a number with the interval that the prompts behind it allow.

The unit is the prompt. Several responses to one prompt average inside it first, for they are not independent;
what is left is one number a prompt, and the interval says how it would vary over other prompts. Two policies
are compared on the same prompts, so that what makes a prompt hard for both cancels. A study's unit is the seed:
what is said of prompts here holds of seeds there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import stats
from scipy.special import stdtr

RESAMPLES = 2000
_BCA_LIMIT = 5000  # prompts: BCa's jackknife is quadratic in them, and its correction vanishes as they grow
_CELLS = 2**22  # numbers of a resample that are held at once


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """`value` over `n` prompts; `low` and `high` are the ends of its confidence interval."""

    value: float
    low: float
    high: float
    n: int
    name: str
    standard_error: float  # of `value`, over prompts; infinite where there is one prompt
    level: float = 0.95
    interval: str = "t"  # how it was made: "t", "BCa bootstrap", "percentile bootstrap" or "Wilson"

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def mean(values: ArrayLike, *, level: float = 0.95, name: str = "mean") -> Estimate:
    """The mean of `[P]` or `[P, K]` values, with Student's t over prompts.

    One prompt has an infinite interval. For shares, whose mean is near 0 or 1, take `share`.
    """
    x = _per_prompt(values, "values")
    n, value, error = len(x), float(x.mean()), _standard_error(x)
    reach = _tail(level, stats.t(n - 1)) * error if n > 1 else math.inf
    return Estimate(
        value=value,
        low=value - reach,
        high=value + reach,
        n=n,
        name=name,
        standard_error=error,
        level=level,
    )


def mean_difference(
    ours: ArrayLike, theirs: ArrayLike, *, level: float = 0.95, name: str = "mean_difference"
) -> Estimate:
    """The mean of ours less theirs, paired: row p of both answers prompt p."""
    a, b = _per_prompt(ours, "ours"), _per_prompt(theirs, "theirs")
    _check_paired(a, b)
    return mean(a - b, level=level, name=name)


def kl(log_ratio: ArrayLike, *, level: float = 0.95, name: str = "kl") -> Estimate:
    """KL(pi || pi_ref) in nats from whole responses' log pi - log pi_ref, on samples of pi itself (k1).

    Unbiased, so that value and interval may lie below zero where the KL is small.
    """
    return mean(log_ratio, level=level, name=name)


def win_rate(
    ours: ArrayLike,
    theirs: ArrayLike,
    *,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
    name: str = "win_rate",
) -> Estimate:
    """How often ours beats theirs on the same prompt, a tie being half a win.

    With `[P, K]` rewards each of our responses meets each of theirs to the prompt; the two K may differ.
    """
    a, b = _table(ours, "ours"), _table(theirs, "theirs")
    _check_paired(a, b)
    sign = np.sign(a[:, :, None] - b[:, None, :])  # [P, Ka, Kb]
    wins = (1 + sign.mean((1, 2))) / 2
    return share(wins, level=level, seed=seed, resamples=resamples, name=name)


def share(
    values: ArrayLike,
    *,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
    name: str = "share",
) -> Estimate:
    """The mean of `[P]` or `[P, K]` values between 0 and 1, with a bootstrap over prompts that stays inside.

    The bootstrap is BCa (Efron 1987). Where all prompts agree it has nothing to resample, and its interval would be a
    point: Wilson's score interval is taken instead, which for shares of a prompt errs on the wide side.
    """
    x = _per_prompt(values, "values")
    if x.min() < 0 or x.max() > 1:
        raise ValueError(f"values: found {x.min():.4g} to {x.max():.4g}, expected shares between 0 and 1")
    n, value = len(x), float(x.mean())
    if np.ptp(x) == 0:
        interval, (low, high) = "Wilson", _wilson(value, n, level)
    else:
        method = "BCa" if n <= _BCA_LIMIT else "percentile"
        interval, (low, high) = f"{method} bootstrap", _bootstrap(x, method, level, seed, resamples)
    return Estimate(
        value=value,
        low=low,
        high=high,
        n=n,
        name=name,
        standard_error=_standard_error(x),
        level=level,
        interval=interval,
    )


def bca(
    values: ArrayLike, *, level: float = 0.95, seed: int = 0, resamples: int = RESAMPLES, name: str = "mean"
) -> Estimate:
    """The mean with a BCa bootstrap, which follows skew where Student's t cannot (Efron 1987).

    Values that all agree have nothing to resample: the interval is a point. Below ten it covers less than it says.
    """
    x = _per_prompt(values, "values")
    value = float(x.mean())
    low, high = (value, value) if _agree(x) else _bootstrap(x, "BCa", level, seed, resamples)
    return Estimate(
        value=value,
        low=low,
        high=high,
        n=len(x),
        name=name,
        standard_error=_standard_error(x),
        level=level,
        interval="BCa bootstrap",
    )


def p_above(values: ArrayLike, bound: float) -> float:
    """Student's one-sided p-value of "the mean is not above `bound`": small where it clearly is.

    Where all values agree there is no spread to test against, and agreement by chance must be reckoned with: it is then
    the sign test's 2^-n above the bound. One value says nothing: 1.
    """
    x = _per_prompt(values, "values")
    gap, error = float(x.mean()) - bound, _standard_error(x)
    if len(x) < 2:
        return 1.0
    if _agree(x):
        return 0.5 ** len(x) if gap > 0 else 1.0
    return float(stdtr(len(x) - 1, -gap / error))


def p_below(values: ArrayLike, bound: float) -> float:
    """The same for "the mean is not below `bound`"."""
    return p_above(-np.asarray(values, dtype=np.float64), -bound)


def tost(values: ArrayLike, margin: float) -> float:
    """p-value of "the mean is not within plus or minus `margin`": two one-sided tests (Schuirmann 1987).

    It is small where the mean is shown to be near zero. A difference that is merely not significant is not.
    """
    if not margin > 0:
        raise ValueError(f"margin: found {margin}, expected a number above 0: no sample shows that a mean is exactly 0")
    return max(p_above(values, -margin), p_below(values, margin))


def holm(p: ArrayLike) -> Float[np.ndarray, " m"]:
    """p-values adjusted for their number (Holm 1979), in the order given; the chance of any false one stays below each.

    The i-th smallest of m, from 0, is multiplied by m - i, and is at least the one before it.
    """
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def _agree(x: Float[np.ndarray, " P"]) -> bool:
    """Whether the values differ by no more than rounding, which is no spread to test against or to resample."""
    return bool(np.ptp(x) <= 1e-12 * np.abs(x).max())


def _bootstrap(x: Float[np.ndarray, " P"], method: str, level: float, seed: int, resamples: int) -> tuple[float, float]:
    _check_level(level)
    found = stats.bootstrap(
        (x,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, _CELLS // len(x)),
        vectorized=True,
        confidence_level=level,
        method=method,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def _wilson(p: float, n: int, level: float) -> tuple[float, float]:
    """Wilson 1927: the p0 for which p lies within the normal quantile of its own standard error."""
    z = _tail(level, stats.norm())
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return max(centre - reach, 0.0), min(centre + reach, 1.0)


def _tail(level: float, distribution: stats.distributions.rv_frozen) -> float:
    _check_level(level)
    return float(distribution.ppf((1 + level) / 2))


def _standard_error(x: Float[np.ndarray, " P"]) -> float:
    return float(x.std(ddof=1)) / math.sqrt(len(x)) if len(x) > 1 else math.inf


def _per_prompt(values: ArrayLike, key: str) -> Float[np.ndarray, " P"]:
    return _table(values, key).mean(1)


def _table(values: ArrayLike, key: str) -> Float[np.ndarray, "P K"]:
    """One row a prompt, in float64."""
    x = np.asarray(values, dtype=np.float64)
    x = x[:, None] if x.ndim == 1 else x
    if x.ndim != 2 or x.size == 0:
        raise ValueError(f"{key}: found shape {np.shape(values)}, expected [prompts] or [prompts, responses]")
    bad = np.flatnonzero(~np.isfinite(x).all(1))
    if len(bad):
        raise ValueError(f"{key}: found NaN or infinity for {len(bad)} of {len(x)} prompts, first for prompt {bad[0]}")
    return x


def _check_paired(a: np.ndarray, b: np.ndarray) -> None:
    if len(a) != len(b):
        raise ValueError(f"ours and theirs: found {len(a)} and {len(b)} prompts, expected the same prompts")


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level: found {level}, expected a number between 0 and 1, such as 0.95")
