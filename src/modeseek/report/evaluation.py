"""An evaluation as one page: its numbers, its curves, and samples side by side that can be sorted and filtered.

It shows the plain data of `modeseek.evaluate.exhibit`. Sorting and filtering are the browser's style rules: no script.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from markupsafe import Markup
from matplotlib.lines import Line2D

from modeseek.disk import write_bytes
from modeseek.report import plots
from modeseek.report.curves import number
from modeseek.report.overlap import take_turns
from modeseek.report.template import filled

SORTS = (("reward", "gap in reward"), ("length", "gap in length"), ("even", "least different"))


def write(found: Mapping[str, Any], out: str | Path) -> Path:
    """One self-contained HTML page; the path of the file."""
    out = Path(out)
    if out.is_dir():
        out = out / "evaluation.html"
    write_bytes(out, render(found).encode("utf-8", "replace"))
    return out


def read(path: str | Path) -> dict[str, Any]:
    """What was found, from JSON."""
    return json.loads(Path(path).read_bytes())


def render(found: Mapping[str, Any]) -> str:
    """The page as one string of HTML that loads nothing."""
    return filled(
        "evaluation.html",
        version=importlib.metadata.version("modeseek"),
        date=datetime.date.today().isoformat(),
        number=number,
        says=_says(found),
        figures=_figures(found),
        legend=legend(found),
        sorts=SORTS,
        cards=_cards(found["samples"]),
        head=_head(found["rows"]),
        **{name: value for name, value in found.items() if name != "samples"},
    )


def _says(found: Mapping[str, Any]) -> list[str]:
    rates = [row for row in found["rows"] if row["name"] == "win_rate"]
    whole = [row for row in rates if "seeds" in row.get("policy", "")]
    said = [_verdict(row, found) for row in (whole or rates)[:6]]
    if cut := found.get("cut_off"):
        said.append(
            f"Nearly all responses of {', '.join(cut)} are cut off at the limit of tokens: read the rest with care."
        )
    for c in found["controlled"]:
        if c["extreme"]:
            said.append(
                f"At equal lengths the win rate would be {c['value']:.1%}, not {c['raw']:.1%}: length did much of it."
            )
    over = found["overoptimised"]
    if over is not None:
        fell = "fell" if over["happened"] else "did not clearly fall"
        said.append(
            f"The gold reward peaks at {over['peak']} and {fell} by {over['last']}, where the proxy is highest."
        )
    smallest = found["sizes"]["smallest"]
    if smallest is not None:
        said.append(
            f"With {found['prompts']} prompts a true difference of {smallest:.1%} in win rate is found 4 times in 5."
        )
    return said


def _verdict(row: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    who = row.get("policy", found["policies"][0])
    against = row.get("against", found["baselines"][0])
    clear = "more often than not" if row["low"] > 0.5 else "less often than not" if row["high"] < 0.5 else "not clear"
    return f"{who} against {against} wins {row['value']:.1%} ({row['low']:.1%} to {row['high']:.1%}): {clear}."


def _figures(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    made = []
    if found["points"] or found["best_of"]:
        words = "Up and to the left is better."
        if found["best_of"]:
            words += " Best-of-N is drawn at the bound log N - (N - 1)/N on its KL."
        made.append({"title": "Reward against KL", "svg": _frontier(found), "says": words})
    if len(found["best_of"]) > 1:
        gold = any(b["gold"] for b in found["best_of"])
        words = "Shaded: 95% intervals over prompts." + (
            " Where gold turns down, the proxy has stopped meaning it." if gold else ""
        )
        made.append(
            {"title": "The best of N samples of the reference", "svg": _best_of(found["best_of"]), "says": words}
        )
    return made


def _frontier(found: Mapping[str, Any]) -> Markup:
    with matplotlib.style.context(["default", plots.LOOK | {"svg.hashsalt": "kl"}]):
        figure, axes = plots.canvas()
        for key, look, points in (
            ("reward", plots.style(0), found["points"]),
            ("gold", plots.style(1), [p for p in found["points"] if p["gold"]]),
        ):
            for p in points:
                _cross(axes, p["kl"], p[key], look)
            line = [(p["kl"]["value"], p[key]["value"]) for p in points]
            if len(line) > 1:
                axes.plot(*zip(*line, strict=True), color=look.colour, lw=1, ls="dotted")
            if key == "reward":
                for p in points:
                    if p["on_frontier"]:
                        axes.plot(p["kl"]["value"], p[key]["value"], "o", ms=11, mfc="none", mec="#222222")
        for key, look in (("proxy", plots.style(2)), ("gold", plots.style(3))):
            curve = [(b["kl"], b[key]["value"]) for b in found["best_of"] if b[key]]
            if curve:
                axes.plot(*zip(*curve, strict=True), look.marker, color=look.colour, ls="dashed", ms=4, lw=1.4)
        axes.set_xlabel("KL to the reference, nats")
        axes.set_ylabel("reward")
        return plots.svg_of(figure, "kl")


def _cross(axes: Any, x: Mapping[str, float], y: Mapping[str, float], look: plots.Style) -> None:
    axes.plot([x["low"], x["high"]], [y["value"]] * 2, color=look.colour, lw=0.8, alpha=0.6)
    axes.plot([x["value"]] * 2, [y["low"], y["high"]], color=look.colour, lw=0.8, alpha=0.6)
    axes.plot([x["value"]], [y["value"]], look.marker, color=look.colour, ms=6)


def _best_of(curve: Sequence[Mapping[str, Any]]) -> Markup:
    with matplotlib.style.context(["default", plots.LOOK | {"svg.hashsalt": "best"}]):
        figure, axes = plots.canvas()
        lines = list[Line2D]()
        for key, look in (("proxy", plots.style(2)), ("gold", plots.style(3))):
            there = [b for b in curve if b[key]]
            if there:
                x = np.array([b["n"] for b in there])
                y = np.array([[b[key][end] for end in ("low", "value", "high")] for b in there])
                axes.fill_between(x, y[:, 0], y[:, 2], color=look.colour, alpha=0.15, lw=0)
                lines += axes.plot(x, y[:, 1], look.marker, color=look.colour, ls=look.dash, ms=5, lw=1.8)
        axes.set_xscale("log", base=2)
        take_turns(axes, lines)
        axes.set_xticks([b["n"] for b in curve], [str(b["n"]) for b in curve])
        axes.minorticks_off()
        axes.set_xlabel("N")
        axes.set_ylabel("reward")
        return plots.svg_of(figure, "best")


def _head(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """A row for each policy and baseline, those that combine several first; None where there is one of each."""
    if not any("policy" in row or "against" in row for row in rows):
        return None
    names = sorted(dict.fromkeys(row["name"] for row in rows), key=lambda name: not name.startswith("win_rate"))
    lines = dict[tuple[str, str], dict[str, Any]]()
    for row in rows:
        who = (row.get("policy", ""), row.get("against", ""))
        lines.setdefault(who, {})[row["name"]] = row
    order = sorted(lines, key=lambda who: (not who[0].startswith("all "), who[1] != "all baselines"))
    made = [{"who": [part for part in who if part], "cells": [lines[who].get(n) for n in names]} for who in order]
    return {"names": names, "lines": made}


def legend(found: Mapping[str, Any]) -> list[tuple[Markup, str]]:
    """What is drawn how, for the words beside the figures."""
    there = [(0, "policies, by the reward", bool(found["points"]))]
    there += [(1, "policies, by the gold reward", any(p["gold"] for p in found["points"]))]
    there += [(2, "best of N of the reference, by the reward that chose", bool(found["best_of"]))]
    there += [(3, "the same, by the gold reward", any(b["gold"] for b in found["best_of"]))]
    return [(plots.swatch(plots.style(i)), words) for i, words, drawn in there if drawn]


def _cards(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each sample with its place in every sorting and the words that filters look for."""
    gap = lambda s, key: s["ours"][key] - s["theirs"][key]
    rank = lambda key: {id(s): i for i, s in enumerate(sorted(samples, key=key))}
    by_reward = rank(lambda s: (-abs(gap(s, "reward")), -abs(gap(s, "length"))))
    by_length = rank(lambda s: -abs(gap(s, "length")))
    return [
        dict(s)
        | {
            "kind": "win" if s["win"] > 0.5 else "loss" if s["win"] < 0.5 else "tie",
            "longer": "longer" if gap(s, "length") > 0 else "shorter" if gap(s, "length") < 0 else "equal",
            "cut": not (s["ours"]["finished"] and s["theirs"]["finished"]),
            "places": {"reward": by_reward[id(s)], "length": by_length[id(s)], "even": -by_reward[id(s)]},
        }
        for s in samples
    ]
