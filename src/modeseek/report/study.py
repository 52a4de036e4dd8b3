"""A study as one page that a browser opens without a network, and its verdicts as a table for the docs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from modeseek.disk import write_bytes
from modeseek.report import plots, study_plots
from modeseek.report.curves import number
from modeseek.report.study_data import StudyData, read
from modeseek.report.template import filled

PAGE = "report.html"
MARKS = {
    "replicated": "\N{CHECK MARK}",
    "holds": "\N{CHECK MARK}",
    "mixed": "\N{APPROXIMATELY EQUAL TO}",
    "not replicated": "\N{MULTIPLICATION SIGN}",
    "refuted": "\N{MULTIPLICATION SIGN}",
    "undecided": "?",
}
RELATIONS = {"greater": "above", "less": "below", "equal": "within"}


def write(folder: str | Path, out: str | Path | None = None) -> Path:
    """The page of a study's directory; the path of the file."""
    path = Path(out) if out else Path(folder) / PAGE
    path = path / PAGE if path.is_dir() else path
    write_bytes(path, render(read(folder)).encode("utf-8", "replace"))
    return path


def render(data: StudyData) -> str:
    """The whole page as one string of HTML that loads nothing."""
    sets = zip(data.found["sets"], data.asked["sets"], data.drawn["sets"], strict=True)
    return filled(
        "study.html",
        head=data.found,
        sets=[_set(i, data.found["command"], *parts) for i, parts in enumerate(sets)],
        number=number,
        p_value=p_value,
        rule=rule,
        marks=MARKS,
        tally=tally(data.found),
        plain=lambda words: words.replace(" ", "-"),
    )


def tally(found: Mapping[str, Any]) -> dict[str, int]:
    """How many claims came to each verdict."""
    verdicts = [claim["verdict"] for one in found["sets"] for claim in one["claims"]]
    return {verdict: verdicts.count(verdict) for verdict in dict.fromkeys([*MARKS, *verdicts]) if verdict in verdicts}


def rule(part: Mapping[str, Any]) -> str:
    """What a part asks of its effect: above 0.1, below -0.1, within plus or minus 0.1."""
    margin = part["margin"]
    if part["relation"] == "equal":
        return f"within \N{PLUS-MINUS SIGN}{margin:g}"
    return f"{RELATIONS[part['relation']]} {(-margin if part['relation'] == 'less' else margin) or 0:g}"


def p_value(p: float | None) -> str:
    """Three places, or below 0.001."""
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def markdown(found: Mapping[str, Any]) -> str:
    """The verdicts as a page of the docs; every number in it was computed."""
    kind = "the short form, too few seeds to conclude from" if found["quick"] else f"{found['purpose']} seeds"
    lines = [
        f"# Study: {found['study']}",
        "",
        f"Written by `{found['command']}` on {found['date']}, modeseek {found['version']}"
        + (f", commit {found['commit']}" if found["commit"] else "")
        + f"; {kind}. Intervals: 95 %, Student's t over paired seeds, unadjusted. p: after Holm's correction.",
        "",
        *[f"**Warning**: {_cell(text)}\n" for text in found["warnings"]],
        *[f"**Failed**: {_cell(f['cell'])}\n" for f in found["failed"]],
    ]
    for one in found["sets"]:
        lines += [f"## {_cell(one['set'])}", ""]
        if one["claims"]:
            lines += ["| claim | verdict | part | asked | effect | 95 % interval | n | p | status |", "|" + "---|" * 9]
        for claim in one["claims"]:
            for i, part in enumerate(claim["parts"]):
                first = (f"**{claim['name']}** {claim['statement']} ({claim['source']})", claim["verdict"])
                lines.append(_row(*(first if i == 0 else ("", "")), *_numbers(part)))
        if one["differences"]:
            lines += ["| metric | ours | theirs | ours - theirs | 95 % interval | n | p, two-sided |", "|" + "---|" * 7]
        for d in one["differences"]:
            between = f"{number(d['low'])} to {number(d['high'])}"
            lines.append(
                _row(d["metric"], d["ours"], d["theirs"], number(d["effect"]), between, d["n"], p_value(d["adjusted"]))
            )
        lines.append("")
        lines += [f"- **{claim['name']}**: {_cell(claim['note'])}" for claim in one["claims"] if claim["note"]]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _numbers(part: Mapping[str, Any]) -> tuple[Any, ...]:
    between = f"{number(part['low'])} to {number(part['high'])}"
    n = part["n"] if part["n"] == part["wanted"] else f"{part['n']} of {part['wanted']}"
    status = part["status"] + (f": {part['reason']}" if part["reason"] else "")
    adjusted = part["adjusted_against"] if part["status"] == "refuted" else part["adjusted"]
    return part["says"], rule(part), number(part["effect"]), between, n, p_value(adjusted), status


def _row(*cells: Any) -> str:
    return "| " + " | ".join(_cell(str(cell)) for cell in cells) + " |"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _set(
    i: int, command: str, found: Mapping[str, Any], asked: Mapping[str, Any], drawn: Mapping[str, Any]
) -> dict[str, Any]:
    """A set of claims as the template reads it."""
    claims = [
        {
            **claim,
            "id": f"s{i}c{j}",
            "again": f"{command} --only {shlex.quote(claim['name'])}",
            "figures": _figures(f"s{i}c{j}", drawn["claims"].get(claim["name"], [])),
            "rows": [asked["cells"][cell] for cell in claim["cells"]],
        }
        for j, claim in enumerate(found["claims"])
    ]
    return {
        **found,
        "id": f"s{i}",
        "claims": claims,
        "figures": _figures(f"s{i}d", drawn["claims"].get("", [])),
        "worlds": [w for k, world in enumerate(drawn["worlds"]) if (w := _world(f"s{i}w{k}", world))],
        "tuned": asked["tuned"],
        "cells": asked["cells"],
    }


def _figures(name: str, wanted: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A figure a metric; the same cell looks the same in all of them."""
    labels = list(dict.fromkeys(line["label"] for figure in wanted for line in figure["lines"]))
    figures = []
    for i, figure in enumerate(wanted):
        lines = figure["lines"]
        looks = [plots.style(labels.index(line["label"])) for line in lines]
        figures.append(
            {
                "title": f"{figure['metric']} in {figure['world']}",
                "svg": study_plots.over_steps(f"{name}m{i}", figure["metric"], lines, looks) if lines else Markup(""),
                "legend": [_entry(line, look) for line, look in zip(lines, looks, strict=True)],
                "absent": figure["absent"],
            }
        )
    return figures


def _entry(line: Mapping[str, Any], look: plots.Style) -> dict[str, Any]:
    """The legend's words: whose line it is, where it ends, over how many seeds."""
    return {
        "swatch": plots.swatch(look),
        "label": line["label"],
        "n": line["n"],
        "not_finite": line["not_finite"],
        "end": number(line["mean"][-1]),
        "low": number(line["low"][-1]),
        "high": number(line["high"][-1]),
    }


def _world(name: str, world: Mapping[str, Any]) -> dict[str, Any] | None:
    figures = []
    if shape := world["geometry"]:
        looks = [plots.style(i) for i in range(len(shape))]
        sizes = {key: study_plots.numbers(values) for key, values in shape.items()}
        figures.append(
            {
                "title": f"{world['world']}: what it looks like",
                "svg": study_plots.geometry(f"{name}g", shape, looks),
                "keys": [
                    {"swatch": plots.swatch(look), "label": f"{key} (largest {number(float(abs(values).max()))})"}
                    for look, (key, values) in zip(looks, sizes.items(), strict=True)
                ],
                "note": "Each curve is drawn as a share of its own largest size.",
            }
        )
    if cells := world["frontier"]:
        methods = list(dict.fromkeys(cell["method"] for cell in cells))
        looks = [plots.style(methods.index(cell["method"])) for cell in cells]
        seeds = {m: sorted({cell["reward"]["n"] for cell in cells if cell["method"] == m}) for m in methods}
        count = {m: sum(cell["method"] == m for cell in cells) for m in methods}
        keys = [
            {
                "swatch": plots.swatch(plots.style(i)),
                "label": f"{m} ({count[m]} cell{'s' if count[m] > 1 else ''}, "
                f"{' or '.join(map(str, seeds[m]))} seed{'s' if seeds[m] != [1] else ''})",
            }
            for i, m in enumerate(methods)
        ]
        figures.append(
            {
                "title": f"{world['world']}: reward bought with KL",
                "svg": study_plots.frontier(f"{name}f", cells, looks),
                "keys": keys,
                "note": "Thin: the path of a cell's mean over seeds. Mark: where it ends, with 95 % intervals. "
                "Up and to the left is better.",
            }
        )
    return {"name": world["world"], "figures": figures} if figures else None
