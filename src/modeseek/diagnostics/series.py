"""Numbers from logged rows as series in time, and how they moved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def series(rows: Rows, name: str, *, bare: bool = False) -> list[float]:
    """A metric in time: held out where three rows have it, else of training; `bare`: of training in any case."""
    held = [] if bare else named(rows, f"eval/{name}")
    return held if len(held) >= 3 else named(rows, name)


def named(rows: Rows, name: str) -> list[float]:
    """A column where it is a finite number."""
    return [float(row[name]) for row in rows if finite(row.get(name))]


def finite(x: Any) -> bool:
    """Whether it is a number, and a finite one."""
    return isinstance(x, int | float) and math.isfinite(x)


def late(x: Sequence[float]) -> float:
    """The mean of the last quarter."""
    return mean(x[-max(1, len(x) // 4) :])


def change(x: Sequence[float]) -> float:
    """From the start to the last quarter."""
    return late(x) - early(x)


def early(x: Sequence[float]) -> float:
    """The mean of the first tenth, at least of one."""
    return mean(x[: max(1, len(x) // 10)])


def rise(x: Sequence[float]) -> float:
    """The change, zero of a series that is too short to tell."""
    return change(x) if len(x) >= 3 else 0.0


def noise(x: Sequence[float]) -> float:
    """The standard deviation of a point about its neighbours, from second differences, whose variance is 6 sigma^2."""
    if len(x) < 4:
        return 0.0
    second = [x[i] - 2 * x[i + 1] + x[i + 2] for i in range(len(x) - 2)]
    return math.sqrt(mean([s * s for s in second]) / 6)


def mean(x: Sequence[float]) -> float:
    """Without torch or numpy."""
    return sum(x) / len(x)
