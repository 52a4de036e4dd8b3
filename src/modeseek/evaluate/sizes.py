"""How many prompts a comparison needs: sample size, power, and the smallest difference that a size can show."""

from __future__ import annotations

import math

from scipy import stats


def win_deviation(win_rate: float = 0.5, ties: float = 0.0) -> float:
    """The standard deviation over prompts of a win (1), tie (1/2) or loss (0), of one comparison a prompt.

    With a share t of ties and win rate p (ties as halves): E[w^2] = (p - t/2) + t/4, so the variance is
    p - t/4 - p^2. Several comparisons a prompt average, and have less.
    """
    most = 2 * min(win_rate, 1 - win_rate)
    if not 0 <= win_rate <= 1 or not 0 <= ties <= most + 1e-12:
        raise ValueError(
            f"win_deviation: found a win rate of {win_rate} with a share of {ties} ties, expected a rate from 0 to 1"
            " and at most twice its smaller side of ties"
        )
    return math.sqrt(max(win_rate - ties / 4 - win_rate**2, 0.0))


def prompts_needed(difference: float, *, deviation: float = 0.5, power: float = 0.8, level: float = 0.95) -> int:
    """Prompts for which a true difference is found with this power, by a two-sided test of 1 - level.

    n = ((z_level + z_power) deviation / difference)^2, rounded up. For a win rate the difference is to 0.5 and the
    deviation that of `win_deviation`; for paired rewards it is the deviation of ours less theirs over prompts.
    """
    _check(deviation, power, level)
    if difference == 0 or not math.isfinite(difference):
        raise ValueError(f"difference: found {difference}, expected a number other than 0")
    return max(2, math.ceil(((_two_sided(level) + stats.norm.ppf(power)) * deviation / difference) ** 2 - 1e-9))


def smallest_difference(prompts: int, *, deviation: float = 0.5, power: float = 0.8, level: float = 0.95) -> float:
    """The difference that so many prompts find with this power: the inverse of `prompts_needed`."""
    _check(deviation, power, level)
    if prompts < 1:
        raise ValueError(f"prompts: found {prompts}, expected 1 or more")
    return float((_two_sided(level) + stats.norm.ppf(power)) * deviation / math.sqrt(prompts))


def power(prompts: int, difference: float, *, deviation: float = 0.5, level: float = 0.95) -> float:
    """The chance that so many prompts show a true difference, on either side."""
    _check(deviation, 0.5, level)
    if deviation == 0:
        return float(difference != 0)
    shift, z = abs(difference) * math.sqrt(prompts) / deviation, _two_sided(level)
    return float(stats.norm.cdf(shift - z) + stats.norm.cdf(-shift - z))


def _two_sided(level: float) -> float:
    return float(stats.norm.ppf((1 + level) / 2))


def _check(deviation: float, power: float, level: float) -> None:
    if not 0 < power < 1 or not 0 < level < 1 or not deviation >= 0:
        raise ValueError(
            f"found a deviation of {deviation}, power {power} and level {level}, expected 0 or more and two numbers"
            " between 0 and 1"
        )
