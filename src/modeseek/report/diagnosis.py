"""diagnosis.json as a page: four answers on the first screen, every number with its interval and sentence below."""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from modeseek.report.template import filled

SECTIONS = {
    "on_policyness": "Is the data what the model would write?",
    "coverage": "Does the data cover what the model writes?",
    "geometry": "Where does the reward lie for this model?",
    "risk": "What may a contrastive run do wrong?",
}
SIGNS = {"good": "\N{CHECK MARK}", "mixed": "!", "bad": "\N{MULTIPLICATION SIGN}"}  # for those who see no colour
_WIDTH, _HEIGHT, _PAD = 120, 14, 4


def render(found: Mapping[str, Any]) -> str:
    """The whole page as one string of HTML that loads nothing."""
    sections = [
        {"id": name, "heading": heading, "rows": [_row(row) for row in found["estimates"] if row["section"] == name]}
        for name, heading in SECTIONS.items()
    ]
    return filled(
        "diagnosis.html",
        found=found,
        sections=[section for section in sections if section["rows"]],
        signs=SIGNS,
        version=importlib.metadata.version("modeseek"),
        date=datetime.date.today().isoformat(),
    )


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    known = row["value"] is not None
    return {
        "label": row["label"],
        "name": row["name"],
        "sentence": row["sentence"],
        "value": _number(row["value"]) if known else "-",
        "interval": f"{_number(row['low'])} to {_number(row['high'])}" if known else "",
        "bar": _bar(row) if known and row["share"] else Markup(""),
    }


def _number(x: float | None) -> str:
    return (
        "?" if x is None else f"{x:.3g}".replace("-", "\N{MINUS SIGN}").replace("e\N{MINUS SIGN}0", "e\N{MINUS SIGN}")
    )


def _bar(row: Mapping[str, Any]) -> Markup:
    """A share on the line from 0 to 1: its interval thick, itself a dot, one half marked."""
    at = lambda x: _PAD + (_WIDTH - 2 * _PAD) * min(max(x, 0.0), 1.0)
    low, high = (row[end] if row[end] is not None else row["value"] for end in ("low", "high"))
    middle = _HEIGHT / 2
    return Markup(
        f'<svg class="bar" viewBox="0 0 {_WIDTH} {_HEIGHT}" aria-hidden="true">'
        f'<path d="M{_PAD} {middle}H{_WIDTH - _PAD}" stroke="#c9c9c9"/>'
        f'<path d="M{at(0.5):.1f} 2V{_HEIGHT - 2}" stroke="#c9c9c9"/>'
        f'<path d="M{at(low):.1f} {middle}H{at(high):.1f}" stroke="#56B4E9" stroke-width="5"/>'
        f'<circle cx="{at(row["value"]):.1f}" cy="{middle}" r="4" fill="#0072B2"/></svg>'
    )
