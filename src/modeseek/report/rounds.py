"""The page of `iterate`: what each round collected, trained and brought. It reads the rounds' directory only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import matplotlib.style
import yaml
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from modeseek.disk import write_bytes
from modeseek.report import plots
from modeseek.report.curves import number
from modeseek.report.template import filled

PAGE = "rounds.html"


def write(folder: str | Path) -> Path:
    """Write the page of a directory of rounds, and say where it is."""
    folder = Path(folder)
    page = folder / PAGE
    write_bytes(page, render(folder).encode("utf-8", "xmlcharrefreplace"))
    return page


def render(folder: Path) -> str:
    """The whole page as one string of HTML that loads nothing."""
    rounds = read(folder)
    config = yaml.safe_load((folder / "iterate.yaml").read_text(encoding="utf-8"))
    measured = [found for found in rounds if found["results"]]
    return filled(
        "rounds.html",
        title=folder.name,
        version=metadata.version("modeseek"),
        summary=summary(rounds, int(config["rounds"])),
        rows=[_row(found) for found in rounds],
        plots=[_figure(measured, *wanted) for wanted in PLOTS] if measured else [],
        served=any("://" in policy for policy in (config.get("collect") or {}).get("policies") or ()),
        diagnoses=[{"round": f["round"], "rows": _diagnosis(f["diagnosis"])} for f in rounds if f.get("diagnosis")],
        samples=[{"round": f["round"], "before": _called(f["policy"]), "samples": f["samples"]} for f in measured][-1:],
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
    )


def read(folder: Path) -> list[dict[str, Any]]:
    """What came of each round, in order."""
    paths = sorted(folder.glob("round-*/round.json"), key=lambda path: int(path.parent.name.partition("-")[2]))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def summary(rounds: Sequence[Mapping[str, Any]], wanted: int) -> str:
    """The first thing to know, in a sentence or two."""
    if not rounds:
        return "No round is over yet."
    kept = [found for found in rounds if found["promoted"]]
    many = f"{len(rounds)} of {wanted} round{'s' if wanted > 1 else ''} done"
    if not kept:
        return f"{many}. No policy was promoted: the one that the rounds began with is still the best."
    results = _results(kept[-1])
    then, now, wins = (results[name] for name in ("first/reference/reward", "first/reward", "first/win_rate"))
    said = (
        f"{many}. Round {kept[-1]['round']}'s policy is the last that was promoted: its reward on held-out prompts is"
        f" {number(now['value'])}, from {number(then['value'])} at the start, and it wins against the start"
        f" {wins['value']:.0%} of the time ({wins['low']:.0%} to {wins['high']:.0%})"
    )
    return f"{said}; its KL to the start is {number(results['kl']['value'])} nats." if "kl" in results else said + "."


PLOTS = (
    ("reward", "Reward on held-out prompts", "reward", "reference/reward"),
    ("kl", "KL to the policy of the start", "KL, nats", ""),
)


def _figure(rounds: Sequence[Mapping[str, Any]], name: str, title: str, axis: str, start: str) -> dict[str, Any]:
    """A number of each round's policy with its interval; promoted ones are filled."""
    known = [(found, _results(found)) for found in rounds if name in _results(found)]
    if not known:
        return {"title": title, "svg": Markup(""), "says": "Not measured."}
    look, words = plots.style(0), [number(results[name]["value"]) for _, results in known]
    with matplotlib.style.context(["default", plots.LOOK | {"svg.hashsalt": name}]):
        figure, axes = plots.canvas()
        for found, results in known:
            e, x = results[name], found["round"]
            face = look.colour if found["promoted"] else "white"
            if None not in (e["low"], e["high"]):  # one prompt has no interval
                axes.plot([x, x], [e["low"], e["high"]], color=look.colour, lw=1.6)
            axes.plot([x], [e["value"]], look.marker, color=look.colour, mfc=face, ms=8)
        if start and f"first/{start}" in known[0][1]:
            first = known[0][1][f"first/{start}"]["value"]
            axes.axhline(first, color=plots.COLOURS[1], ls="dashed", lw=1.4)
            words.insert(0, f"{number(first)} at the start")
        axes.set_xlabel("round")
        axes.set_ylabel(axis)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        says = f"{title}: {', then '.join(words)}."
        return {"title": title, "svg": plots.svg_of(figure, name), "says": says}


def _row(found: Mapping[str, Any]) -> dict[str, Any]:
    results, collected = _results(found), found["collected"]
    pairs, rows = collected.get("pairs", 0), found["data"].get("rows", 0)
    left_out = {name: n for name, n in found["data"].items() if name != "rows" and n}
    said = [f"{n} {name}" for name, n in left_out.items()]
    missing = {name: n for name, n in collected.items() if name not in ("prompts", "responses", "pairs") and n}
    said += [f"{n} {name}" for name, n in missing.items()]
    return {
        "round": found["round"],
        "from": _called(found["policy"]),
        "responses": collected.get("responses", 0),
        "pairs": pairs,
        "rows": rows,
        "left_out": "; ".join(said) or "nothing",
        "reward": _interval(results.get("reward")),
        "gain": _interval(results.get("reward/difference")),
        "win_rate": _interval(results.get("win_rate")),
        "kl": _interval(results.get("kl")),
        "length": _interval(results.get("completions/mean_length")),
        "promoted": "promoted" if found["promoted"] else "not promoted",
        "says": found["says"],
        "minutes": number(found.get("seconds", 0) / 60),
    }


def _diagnosis(found: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A row for each number that the diagnostics found, or refused."""
    cell = lambda e: _interval(e) if "value" in e else {"value": "refused", "interval": str(e.get("reason", ""))}
    return [{"section": e["section"].replace("_", " "), "name": e["name"], **cell(e)} for e in found]


def _interval(e: Mapping[str, Any] | None) -> dict[str, str]:
    if e is None:
        return {"value": "-", "interval": ""}
    bounds = f"{number(e['low'])} to {number(e['high'])}" if None not in (e["low"], e["high"]) else ""
    return {"value": number(e["value"]), "interval": bounds}


def _results(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {one["name"]: one for one in found["results"]}


def _called(policy: int) -> str:
    return f"round {policy}" if policy else "the start"
