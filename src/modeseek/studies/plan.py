"""Who runs what: each cell of a study's claims with its tuned and explicit dials, cut into jobs of some seeds each."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass

from modeseek.studies import version
from modeseek.studies.base import Cell, Claim, Dial, Study, World
from modeseek.studies.load import Loaded, Settings, Source
from modeseek.studies.seeds import Purpose, draw
from modeseek.studies.store import Job, of


@dataclass(frozen=True)
class Task:
    """A job with what a worker needs to do it, anywhere."""

    job: Job
    world: bytes  # pickled
    source: Source | None = None  # of a user's world


@dataclass(frozen=True)
class Tuned:
    """The dials that tuning chose for a method in a world."""

    dials: tuple[tuple[str, Dial], ...]
    stale: bool = False  # the world or its grid has changed since


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A set of claims, with all that decides its numbers."""

    loaded: Loaded
    settings: Settings
    purpose: Purpose = "choose"
    quick: bool = False
    seed_count: int | None = None  # over the settings'
    tuned: Mapping[tuple[str, str], Tuned]  # by world and method
    only: tuple[str, ...] = ()  # claims; the others still count in Holm's correction

    @property
    def study(self) -> Study:
        return self.loaded.study

    def world(self, name: str) -> World:
        """A world of the study by its name."""
        return next(world for world in self.study.worlds if world.name == name)

    def claims(self) -> tuple[Claim, ...]:
        """The claims that were asked for."""
        return tuple(claim for claim in self.study.claims if not self.only or claim.name in self.only)

    def cells(self) -> tuple[Cell, ...]:
        """The cells that they need, each once; all methods of every world where a study claims nothing."""
        if not self.study.claims:
            return tuple(Cell(world.name, method) for world in self.study.worlds for method in world.methods())
        return tuple(dict.fromkeys(cell for claim in self.claims() for cell in claim.cells()))

    def seeds(self, cell: Cell) -> tuple[int, ...]:
        """The seeds that a cell runs: the same in all worlds, as far as they go."""
        own = self.settings.seeds_of.get(cell.world, self.settings.seeds)
        usual = min(own, self.settings.quick.seeds) if self.quick else own
        return draw(self.purpose, usual if self.seed_count is None else self.seed_count)

    def dials(self, cell: Cell) -> dict[str, Dial]:
        """Tuned dials, under the cell's own, under those of the short form."""
        tuned = self.tuned.get((cell.world, cell.method))
        quick = self.settings.quick.dials
        short = quick.get(f"{cell.world}/{cell.method}", quick.get(cell.world, {})) if self.quick else {}
        return {**dict(tuned.dials if tuned else ()), **dict(cell.dials), **short}

    def jobs(self, cell: Cell) -> list[Job]:
        """A cell's jobs. Chunks are cut by place, so that more seeds leave the first chunks as they were."""
        seeds, resolved = self.seeds(cell), Cell(cell.world, cell.method, of(self.dials(cell)))
        size = self.settings.chunk_of.get(cell.world, len(seeds))
        made = world_version(self.world(cell.world), self.loaded.source)
        return [Job(resolved, seeds[i : i + size], made) for i in range(0, len(seeds), size)]

    def tasks(self) -> list[Task]:
        """Every job once, worlds in turn, so that the time left is known early."""
        return tasks(self.loaded, [job for cell in self.cells() for job in self.jobs(cell)])


def tasks(loaded: Loaded, jobs: Sequence[Job]) -> list[Task]:
    """Jobs with their worlds, each once, worlds in turn."""
    once = {job.name: job for job in jobs}
    pickled = {world.name: pickle.dumps(world) for world in loaded.study.worlds}
    turns: Counter[str] = Counter()
    made: list[tuple[int, Task]] = []
    for job in once.values():
        made.append((turns[job.cell.world], Task(job, pickled[job.cell.world], loaded.source)))
        turns[job.cell.world] += 1
    return [task for _, task in sorted(made, key=lambda at: at[0])]


def world_version(world: World, source: Source | None) -> str:
    """Of a world: its source's, and the settings that its dataclass shows."""
    kind = type(world)
    code = version.of_text(source.text) if source and kind.__module__ == source.module else None
    shown = repr(world) if is_dataclass(world) else ""
    return f"{code or version.of_module(kind.__module__)}:{kind.__qualname__}:{shown}"
