"""A study's pictures: means with bands over seeds, where methods end in reward and KL, what a world looks like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.style
import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from modeseek.report.overlap import take_turns
from modeseek.report.plots import LOOK, Style, canvas, scale, svg_of


def over_steps(name: str, metric: str, lines: Sequence[Mapping[str, Any]], styles: Sequence[Style]) -> Markup:
    """The mean over seeds with its interval; a gap where no seed has a finite number."""
    with matplotlib.style.context(["default", LOOK | {"svg.hashsalt": name}]):
        figure, axes = canvas()
        seen, means = [], []
        for line, look in zip(lines, styles, strict=True):
            x, mean, low, high = (numbers(line[key]) for key in ("steps", "mean", "low", "high"))
            marker = look.marker if len(x) == 1 else None
            means += axes.plot(x, mean, color=look.colour, ls=look.dash, lw=1.8, marker=marker)
            axes.fill_between(x, low, high, color=look.colour, alpha=0.15, lw=0)
            seen += [low, high, mean]
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        scale(axes, "y", metric, _finite(seen))
        take_turns(axes, means)
        return svg_of(figure, name)


def frontier(name: str, cells: Sequence[Mapping[str, Any]], styles: Sequence[Style]) -> Markup:
    """Reward against KL: the path of the means over seeds, and where it ends, with both intervals."""
    with matplotlib.style.context(["default", LOOK | {"svg.hashsalt": name}]):
        figure, axes = canvas()
        across, up = [], []
        for cell, look in zip(cells, styles, strict=True):
            kl, reward = cell["kl"], cell["reward"]
            x, y = numbers(kl["mean"]), numbers(reward["mean"])
            both = min(len(x), len(y))
            axes.plot(x[:both], y[:both], color=look.colour, ls=look.dash, lw=0.8, alpha=0.5)
            x_reach, y_reach = _reach(kl), _reach(reward)
            axes.errorbar(
                x[-1:],
                y[-1:],
                xerr=x_reach,
                yerr=y_reach,
                fmt=look.marker,
                color=look.colour,
                ms=6,
                mec="#222222",
                mew=0.6,
                elinewidth=1,
            )
            across.append(x)
            up.append(y)
        axes.set_ylabel("reward")
        scale(axes, "x", "KL to the reference, nats", _finite(across))
        return svg_of(figure, name)


def geometry(name: str, curves: Mapping[str, Sequence[float]], styles: Sequence[Style]) -> Markup:
    """A world's curves over its actions, each in units of its own largest size: they have different ones."""
    with matplotlib.style.context(["default", LOOK | {"svg.hashsalt": name}]):
        figure, axes = canvas()
        drawn = []
        for values, look in zip(curves.values(), styles, strict=True):
            y = numbers(values)
            size = np.max(np.abs(y[np.isfinite(y)]), initial=0.0) or 1.0
            drawn += axes.plot(np.arange(len(y)), y / size, color=look.colour, ls=look.dash, lw=1.6)
        take_turns(axes, drawn)
        axes.set_xlabel("action")
        axes.set_ylabel("share of its largest value")
        return svg_of(figure, name)


def numbers(values: Sequence[float | None]) -> np.ndarray:
    """JSON's numbers; null, which stands for what was not finite, as NaN."""
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _reach(line: Mapping[str, Any]) -> np.ndarray:
    """Below and above the last mean; zero where there is no interval."""
    mean, low, high = (numbers(line[key])[-1] for key in ("mean", "low", "high"))
    return np.nan_to_num(np.array([[mean - low], [high - mean]]), nan=0.0)


def _finite(arrays: Sequence[np.ndarray]) -> np.ndarray:
    x = np.concatenate(arrays) if arrays else np.zeros(1)
    x = x[np.isfinite(x)]
    return x if len(x) else np.zeros(1)
