"""Lines that lie on one another, drawn so that each of them shows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

NEAR = 0.9  # points, half of a line's width: nearer, and the line below hardly shows
DASH = 8.0  # line widths
RING = 5.0  # points by which a mark is wider than the one on it


def take_turns(axes: Axes, lines: Sequence[Line2D]) -> list[list[int]]:
    """Dash the lines that lie on earlier ones, so that their colours take turns, and widen marks that lie under others.

    What coincides is returned as places in `lines`. The axes have to have their scales already.
    """
    groups = _together([_on_paper(axes, line) for line in lines])
    for group in groups:
        above = len(group) - 1
        for turn, i in enumerate(group):
            lines[i].set_markersize(lines[i].get_markersize() + RING * (above - turn))
            if turn:
                lines[i].set_linestyle((turn * DASH, (DASH, above * DASH)))
    return groups


def _together(lines: Sequence[np.ndarray]) -> list[list[int]]:
    """The places of lines of which a later one hides an earlier one."""
    groups: list[list[int]] = []
    for i, over in enumerate(lines):
        below = [group for group in groups if any(hides(over, lines[j]) for j in group)]
        groups = [group for group in groups if group not in below]
        groups.append([*sorted(j for group in below for j in group), i])
    return [group for group in groups if len(group) > 1]


def hides(over: np.ndarray, under: np.ndarray) -> bool:
    """Whether a line [point, (x, y)] covers another one from end to end; of single points, one another."""
    if not len(over) or not len(under) or (len(over) == 1) != (len(under) == 1):
        return False
    first, last = under[0, 0], under[-1, 0]
    if over[0, 0] > first + NEAR or over[-1, 0] < last - NEAR:
        return False
    x = np.concatenate([under[:, 0], over[(over[:, 0] >= first) & (over[:, 0] <= last), 0]])
    return bool(np.abs(np.interp(x, *over.T) - np.interp(x, *under.T)).max() <= NEAR)


def _on_paper(axes: Axes, line: Line2D) -> np.ndarray:
    """A line's finite points, in points of the drawing."""
    axes.autoscale_view()  # else an axis stretches to what was drawn only at the end
    xy = np.asarray(line.get_xydata(), dtype=float)
    return axes.transData.transform(xy[np.isfinite(xy).all(1)]) * 72 / axes.figure.dpi
