"""Dials chosen on seeds of their own: every point of a world's grid, on the tune seeds, by the metric it is judged by.

The product of a method's grid is its stated budget; each point runs on every tune seed, and one that leaves the finite
numbers on any of them is not chosen. What was chosen is kept beside the hash of the world and grid it was chosen for.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from modeseek.disk import write_json
from modeseek.studies import grid, store
from modeseek.studies.base import Cell, Dial, World
from modeseek.studies.load import Loaded
from modeseek.studies.plan import Plan, Tuned, tasks, world_version
from modeseek.studies.seeds import draw
from modeseek.studies.store import Job, of
from modeseek.studies.verdict import pull

FOLDER = "tune"  # of an output directory: the rows of the tune seeds


@dataclass(frozen=True)
class Point:
    """One place of a method's grid and its score, the mean over the tune seeds; minus infinity where one was lost."""

    dials: Mapping[str, Dial]
    score: float


def file_of(loaded: Loaded) -> Path:
    """Where a study's tuned dials are kept: among the shipped studies, or beside a user's file."""
    if loaded.source is not None:
        return Path(loaded.source.path).with_suffix(".tuned.json")
    return Path(str(resources.files("modeseek.configs"))) / "studies" / "tuned" / f"{loaded.study.name}.json"


def tune(plan: Plan, folder: Path, *, workers: int = 0, on: grid.On = "processes", console: Console) -> dict[str, Any]:
    """Tune every method that the plan's cells use and that has a grid; what the file is to hold."""
    seeds = draw("tune", plan.settings.tune_seeds)
    pairs = dict.fromkeys((cell.world, cell.method) for cell in plan.cells())
    jobs: dict[tuple[str, str], list[tuple[dict[str, Dial], Job]]] = {}
    for name, method in pairs:
        world = plan.world(name)
        if points := points_of(world, method):
            made = world_version(world, plan.loaded.source)
            jobs[name, method] = [(p, Job(Cell(name, method, of(p)), seeds, made)) for p in points]
    every = [job for of_pair in jobs.values() for _, job in of_pair]
    failed = grid.run(tasks(plan.loaded, every), folder / FOLDER, workers=workers, on=on, console=console)
    if failed:
        raise ValueError(f"tune: {failed[0].task.job.cell} failed: {failed[0].error}")
    chosen = [
        _chosen(
            plan.world(name), method, [Point(p, _score(plan.world(name), folder, job)) for p, job in of_pair], seeds
        )
        for (name, method), of_pair in jobs.items()
    ]
    return {"study": plan.study.name, "tune_seeds": len(seeds), "chosen": chosen}


def points_of(world: World, method: str) -> list[dict[str, Dial]]:
    """The product of a method's grid; none where it has no dial to tune."""
    grid_of = world.grid(method)
    return [dict(zip(grid_of, at, strict=True)) for at in itertools.product(*grid_of.values())] if grid_of else []


def read(path: Path, worlds: Sequence[World], tune_seeds: int) -> dict[tuple[str, str], Tuned]:
    """The chosen dials by world and method, each marked stale where its world or grid is no longer what was tuned."""
    if not path.exists():
        return {}
    known = {world.name: world for world in worlds}
    found: dict[tuple[str, str], Tuned] = {}
    for entry in json.loads(path.read_text())["chosen"]:
        world, method = known.get(entry["world"]), entry["method"]
        if world is None or method not in world.methods():
            continue
        stale = entry["hash"] != fingerprint(world, method, tune_seeds)
        found[world.name, method] = Tuned(of(entry["dials"]), stale)
    return found


def write(path: Path, said: Mapping[str, Any]) -> None:
    """Replace the file."""
    write_json(path, said)


def fingerprint(world: World, method: str, tune_seeds: int) -> str:
    """A hash of what tuning depends on, its source aside: the world's settings, the grid, the judge, the seeds."""
    grid_of = {name: list(values) for name, values in world.grid(method).items()}
    shown = repr(world) if is_dataclass(world) else world.name
    said = json.dumps([shown, method, world.judged_by, grid_of, draw("tune", tune_seeds)])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _score(world: World, folder: Path, job: Job) -> float:
    traces = store.read(folder / FOLDER, [job.name])
    if world.judged_by not in traces:
        raise ValueError(f"tune: {job.cell} has no metric {world.judged_by!r}; it has {', '.join(traces)}")
    ends = np.array([pull(trace, "end") for trace in traces[world.judged_by].values()])
    return float(ends.mean()) if np.isfinite(ends).all() else -math.inf


def _chosen(world: World, method: str, points: Sequence[Point], seeds: Sequence[int]) -> dict[str, Any]:
    """The best point, the first among equals; a dial at an end of its values is named: the best may lie beyond."""
    best = max(points, key=lambda p: p.score)
    if best.score == -math.inf:
        raise ValueError(f"tune: {method} in {world.name} is finite nowhere on its grid; widen World.grid")
    grid_of = world.grid(method)
    numbers = [name for name, values in grid_of.items() if len(values) > 1 and not isinstance(values[0], str)]
    edge = [name for name in numbers if best.dials[name] in (min(grid_of[name]), max(grid_of[name]))]
    return {
        "world": world.name,
        "method": method,
        "dials": dict(best.dials),
        "score": best.score,
        "judged_by": world.judged_by,
        "budget": f"{len(points)} points x {len(seeds)} seeds",
        "at_the_edge": edge,
        "hash": fingerprint(world, method, len(seeds)),
        "tried": [{**point.dials, "score": point.score} for point in points],
    }
