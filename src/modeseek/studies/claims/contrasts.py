"""Contrasts that claims are written with."""

from __future__ import annotations

from modeseek.studies.base import At, Cell, Contrast, read


def scaled(contrast: Contrast, by: float) -> Contrast:
    """The contrast times a number."""
    return Contrast(tuple((by * c, cell, metric, at) for c, cell, metric, at in contrast.terms))


def change(cell: Cell, metric: str) -> Contrast:
    """What training did to a metric."""
    return read(cell, metric) - read(cell, metric, "start")


def between(ours: Cell, theirs: Cell, metric: str, at: At = "end") -> Contrast:
    """A metric of one cell less that of another, in the same world."""
    return read(ours, metric, at) - read(theirs, metric, at)
