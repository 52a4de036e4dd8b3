"""Runs of one method with other seeds, on the same prompts, as one estimate.

Pooling seeds times prompts as if all were independent is wrong twice: one training run moves all its prompts together,
and one prompt is hard for all runs. Both are drawn at random here, and both are in the interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from modeseek.estimate import Estimate


@dataclass(frozen=True, kw_only=True)
class OverSeeds:
    """The mean over seeds and prompts, and where its uncertainty comes from."""

    estimate: Estimate  # `n` is of prompts
    seeds: int
    seed_deviation: float  # of a run's true mean over seeds; 0 where the runs differ no more than their noise
    prompt_deviation: float  # of a prompt's true mean over prompts
    noise: float  # what is left of one run on one prompt: sampling, and prompts that suit one run


def over_seeds(
    values: ArrayLike, *, level: float = 0.95, name: str = "mean", bounds: tuple[float, float] | None = None
) -> OverSeeds:
    """`values[s, p]` of run s on prompt p, such as wins. The two-way random model x = m + seed + prompt + noise.

    Var(mean) = (MS_seed + MS_prompt - MS_noise) / (S P), from the mean squares of the two-way table; degrees of freedom
    by Satterthwaite. Where the noise exceeds either mean square, the sum could fall below what that one alone says, and
    the larger of the two is taken. With two or three runs the interval is wide: that is what two runs know.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 2 or min(x.shape) < 2 or not np.isfinite(x).all():
        raise ValueError(f"over_seeds: found shape {x.shape}, expected [seeds, prompts] of 2 or more, all finite")
    S, P = x.shape
    mean, by_seed, by_prompt = float(x.mean()), x.mean(1), x.mean(0)
    ms_seed = P * float(by_seed.var(ddof=1))
    ms_prompt = S * float(by_prompt.var(ddof=1))
    rest = x - by_seed[:, None] - by_prompt[None, :] + mean
    ms_noise = float((rest**2).sum()) / ((S - 1) * (P - 1))
    parts = [(ms_seed, S - 1), (ms_prompt, P - 1), (-ms_noise, (S - 1) * (P - 1))]
    total = ms_seed + ms_prompt - ms_noise
    if total <= max(ms_seed, ms_prompt):  # the negative component is no component
        total, df = max((ms_seed, S - 1), (ms_prompt, P - 1))
    else:
        df = total**2 / sum(ms**2 / d for ms, d in parts)
    error = math.sqrt(total / (S * P))
    reach = float(stats.t(df).ppf((1 + level) / 2)) * error if error > 0 else 0.0
    low, high = mean - reach, mean + reach
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return OverSeeds(
        estimate=Estimate(
            value=mean, low=low, high=high, n=P, name=name, standard_error=error, level=level, interval="t"
        ),
        seeds=S,
        seed_deviation=math.sqrt(max(ms_seed - ms_noise, 0.0) / P),
        prompt_deviation=math.sqrt(max(ms_prompt - ms_noise, 0.0) / S),
        noise=math.sqrt(ms_noise),
    )
