"""Curves drawn as inline SVG. Only our own words reach the drawing: names of methods stand in the page's legend."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib.style
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from modeseek.report.curves import Curve, Line
from modeseek.report.overlap import take_turns

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333")  # Okabe and Ito
DASHES = ("solid", "dashed", "dotted", "dashdot")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MOST_POINTS = {"eval/": 300, "": 60}  # of a line, held out and in training; a longer one is drawn as block means

LOOK = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "lines.solid_capstyle": "round",
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Style:
    """How one method is drawn in every plot: a colour, and a dash and marker for those who see none."""

    colour: str
    dash: str
    marker: str


class Drawing(NamedTuple):
    """A plot, and the methods that coincide in it."""

    svg: Markup
    same: list[list[str]]


def style(i: int) -> Style:
    """The i-th method's style; colours return after seven with another dash."""
    n = len(COLOURS)
    return Style(COLOURS[i % n], DASHES[i // n % len(DASHES)], MARKERS[i % n])


def over_steps(name: str, axis: str, curves: Sequence[Curve], styles: Sequence[Style]) -> Drawing:
    """A metric over steps: thin a run, thick their mean, shaded from the lowest run to the highest."""
    with matplotlib.style.context(["default", LOOK | {"svg.hashsalt": name}]):
        figure, axes = canvas()
        heads: dict[str, Line2D] = {}  # the mean of each method, or its only run
        for curve, look in zip(curves, styles, strict=True):
            most = _most(curve)
            alone = len(curve.lines) == 1
            for line in curve.lines:
                x, y = thin(line.steps, line.values, most)
                marker = look.marker if len(x) == 1 else None
                width = 1.8 if alone else 0.7
                alpha = 1 if alone else 0.45
                (drawn,) = axes.plot(x, y, color=look.colour, ls=look.dash, lw=width, alpha=alpha, marker=marker)
                if alone:
                    heads[curve.method] = drawn
            if not alone and len(curve.steps):
                x, every = thin(curve.steps, curve.values, most)
                axes.fill_between(x, every.min(0), every.max(0), color=look.colour, alpha=0.13, lw=0)
                marker = look.marker if len(x) == 1 else None
                (heads[curve.method],) = axes.plot(
                    x, every.mean(0), color=look.colour, ls=look.dash, lw=2.2, marker=marker
                )
        axes.set_xlabel("optimiser step")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        values = np.concatenate([line.values for curve in curves for line in curve.lines])
        scale(axes, "y", axis, values)
        same = _take_turns(axes, heads)
        return Drawing(svg_of(figure, name), same)


def frontier(
    name: str, kl: Sequence[Curve], reward: Sequence[Curve], styles: Sequence[Style], words: tuple[str, str]
) -> Drawing:
    """Reward against KL: each run's path, a small mark where it ends, a large one at the method's mean."""
    with matplotlib.style.context(["default", LOOK | {"svg.hashsalt": name}]):
        figure, axes = canvas()
        marks: dict[str, Line2D] = {}
        for k, r, look in zip(kl, reward, styles, strict=True):
            ends = []
            for x, y in paths(k, r):
                wide, high = thin(x.values, y.values, _most(k))
                axes.plot(wide, high, color=look.colour, ls=look.dash, lw=0.8, alpha=0.5)
                ends.append((x.last, y.last))
            if len(ends) > 1:
                axes.plot(*zip(*ends, strict=True), look.marker, color=look.colour, ms=4, alpha=0.6, clip_on=False)
            if ends:
                x, y = np.mean(ends, axis=0)
                (mark,) = axes.plot([x], [y], look.marker, color=look.colour, ms=9, mec="#222222", clip_on=False)
                marks[k.method] = mark
        axes.set_ylabel(words[1])
        scale(axes, "x", words[0], np.concatenate([line.values for curve in kl for line in curve.lines]))
        same = _take_turns(axes, marks)
        return Drawing(svg_of(figure, name), same)


def _take_turns(axes: Axes, heads: Mapping[str, Line2D]) -> list[list[str]]:
    names = list(heads)
    return [[names[i] for i in group] for group in take_turns(axes, list(heads.values()))]


def paths(kl: Curve, reward: Curve) -> list[tuple[Line, Line]]:
    """KL and reward of each run at the steps where it has both."""
    rewards = {line.run: line for line in reward.lines}
    found = []
    for line in kl.lines:
        if (other := rewards.get(line.run)) is not None:
            steps = np.intersect1d(line.steps, other.steps)
            if len(steps):
                found.append((line.at(steps), other.at(steps)))
    return found


def thin(x: np.ndarray, y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most this many points along the last axis, each the mean of equally many consecutive ones."""
    size = -(-x.shape[-1] // most)
    if size == 1:
        return x, y
    starts = np.arange(0, x.shape[-1], size)
    counts = np.diff(np.append(starts, x.shape[-1]))
    mean = lambda v: np.add.reduceat(v, starts, axis=-1) / counts
    return mean(x.astype(float)), mean(y)


def swatch(look: Style) -> Markup:
    """The legend's sign for a method."""
    dash = {"solid": "", "dashed": "5 3", "dotted": "1.5 2.5", "dashdot": "6 2 1.5 2"}[look.dash]
    shape = {
        "o": '<circle cx="15" cy="6" r="4"/>',
        "s": '<rect x="11" y="2" width="8" height="8"/>',
        "^": '<path d="M15 1.5 19.5 10h-9z"/>',
        "D": '<path d="M15 1 20 6 15 11 10 6z"/>',
        "v": '<path d="M15 10.5 10.5 2h9z"/>',
        "P": '<path d="M13 2h4v2h2v4h-2v2h-4V8h-2V4h2z"/>',
        "X": '<path d="M11 3l1-1 3 2 3-2 1 1-2 3 2 3-1 1-3-2-3 2-1-1 2-3z"/>',
    }[look.marker]
    return Markup(
        f'<svg class="swatch" width="30" height="12" viewBox="0 0 30 12" aria-hidden="true" fill="{look.colour}">'
        f'<path d="M1 6H29" stroke="{look.colour}" stroke-width="2.4" stroke-dasharray="{dash}"/>{shape}</svg>'
    )


def _most(curve: Curve) -> int:
    return MOST_POINTS["eval/" if curve.metric.startswith("eval/") else ""]


def canvas() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.8, 2.9))
    FigureCanvasSVG(figure)
    # fixed margins, wide enough for six figures on the left: a layout engine would draw everything twice
    return figure, figure.add_axes((0.15, 0.16, 0.83, 0.8))


def scale(axes: Axes, which: str, words: str, values: np.ndarray) -> None:
    """A linear axis, or a logarithmic one above 1 where one method would flatten all others."""
    far, usual = np.max(np.abs(values)), np.median(np.abs(values))
    axis = axes.yaxis if which == "y" else axes.xaxis
    if values.min() >= 0 and far > 10 and far > 12 * max(usual, 1e-9):
        top = far * 1.3
        decades = [m * 10.0**e for e in range(12) for m in ((1, 3) if far < 500 else (1,))]
        (axes.set_yscale if which == "y" else axes.set_xscale)("symlog", linthresh=1)
        (axes.set_ylim if which == "y" else axes.set_xlim)(0, top)
        axis.set_major_locator(FixedLocator([0, *(mark for mark in decades if mark <= top)]))
        axis.set_minor_locator(NullLocator())
        words += " (log scale above 1)"
    axis.set_major_formatter(FuncFormatter(_tick))
    (axes.set_ylabel if which == "y" else axes.set_xlabel)(words)


def _tick(x: float, _: int | None) -> str:
    """Short enough for the fixed margin: 0.25, 1500, 20k, 5e-6."""
    size = abs(x)
    text = f"{x / 1e6:g}M" if size >= 1e6 else f"{x / 1e3:g}k" if size >= 1e4 else f"{x:g}"
    return text.replace("e-0", "e-").replace("-", "\N{MINUS SIGN}")


def svg_of(figure: Figure, name: str) -> Markup:
    file = io.StringIO()
    figure.savefig(
        file, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)  # HTML knows these; nothing on the page names an address
    text = re.sub(r'(?<= id=")|(?<=url\(#)|(?<=href="#)', f"{name}-", text)  # ids are unique on a page
    text = re.sub(r'(?<= d=")[^"]*', lambda d: re.sub(r"\d+\.\d{3,}", _short, d[0]), text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return Markup(text.replace("<svg", '<svg class="plot" aria-hidden="true"', 1))


def _short(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}"
