"""Runs put together as what the page shows; the page itself is `page.html`."""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from markupsafe import Markup

from modeseek.record import RunData
from modeseek.report import findings, plots
from modeseek.report.curves import (
    LEVEL,
    Curve,
    Method,
    Spread,
    change,
    curve,
    final,
    flat,
    held_out,
    label,
    last_step,
    methods,
    nonfinite,
    number,
    start,
)
from modeseek.report.states import states
from modeseek.report.template import filled

PROMPTS = 6  # shown side by side

HEADLINE = {
    "reward": "reward",
    "win_rate": "win rate",
    "kl": "KL, nats",
    "degenerate": "degenerate text",
    "rewards/accuracies": "pair accuracy",
    "completions/mean_length": "length, tokens",
}


@dataclass(frozen=True)
class Plot:
    """A metric that is drawn over steps: its title, its axis, and what is said of it."""

    metric: str
    title: str
    axis: str
    say: Callable[[Sequence[Curve], str], str]
    bare: bool = False  # read from training rows only


SECTIONS: tuple[tuple[str, str, tuple[Plot, ...]], ...] = (
    (
        "reward",
        "Reward and KL over steps",
        (
            Plot("reward", "Reward", "reward", findings.best),
            Plot("kl", "KL to the reference", "KL, nats", findings.furthest),
            Plot("win_rate", "Win rate", "win rate", findings.best),
            Plot("degenerate", "Degenerate text", "share of responses", findings.furthest),
        ),
    ),
    (
        "logps",
        "Log-probabilities of the chosen and the rejected responses",
        (
            Plot("logps/chosen", "Chosen", "log-prob, nats", findings.moved),
            Plot("logps/rejected", "Rejected", "log-prob, nats", findings.moved),
        ),
    ),
    (
        "pairs",
        "Margin and accuracy",
        (
            Plot("rewards/margins", "Margin of the implicit rewards", "margin", findings.best),
            Plot("rewards/accuracies", "Accuracy on the pairs", "accuracy", findings.best),
        ),
    ),
    (
        "training",
        "Loss, gradient, length, entropy",
        (
            Plot("loss", "Loss", "loss", findings.moved, bare=True),
            Plot("grad_norm", "Gradient norm before clipping", "gradient norm", findings.moved, bare=True),
            Plot("completions/mean_length", "Length of responses", "tokens", findings.moved),
            Plot("entropy", "Entropy of the policy", "nats a token", findings.moved),
        ),
    ),
)


def table(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """A row per method, for the terminal and for the head of the page; before them step 0, where it was measured.

    Cells are `Spread`s, whose `str` is what a reader wants to see. A column that no row fills is left out.
    """
    groups = methods(runs)
    known = [name for name in HEADLINE if any(final(m, name) for m in groups)]
    for run in runs:
        known += [str(r["name"]) for r in run.results if r["name"] not in known]
    rows: list[dict[str, Any]] = []
    before = {name: start(groups, name) for name in known}
    if any(before.values()):
        count = max(cell.n for cell in before.values() if cell)
        blank = {"chosen log-prob, change": None}
        rows.append({"method": "step 0", "seeds": count, "steps": "0", **before, **blank})
    for method in groups:
        cells: dict[str, Any] = {"method": method.name, "seeds": len(method.runs), "steps": _steps(method)}
        cells |= {name: final(method, name) for name in known}
        rows.append(cells | {"chosen log-prob, change": change(method, "logps/chosen")})
    filled = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    return [{HEADLINE.get(name, name): row[name] for name in filled} for row in rows]


def render(runs: Sequence[RunData], title: str | None = None) -> str:
    """The whole page as one string of HTML that loads nothing."""
    groups = methods(runs)
    styles = {method.name: plots.style(i) for i, method in enumerate(groups)}
    sections, absent = _sections(groups, styles)
    head = table(runs)
    several = max(len(method.runs) for method in groups) > 1
    return filled(
        "page.html",
        title=title or (", ".join(m.name for m in groups) if len(groups) <= 4 else f"{len(groups)} methods"),
        version=importlib.metadata.version("modeseek"),
        date=datetime.date.today().isoformat(),
        columns=list(head[0]),
        head=head,
        is_spread=lambda cell: isinstance(cell, Spread),
        number=number,
        level=f"{LEVEL:.0%}",
        over={cell.over for row in head for cell in row.values() if isinstance(cell, Spread)},
        legend=[{"name": m.name, "swatch": plots.swatch(styles[m.name]), "seeds": len(m.runs)} for m in groups],
        several=several,
        sections=sections,
        absent=absent,
        most=plots.MOST_POINTS,
        warnings=_warnings(groups),
        states=states([(_named(method, run), run) for method in groups for run in method.runs]),
        differences=_differences(groups),
        samples=_samples(groups, styles),
        prompts=PROMPTS,
        cards=[_card(method, run) for method in groups for run in method.runs],
        few=len(runs) <= 3,
    )


def _named(method: Method, run: RunData) -> str:
    return method.name if len(method.runs) == 1 else f"{method.name}, {label(run)}"


def _sections(
    groups: Sequence[Method], styles: Mapping[str, plots.Style]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What can be drawn, and the metrics that no run has."""
    sections, absent = [], []
    drawn: dict[str, list[Curve]] = {}
    for _, _, wanted in SECTIONS:
        for plot in wanted:
            metric = plot.metric if plot.bare else held_out(groups, plot.metric)
            drawn[plot.metric] = [found for m in groups if (found := curve(m, metric))]
    for name, heading, wanted in SECTIONS:
        absent += [{"metric": p.metric, "title": _within_a_sentence(p.title)} for p in wanted if not drawn[p.metric]]
        figures = []
        for plot in wanted:
            if not (curves := drawn[plot.metric]):
                continue
            looks = [styles[c.method] for c in curves]
            svg, same = plots.over_steps(_id(plot.metric), plot.axis, curves, looks)
            figures.append(
                {
                    "title": plot.title,
                    "note": _note(curves, groups) + findings.coincide(same),
                    "svg": svg,
                    "says": _says(plot, drawn),
                }
            )
        if figures:
            sections.append({"id": name, "heading": heading, "figures": figures})
        if name == "reward" and (figure := _frontier(groups, styles)):
            heading = "Reward against KL"
            sections.append({"id": "frontier", "heading": heading, "figures": [figure]})
    return sections, absent


def _says(plot: Plot, drawn: Mapping[str, list[Curve]]) -> str:
    curves = drawn[plot.metric]
    if plot.metric == curves[0].metric and plot.metric in ("logps/chosen", "logps/rejected"):
        return findings.OTHER_PAIRS
    if plot.metric == "logps/chosen":
        margins = drawn.get("rewards/margins", [])
        return findings.chosen(curves, margins)
    if plot.metric == "logps/rejected":
        return findings.rejected(curves, drawn.get("logps/chosen", []))
    return plot.say(curves, _within_a_sentence(plot.title))


def _frontier(groups: Sequence[Method], styles: Mapping[str, plots.Style]) -> dict[str, Any] | None:
    kl_name, reward_name = held_out(groups, "kl"), held_out(groups, "reward")
    both = [(k, r) for m in groups if (k := curve(m, kl_name)) and (r := curve(m, reward_name))]
    both = [(k, r) for k, r in both if plots.paths(k, r)]
    if not both:
        return None
    kl, reward = [k for k, _ in both], [r for _, r in both]
    looks = [styles[k.method] for k in kl]
    svg, same = plots.frontier("frontier", kl, reward, looks, ("KL to the reference, nats", "reward"))
    return {
        "title": "Reward bought with KL",
        "note": f"{reward_name} and {kl_name}: up and to the left is better. "
        "Small marks: where a run ends. Large: the mean of a method." + findings.coincide(same),
        "svg": svg,
        "says": findings.frontier(kl, reward),
    }


def _note(curves: Sequence[Curve], groups: Sequence[Method]) -> str:
    """Which rows a plot was drawn from, and who is not in it."""
    metric = curves[0].metric
    where = "held out" if metric.startswith("eval/") else "in training"
    lacking = [m.name for m in groups if m.name not in {c.method for c in curves}]
    partly = [
        f"{len(c.lines)} of {len(m.runs)} runs of {m.name}"
        for m in groups
        for c in curves
        if c.method == m.name and len(c.lines) < len(m.runs)
    ]
    words = f"{metric}, {where}."
    if lacking:
        words += f" Not measured by {', '.join(lacking)}."
    return words + (f" Measured by {', '.join(partly)}." if partly else "")


def _warnings(groups: Sequence[Method]) -> list[dict[str, str]]:
    """What a run's card warns of, and what its rows betray: numbers that are not finite, torn files, early ends."""
    found = []
    for method in groups:
        steps = [step for run in method.runs if (step := last_step(run)) is not None]
        for run in method.runs:
            where = f"{method.name}, {label(run)}"
            stated = run.card.get("warnings") or []
            texts = [str(text) for text in (stated if isinstance(stated, list | tuple) else [stated])]
            for metric, at in nonfinite(run).items():
                more = f" and {len(at) - 1} more" if len(at) > 1 else ""
                texts.append(f"{metric} was not finite at step {at[0]}{more}; the plots leave it out.")
            texts += [f"The last line of {name} was cut short and is left out." for name in run.torn]
            last = last_step(run)
            if last is None:
                texts.append("The run has logged no rows.")
            elif last < max(steps):
                texts.append(f"The run stops at step {last}; another of its method goes to {max(steps)}.")
            found += [{"where": where, "text": text} for text in texts]
    return found


def _differences(groups: Sequence[Method]) -> dict[str, Any] | None:
    """The settings in which methods differ, taken from the first run of each."""
    configs = {m.name: flat(m.runs[0].config) for m in groups}
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    silent = {"output_dir", "seed", "method", "name"}
    rows = [
        {"key": key, "values": [config.get(key, "-") for config in configs.values()]}
        for key in keys
        if key not in silent and len({config.get(key) for config in configs.values()}) > 1
    ]
    return {"methods": list(configs), "rows": rows} if rows else None


def _samples(groups: Sequence[Method], styles: Mapping[str, plots.Style]) -> dict[str, Any]:
    """The last responses of each method's first run that kept any, by prompt; prompts that most have come first."""
    sources, by_prompt = [], {}
    for method in groups:
        run = next((run for run in method.runs if run.samples), None)
        if run is None:
            continue
        step = max(sample["step"] for sample in run.samples)
        sources.append(f"{method.name}: {label(run)}, step {step}")
        for sample in run.samples:
            if sample["step"] == step:
                by_prompt.setdefault(str(sample["prompt"]), {}).setdefault(method.name, sample)
    prompts = sorted(by_prompt, key=lambda prompt: -len(by_prompt[prompt]))
    shown = []
    for prompt in prompts[:PROMPTS]:
        answers = by_prompt[prompt]
        reference = next((s["reference"] for s in answers.values() if s.get("reference") is not None), None)
        cells = [] if reference is None else [_cell("reference", None, str(reference), None)]
        for name, sample in answers.items():
            cells.append(_cell(name, plots.swatch(styles[name]), str(sample["response"]), sample.get("reward")))
        shown.append({"prompt": prompt, "cells": cells})
    return {"shown": shown, "all": len(prompts), "sources": sources}


def _cell(name: str, swatch: Markup | None, text: str, reward: Any) -> dict[str, Any]:
    value = number(float(reward)) if isinstance(reward, int | float) else None
    return {"name": name, "swatch": swatch, "text": text, "reward": value}


def _card(method: Method, run: RunData) -> dict[str, Any]:
    facts = {key: value for key, value in run.card.items() if key != "warnings"}
    config = yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True) if run.config else ""
    return {"method": method.name, "run": label(run), "facts": flat(facts), "config": config}


def _steps(method: Method) -> str:
    found = sorted({step for run in method.runs if (step := last_step(run)) is not None})
    return "-" if not found else str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _within_a_sentence(title: str) -> str:
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]


def _id(metric: str) -> str:
    return metric.replace("/", "-").replace("_", "-")
