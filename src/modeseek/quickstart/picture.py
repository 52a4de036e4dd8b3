"""The picture: reward and KL over steps, every seed thin, their mean thick."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from modeseek.record import read
from modeseek.report.curves import Curve, curve, methods
from modeseek.report.plots import LOOK, Style, style

PANELS = (("eval/reward", "true reward"), ("eval/kl", "KL to the reference, nats"))


def draw(runs: Sequence[Path], out: Path) -> Path:
    """An SVG of the runs in these directories, words as outlines so that it looks the same everywhere."""
    groups = methods([read(path) for path in runs])
    with matplotlib.style.context(["default", LOOK | {"svg.fonttype": "path", "svg.hashsalt": "quickstart"}]):
        figure = Figure(figsize=(9.2, 3.5), facecolor="white", layout="constrained")
        FigureCanvasSVG(figure)
        for axes, (metric, words) in zip(figure.subplots(1, 2), PANELS, strict=True):
            for i, method in enumerate(groups):
                if (found := curve(method, metric)) is not None:
                    _line(axes, found, style(i))
            axes.set_xlabel("optimiser step")
            axes.set_title(words, loc="left", fontsize=10)
            if metric == "eval/kl":
                axes.set_yscale("symlog", linthresh=1)
                top = 1.3 * max(line.get_ydata().max() for line in axes.lines)  # type: ignore[union-attr]
                axes.set_ylim(0, max(top, 1))
                ticks = [tick for tick in (0, 1, 3, 10, 30, 100, 300) if tick <= max(top, 1)]
                axes.set_yticks(ticks, [str(tick) for tick in ticks])
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(6, len(names)), frameon=False)
        figure.savefig(out, metadata={"Date": None})
    return out


def _line(axes: Axes, found: Curve, look: Style) -> None:
    for line in found.lines:
        axes.plot(line.steps, line.values, color=look.colour, ls=look.dash, lw=0.7, alpha=0.5)
    mean = found.values.mean(0)
    axes.plot(found.steps, mean, color=look.colour, ls=look.dash, lw=2.2, marker=look.marker, ms=4, label=found.method)
