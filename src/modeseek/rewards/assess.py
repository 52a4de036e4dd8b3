"""How good a reward model is, on pairs whose better response is known: accuracy, calibration, the pull of length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Num
from scipy.stats import rankdata

from modeseek.estimate import Estimate, share


@dataclass(frozen=True)
class Assessment:
    """A pair whose scores tie counts as half right."""

    accuracy: Estimate
    by_source: dict[str, Estimate]
    ece: float  # expected calibration error of sigma(|margin|) as the chance of being right, 0 to 0.5
    calibration: tuple[tuple[float, float, int], ...]  # of each bin: mean confidence, share right, pairs
    length_correlation: float  # Spearman's, of score and length over all responses; NaN where either is constant
    margin_length_correlation: float  # the same of the margin and the difference in length, within pairs
    longer_chosen: float  # share of pairs of unlike length whose longer response is the better: the baseline to beat
    longer_preferred: float  # share of them whose longer response the model prefers


def assess(
    score: Float[np.ndarray, "N 2"],
    length: Num[np.ndarray, "N 2"],
    source: Sequence[str] | None = None,
    bins: int = 10,
) -> Assessment:
    """Scores and lengths of pairs, the better response first."""
    if not len(score):
        raise ValueError("assess: found no pairs, expected one at least")
    if not np.isfinite(score).all():
        raise ValueError(f"assess: the score of pair {int(np.argwhere(~np.isfinite(score))[0, 0])} is not finite")
    if source is not None and len(source) != len(score):
        raise ValueError(f"assess: found {len(source)} sources for {len(score)} pairs")
    margin, longer = score[:, 0] - score[:, 1], length[:, 0] - length[:, 1]
    right = (np.sign(margin) + 1) / 2  # [N] 1, 0, or 0.5 for a tie
    names = np.array(source if source is not None else ["all"] * len(score))
    calibration = _calibration(margin, right, bins)
    unlike = longer != 0
    return Assessment(
        accuracy=share(right, name="accuracy"),
        by_source={str(name): share(right[names == name], name=f"accuracy/{name}") for name in np.unique(names)},
        ece=float(sum(n * abs(sure - hit) for sure, hit, n in calibration) / len(score)),
        calibration=calibration,
        length_correlation=spearman(score.ravel(), length.ravel()),
        margin_length_correlation=spearman(margin, longer),
        longer_chosen=_mean(longer[unlike] > 0),
        longer_preferred=_mean((np.sign(margin[unlike]) * np.sign(longer[unlike]) + 1) / 2),
    )


def spearman(x: Num[np.ndarray, " N"], y: Num[np.ndarray, " N"]) -> float:
    """The correlation of ranks; NaN where either is constant."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


def _calibration(
    margin: Float[np.ndarray, " N"], right: Float[np.ndarray, " N"], bins: int
) -> tuple[tuple[float, float, int], ...]:
    sure = 1 / (1 + np.exp(-np.abs(margin)))  # [N] 0.5 to 1
    at = np.minimum(((sure - 0.5) * 2 * bins).astype(int), bins - 1)
    return tuple(
        (float(sure[at == b].mean()), float(right[at == b].mean()), int((at == b).sum())) for b in np.unique(at)
    )


def _mean(x: np.ndarray) -> float:
    return float(x.mean()) if len(x) else float("nan")
