"""A study as plain data for its page: what was asked, what was found, the means over seeds that are drawn.

Nothing here is decided: verdicts come from `verdict.py`, means and t intervals from the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from modeseek.estimate import Estimate
from modeseek.studies import store
from modeseek.studies.base import Cell, Contrast
from modeseek.studies.differences import Difference
from modeseek.studies.plan import Plan
from modeseek.studies.store import Trace
from modeseek.studies.verdict import ALPHA, Judged, Read, Tested

LEVEL = 0.95
FRONTIER = ("kl", "reward")  # metrics of a world whose path is drawn, across and up


def asked(plan: Plan, rows: Read) -> dict[str, Any]:
    """The set's cells with their dials and seeds, and what each lost."""
    return {
        "set": plan.study.name,
        "claims": [claim.name for claim in plan.claims()],
        "cells": {str(cell): _cell(plan, cell, rows) for cell in plan.cells()},
        "tuned": [
            {"world": world, "method": method, "dials": dict(tuned.dials), "stale": tuned.stale}
            for (world, method), tuned in plan.tuned.items()
        ],
    }


def claim(judged: Judged) -> dict[str, Any]:
    """A claim with its verdict and its parts' numbers."""
    said = judged.claim
    return {
        "name": said.name,
        "statement": said.statement,
        "source": said.source,
        "note": said.note,
        "verdict": judged.verdict,
        "cells": [str(cell) for cell in said.cells()],
        "parts": [_part(tested) for tested in judged.parts],
    }


def difference(d: Difference) -> dict[str, Any]:
    """A pair of methods."""
    return {
        "metric": d.metric,
        "ours": label(d.ours),
        "theirs": label(d.theirs),
        "n": d.n,
        "wanted": d.wanted,
        **_interval(d.estimate),
        "adjusted": d.adjusted,
        "clear": d.adjusted <= ALPHA,
    }


def curves(judged: Judged, rows: Read) -> list[dict[str, Any]]:
    """For each metric that a claim reads and each world it reads it in, a line for each cell."""
    wanted: dict[tuple[str, str], dict[Cell, None]] = {}
    for part in judged.claim.parts:
        for _, cell, metric, _ in part.contrast.terms:
            wanted.setdefault((metric, cell.world), {})[cell] = None
    return [drawn(metric, list(cells), rows) for (metric, _), cells in wanted.items()]


def drawn(metric: str, cells: Sequence[Cell], rows: Read) -> dict[str, Any]:
    """A metric of one world's cells over steps, a line a cell; cells that have no such rows are named."""
    lines, absent = [], []
    for cell in cells:
        if line := _line(list(rows(cell).get(metric, {}).values())):
            lines.append({"label": label(cell), "method": cell.method, **line})
        else:
            absent.append(label(cell))
    return {"metric": metric, "world": cells[0].world, "lines": lines, "absent": absent}


def worlds(plan: Plan, rows: Read) -> list[dict[str, Any]]:
    """Each world's geometry, and where its cells end in reward and KL."""
    found = []
    for world in plan.study.worlds:
        cells = [cell for cell in plan.cells() if cell.world == world.name]
        if not cells:
            continue
        shape = {name: np.asarray(curve, dtype=float).ravel().tolist() for name, curve in world.geometry().items()}
        found.append({"world": world.name, "geometry": shape, "frontier": _frontier(cells, rows)})
    return found


def label(cell: Cell) -> str:
    """A cell within its world: the method and the dials that the claim sets."""
    return " ".join(
        [
            cell.method,
            *(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in cell.dials),
        ]
    )


def band(x: Float[np.ndarray, "seeds steps"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and Student's interval over the finite seeds of each step; NaN where there are too few."""
    finite = np.isfinite(x)
    n = finite.sum(0)
    kept = np.where(finite, x, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = kept.sum(0) / n
        spread = np.where(finite, (kept - mean) ** 2, 0.0).sum(0) / (n - 1)
        reach = stdtrit(n - 1.0, (1 + LEVEL) / 2) * np.sqrt(spread / n)
    return mean, mean - reach, mean + reach


def _cell(plan: Plan, cell: Cell, rows: Read) -> dict[str, Any]:
    tuned = plan.tuned.get((cell.world, cell.method))
    traces = rows(cell)
    seen = {seed for of_metric in traces.values() for seed in of_metric}
    lost = {m: sum(not np.isfinite(t.values).all() for t in told.values()) for m, told in traces.items()}
    return {
        "world": cell.world,
        "method": cell.method,
        "label": label(cell),
        "dials": plan.dials(cell),
        "tuned": [name for name, _ in (tuned.dials if tuned else ()) if name not in dict(cell.dials)],
        "stale": bool(tuned and tuned.stale),
        "planned": len(plan.seeds(cell)),
        "seeds": len(seen),
        "not_finite": {metric: count for metric, count in lost.items() if count},
        "files": [job.name for job in plan.jobs(cell)],
    }


def _part(t: Tested) -> dict[str, Any]:
    return {
        "says": t.part.says,
        "relation": t.part.relation,
        "margin": t.part.margin,
        "reads": _reads(t.part.contrast),
        "status": t.status,
        **_interval(t.estimate),
        "bca": [t.bca.low, t.bca.high] if t.bca else None,
        "n": t.n,
        "wanted": t.wanted,
        "not_finite": t.lost,
        "p": t.p,
        "adjusted": t.adjusted,
        "p_against": t.p_against,
        "adjusted_against": t.adjusted_against,
        "reason": t.reason,
    }


def _reads(contrast: Contrast) -> str:
    """`+ end reward of R1/dpo - end reward of R1/pref_ft`."""
    words = []
    for coefficient, cell, metric, at in contrast.terms:
        size = "" if abs(coefficient) == 1 else f"{abs(coefficient):g} x "
        words.append(f"{'-' if coefficient < 0 else '+'} {size}{at} {metric} of {cell}")
    return " ".join(words).removeprefix("+ ")


def _interval(estimate: Estimate | None) -> Mapping[str, Any]:
    if estimate is None:
        return {"effect": None, "low": None, "high": None}
    return {"effect": estimate.value, "low": estimate.low, "high": estimate.high}


def _line(traces: Sequence[Trace]) -> dict[str, Any] | None:
    """Mean and band at the steps that all seeds have."""
    if not traces:
        return None
    steps, x = _stacked(traces)
    mean, low, high = band(x)
    lost = int((~np.isfinite(x)).any(1).sum())
    return {
        "n": len(traces),
        "not_finite": lost,
        **{name: found.tolist() for name, found in (("steps", steps), ("mean", mean), ("low", low), ("high", high))},
    }


def _stacked(traces: Sequence[Trace]) -> tuple[np.ndarray, np.ndarray]:
    steps = traces[0].steps
    for trace in traces[1:]:
        steps = np.intersect1d(steps, trace.steps)
    return steps, np.stack([trace.values[np.isin(trace.steps, steps)] for trace in traces])


def _frontier(cells: Sequence[Cell], rows: Read) -> list[dict[str, Any]]:
    found = []
    for cell in cells:
        traces = rows(cell)
        if not all(metric in traces for metric in FRONTIER):
            continue
        across, up = (_line(list(traces[metric].values())) for metric in FRONTIER)
        if across and up:
            found.append({"label": label(cell), "method": cell.method, "kl": across, "reward": up})
    return found


def reader(plan: Plan, folder: Any) -> Callable[[Cell], Mapping[str, Mapping[int, Trace]]]:
    """The rows of a plan's cells, each read once."""
    kept: dict[Cell, Mapping[str, Mapping[int, Trace]]] = {}

    def read(cell: Cell) -> Mapping[str, Mapping[int, Trace]]:
        if cell not in kept:
            kept[cell] = store.read(folder, [job.name for job in plan.jobs(cell)])
        return kept[cell]

    return read
