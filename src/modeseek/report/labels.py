"""What people's labels are worth, as one page: `modeseek.label.summary.summarise` counts, `labels.html` shows."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modeseek.disk import write_bytes
from modeseek.report.template import filled


def write(summary: Mapping[str, Any], out: str | Path, title: str) -> Path:
    """One self-contained HTML page; the path of the file."""
    out = Path(out)
    write_bytes(out, render(summary, title).encode("utf-8", "replace"))
    return out


def render(summary: Mapping[str, Any], title: str) -> str:
    """The page as one string of HTML that loads nothing."""
    return filled(
        "labels.html",
        title=title,
        version=importlib.metadata.version("modeseek"),
        date=datetime.date.today().isoformat(),
        percent=lambda x: "-" if x is None or math.isnan(x) else f"{x:.0%}",
        number=lambda x: "-" if x is None or math.isnan(x) else f"{x:.2f}",
        says=_says(summary),
        **summary,
    )


def _says(summary: Mapping[str, Any]) -> list[str]:
    """The findings in words, each with its number."""
    return [_agreement(summary), *_biases(summary), *_haste(summary)]


def _agreement(summary: Mapping[str, Any]) -> str:
    alpha, overlap = summary["alpha"], summary["overlap"]
    if alpha is None:
        why = "no pair has labels of two people" if not overlap else "all shared labels are the same one"
        return f"Agreement is not known: {why}."
    value = f"Krippendorff's alpha is {alpha['value']:.2f} ({alpha['low']:.2f} to {alpha['high']:.2f})"
    # Krippendorff 2004, p. 241: 0.8 to rely on, 0.667 the lowest for tentative conclusions
    if alpha["low"] >= 0.8:
        verdict = "people agree well enough to rely on a single label"
    elif alpha["high"] < 0.667:
        verdict = "too low to rely on single labels: sharpen the guidelines, or take majorities"
    else:
        verdict = "not clearly above 0.8 nor below 0.67: more overlap would tell"
    return f"{value} over {overlap} pairs that two or more labelled: {verdict}."


def _biases(summary: Mapping[str, Any]) -> list[str]:
    found = list[str]()
    for person in summary["people"]:
        for key, what in (("first", "the response shown first"), ("longer", "the longer response")):
            share = person[key]
            if share is not None and share["p"] < 0.01 and share["labels"] >= 20:
                found.append(
                    f"{person['name']} took {what} in {share['value']:.0%} of {share['labels']} choices"
                    f" ({share['low']:.0%} to {share['high']:.0%})."
                    + (" Longer may also be better here: compare with other people." if key == "longer" else "")
                )
    return found


def _haste(summary: Mapping[str, Any]) -> list[str]:
    return [
        f"{person['name']} gave {person['fast']} of {person['labels']} labels faster than anybody can read."
        for person in summary["people"]
        if person["labels"] and person["fast"] / person["labels"] > 0.1
    ]
