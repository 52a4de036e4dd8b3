"""The page of `modeseek advise`: what to do, what it rests on, what the race measured. It reads advice.json only."""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.style
import yaml
from markupsafe import Markup

from modeseek.report import plots
from modeseek.report.template import filled

HEADS = {
    "train": "Train with {name}",
    "race first": "Not known: race before you train",
    "do nothing": "Leave the model as it is",
    "fix the data first": "Fix the data first",
    "sft first": "Fine-tune on the chosen responses first",
}
NAMES = {
    "sft": "SFT on the chosen",
    "rwr": "reward-weighted regression",
    "dpo": "DPO",
    "ipo": "IPO",
    "hypo": "HyPO",
    "best_of_n": "best of N",
    "online_dpo": "online DPO",
    "policy_gradient": "policy gradient with KL",
    "nothing": "do nothing",
}


def render(tree: Mapping[str, Any]) -> str:
    """The whole page as one string of HTML that loads nothing."""
    options, rungs = tree["options"], tree.get("rungs", [])
    plan = tree.get("collect")
    return filled(
        "advice.html",
        head=headline(tree),
        tree=tree,
        version=importlib.metadata.version("modeseek"),
        date=datetime.date.today().isoformat(),
        rows=[{**o, "said": said(o["name"])} for o in options],
        chart=intervals("expected", "gain over the model, log-odds of being preferred", options),
        rungs=[
            {
                **rung,
                "rows": [{**s, "said": said(s["name"])} for s in rung["standings"]],
                "chart": intervals(f"rung-{i}", "gain over the model, in the judge's unit", rung["standings"]),
            }
            for i, rung in enumerate(rungs)
        ],
        plan=None if plan is None else {**plan, "yaml": yaml.safe_dump(plan["plan"], sort_keys=False)},
    )


def headline(tree: Mapping[str, Any]) -> str:
    """What to do, in a few words: what the race found goes before what was expected."""
    best = tree.get("best_method")
    if best:
        return "Leave the model as it is" if best == "nothing" else f"Train with {said(best)}"
    return HEADS[tree["verdict"]].format(name=said(tree["options"][0]["name"]))


def said(name: str) -> str:
    """A candidate's name in words; its dial stays behind it."""
    method, _, dial = name.partition(" ")
    return f"{NAMES.get(method, method)} ({dial})" if dial else NAMES.get(method, method)


def intervals(name: str, axis: str, rows: Sequence[Mapping[str, Any]]) -> Markup:
    """A line a candidate: its interval, and a mark at its gain."""
    with matplotlib.style.context(["default", plots.LOOK | {"svg.hashsalt": name}]):
        figure, axes = plots.canvas()
        axes.set_position((0.34, 0.17, 0.63, 0.8))
        for i, row in enumerate(reversed(rows)):
            axes.plot([row["low"], row["high"]], [i, i], color=plots.COLOURS[0], lw=2.4)
            axes.plot([row["gain"]], [i], "o", color=plots.COLOURS[0], ms=6)
        axes.axvline(0, color="#333333", lw=1)
        axes.set_yticks(range(len(rows)), [_short(row["name"]) for row in reversed(rows)])
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(axis)
        return plots.svg_of(figure, name)


def _short(name: str) -> str:
    """Only our own words reach a drawing."""
    method, _, dial = name.partition(" ")
    return f"{method.replace('_', ' ')} {dial}".strip() if method in NAMES else "a candidate"
