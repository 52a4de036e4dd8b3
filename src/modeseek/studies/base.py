"""What a study is made of: worlds that make rows, cells that say which, claims that are read off them.

A study is a grid of cells, each run over the same seeds. A world runs all seeds of a cell at once where that is
faster; seed s means the same data and the same initial weights in every cell of a world: differences are paired.
Nothing here needs torch: claims are data, and verdicts are computed from rows alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np

Dial = float | int | str
Row = Mapping[str, float | int]  # "seed", "step", and a number for each metric of the world

AT = ("end", "area", "start", "highest", "lowest", "slope")
At = Literal["end", "area", "start", "highest", "lowest", "slope"]


@dataclass(frozen=True)
class Cell:
    """One place of the grid: a method in a world, with the dials that are not left at tuned or default values."""

    world: str
    method: str
    dials: tuple[tuple[str, Dial], ...] = ()  # sorted by name

    @staticmethod
    def of(world: str, method: str, **dials: Dial) -> Cell:
        """A cell from its dials."""
        return Cell(world, method, tuple(sorted(dials.items())))

    def __str__(self) -> str:
        dials = ",".join(f"{name}={value}" for name, value in self.dials)
        return f"{self.world}/{self.method}" + (f"[{dials}]" if dials else "")


@runtime_checkable
class World(Protocol):
    """A problem whose optimum is known. `name` is what cells call it."""

    @property
    def name(self) -> str: ...

    @property
    def judged_by(self) -> str:
        """The metric, of the last row, that tuning maximises."""
        ...

    def methods(self) -> Sequence[str]: ...

    def grid(self, method: str) -> Mapping[str, Sequence[Dial]]:
        """The dials of a method to tune, with the values to try; the product of them is the stated budget."""
        ...

    def run(self, method: str, seeds: Sequence[int], **dials: Dial) -> list[Row]:
        """Rows of every seed and checkpoint, step 0 (before training) among them. A dial without effect is refused."""
        ...

    def geometry(self) -> Mapping[str, np.ndarray]:
        """Named curves over one axis that show the problem: "reference", "reward", "data", ...; {} where none does."""
        ...


@dataclass(frozen=True)
class Contrast:
    """A sum over cells of coefficient x a metric, read from each seed's own rows."""

    terms: tuple[tuple[float, Cell, str, At], ...]

    def __sub__(self, other: Contrast) -> Contrast:
        return Contrast(self.terms + other._negated().terms)

    def _negated(self) -> Contrast:
        return Contrast(tuple((-c, cell, metric, at) for c, cell, metric, at in self.terms))

    def __add__(self, other: Contrast) -> Contrast:
        return Contrast(self.terms + other.terms)


def read(cell: Cell, metric: str, at: At = "end") -> Contrast:
    """A metric of a cell: at its last row, its mean over steps (area), at its first row, its extremes, or the
    least-squares slope over the final third of its steps."""
    return Contrast(((1.0, cell, metric, at),))


@dataclass(frozen=True)
class Part:
    """One tested sentence. `equal` is an equivalence test (TOST) and needs a margin; the others take one too."""

    says: str
    contrast: Contrast
    relation: Literal["greater", "less", "equal"]
    margin: float = (
        0.0  # greater: the contrast's mean is above it; less: below minus it; equal: within plus or minus it
    )


@dataclass(frozen=True)
class Claim:
    """A statement of a paper, or one's own, with the parts that together decide it."""

    name: str  # such as A1
    statement: str
    source: str  # paper and section, or "ours"
    parts: tuple[Part, ...]
    note: str = ""  # what differs from the source, and what the test does not show

    def cells(self) -> tuple[Cell, ...]:
        """The cells it needs, each once."""
        return tuple(dict.fromkeys(cell for part in self.parts for _, cell, _, _ in part.contrast.terms))


@dataclass(frozen=True)
class Study:
    """Worlds, and the claims about them that are tested together: Holm's correction runs over all parts of a study."""

    name: str
    worlds: tuple[World, ...]
    claims: tuple[Claim, ...]

    def cells(self) -> tuple[Cell, ...]:
        """Every cell that some claim needs, each once."""
        return tuple(dict.fromkeys(cell for claim in self.claims for cell in claim.cells()))
