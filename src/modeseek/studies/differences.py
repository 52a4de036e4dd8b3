"""Methods of a world compared pair by pair where a study claims nothing: paired over seeds, Holm over all of them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modeseek.estimate import Estimate, holm, mean, p_above, p_below
from modeseek.studies.base import Cell, read
from modeseek.studies.verdict import Read, per_seed


@dataclass(frozen=True)
class Difference:
    """Of a metric's last value: ours less theirs. `adjusted` is two-sided; 1 where a seed was lost."""

    metric: str
    ours: Cell
    theirs: Cell
    n: int
    wanted: int
    estimate: Estimate | None
    adjusted: float


def differences(cells: Sequence[Cell], metrics: Sequence[str], rows: Read, seeds: Sequence[int]) -> list[Difference]:
    """Every pair of cells in every metric; one family."""
    found: list[Difference] = []
    p: list[float] = []
    for metric, (ours, theirs) in itertools.product(metrics, itertools.combinations(cells, 2)):
        told = per_seed(read(ours, metric) - read(theirs, metric), rows, seeds)
        x = np.array([value for value in told.values() if np.isfinite(value)])
        whole = len(x) == len(seeds)
        p.append(min(1.0, 2 * min(p_above(x, 0.0), p_below(x, 0.0))) if whole else 1.0)
        found.append(Difference(metric, ours, theirs, len(x), len(seeds), mean(x) if len(x) else None, 1.0))
    adjusted = holm(p).tolist() if p else []
    return [dataclasses.replace(d, adjusted=q) for d, q in zip(found, adjusted, strict=True)]
