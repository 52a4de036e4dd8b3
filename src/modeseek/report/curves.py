"""What runs measured, gathered by method: a curve for each metric, a spread over seeds for each number."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from scipy.special import stdtrit

from modeseek.record import RunData

LEVEL = 0.95  # of every interval over seeds
SHARES = {"win_rate", "degenerate", "finished", "rewards/accuracies"}  # lie between 0 and 1


@dataclass(frozen=True)
class Method:
    """The runs of one method, which differ by their seed."""

    name: str
    runs: tuple[RunData, ...]


@dataclass(frozen=True)
class Line:
    """One run's values of one metric, by step; each of them finite."""

    run: Path
    metric: str
    steps: np.ndarray
    values: np.ndarray

    @property
    def first(self) -> float:
        """Where it began: the first held-out value, the mean of the first tenth of training's noisy ones."""
        return float(self.values[: self._calm].mean())

    @property
    def last(self) -> float:
        """Where it ended, likewise."""
        return float(self.values[-self._calm :].mean())

    def at(self, steps: np.ndarray) -> Line:
        """The same line at some of its steps."""
        return dataclasses.replace(self, steps=steps, values=self.values[np.isin(self.steps, steps)])

    @property
    def _calm(self) -> int:
        return 1 if self.metric.startswith("eval/") else -(-len(self.values) // 10)


@dataclass(frozen=True)
class Curve:
    """One metric of one method: a line per run, and their mean and range where every run has a value."""

    method: str
    metric: str
    lines: tuple[Line, ...]

    @property
    def steps(self) -> np.ndarray:
        """The steps at which every run has a value."""
        common = self.lines[0].steps
        for line in self.lines[1:]:
            common = np.intersect1d(common, line.steps)
        return common

    @property
    def values(self) -> np.ndarray:
        """[run, step] at the common steps."""
        return np.stack([line.at(self.steps).values for line in self.lines])

    @property
    def first(self) -> float:
        """The mean over runs of the first value."""
        return float(np.mean([line.first for line in self.lines]))

    @property
    def last(self) -> float:
        """The mean over runs of the last value."""
        return float(np.mean([line.last for line in self.lines]))


@dataclass(frozen=True)
class Spread:
    """A number with its interval, and what the interval is over: seeds, prompts, or nothing."""

    mean: float
    low: float | None
    high: float | None
    n: int
    over: str = ""

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return number(self.mean)
        return f"{number(self.mean)} [{number(self.low)}, {number(self.high)}]"


def methods(runs: Sequence[RunData]) -> list[Method]:
    """Runs by their card's `method`, else by the directory's name, in the order in which they were named."""
    groups: dict[str, list[RunData]] = {}
    for run in runs:
        groups.setdefault(str(run.card.get("method") or run.path.resolve().name), []).append(run)
    return [Method(name, tuple(sorted(group, key=_by_seed))) for name, group in groups.items()]


def label(run: RunData) -> str:
    """What one run is called beside the others of its method."""
    name = run.path.resolve().name
    return f"seed {run.card['seed']}, {name}" if "seed" in run.card else name


def line(run: RunData, metric: str) -> Line | None:
    """A run's values of a metric. Values that are not finite are left out here and counted by `nonfinite`."""
    found = {row["step"]: row[metric] for row in run.rows if _is_number(row.get(metric))}
    if not found:
        return None
    steps = sorted(found)
    return Line(run.path, metric, np.array(steps), np.array([found[step] for step in steps], dtype=float))


def curve(method: Method, metric: str) -> Curve | None:
    """A method's runs that have the metric; None where none has."""
    lines = tuple(found for run in method.runs if (found := line(run, metric)) is not None)
    return Curve(method.name, metric, lines) if lines else None


def held_out(groups: Sequence[Method], metric: str) -> str:
    """`eval/metric` where any run has measured it, else the training metric of that name: never a mixture."""
    return f"eval/{metric}" if any(curve(m, f"eval/{metric}") for m in groups) else metric


def nonfinite(run: RunData) -> dict[str, list[int]]:
    """The steps at which a metric was NaN or infinite, by metric."""
    found: dict[str, list[int]] = {}
    for row in run.rows:
        for metric, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                found.setdefault(metric, []).append(row["step"])
    return found


def spread(values: Sequence[float]) -> Spread:
    """The mean over seeds with its t interval; no interval for a single seed."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Spread(mean, None, None, n)
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Spread(mean, mean - half, mean + half, n, over="seeds")


def final(method: Method, metric: str) -> Spread | None:
    """Where a metric ended: what `evaluate` stored, else the last held-out value, else the last in training.

    All runs of the method are read from the same one of the three. A single run keeps the interval that
    `evaluate` gave it, over prompts.
    """
    stored = [result for run in method.runs for result in run.results if result.get("name") == metric]
    stored = [result for result in stored if _is_number(result.get("value"))]
    if len(method.runs) == 1 and len(stored) == 1:
        value, low, high = float(stored[0]["value"]), stored[0].get("low"), stored[0].get("high")
        if _is_number(low) and _is_number(high):
            return Spread(value, float(low), float(high), 1, over="prompts")
        return Spread(value, None, None, 1)
    if len(stored) == len(method.runs):
        return _within(metric, spread([float(result["value"]) for result in stored]))
    found = curve(method, f"eval/{metric}") or curve(method, metric)
    return _within(metric, spread([line.last for line in found.lines])) if found else None


def change(method: Method, metric: str) -> Spread | None:
    """By how much a held-out metric moved between a run's first value and its last; None without two values. Training
    rows are no substitute: each is of other pairs."""
    found = curve(method, f"eval/{metric}")
    moves = [line.last - line.first for line in found.lines if len(line.steps) > 1] if found else []
    return spread(moves) if moves else None


def start(groups: Sequence[Method], metric: str) -> Spread | None:
    """The metric at step 0, before any training: one value a seed, however many methods began there."""
    by_seed: dict[str, list[float]] = {}
    for method in groups:
        for run in method.runs:
            found = line(run, f"eval/{metric}")
            if found is not None and found.steps[0] == 0:
                by_seed.setdefault(str(run.card.get("seed", run.path)), []).append(float(found.values[0]))
    means = [float(np.mean(values)) for values in by_seed.values()]
    return _within(metric, spread(means)) if means else None


def last_step(run: RunData) -> int | None:
    """The last step that a run has logged."""
    return max((row["step"] for row in run.rows), default=None)


def number(x: float | None) -> str:
    """Three figures that a reader can take in: 0.085, 2.31, 52.3, 1,240, 3.1e-05."""
    if x is None or not math.isfinite(x):
        return "-" if x is None else str(x)
    size = abs(x)
    if size and (size < 1e-3 or size >= 1e6):
        return f"{x:.1e}"
    places = 0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.0995 or not size else 3
    text = f"{x:,.{places}f}"
    return "0" if not size else text


def flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested facts as dotted keys and text."""
    out: dict[str, str] = {}
    for key, value in facts.items():
        if isinstance(value, Mapping) and value:
            out |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            out[f"{prefix}{key}"] = ", ".join(str(v) for v in value)
        else:
            out[f"{prefix}{key}"] = number(value) if isinstance(value, float) else str(value)
    return out


def _within(metric: str, found: Spread) -> Spread:
    """A t interval does not know that a share ends at 0 and 1."""
    if metric not in SHARES or found.low is None or found.high is None:
        return found
    return dataclasses.replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))


def _by_seed(run: RunData) -> tuple[int, float, str]:
    seed = run.card.get("seed")
    return (0, float(seed), "") if _is_number(seed) else (1, 0.0, str(run.path))


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
