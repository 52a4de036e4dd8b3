"""All sections over one look: a flat list of numbers with sentences, and four answers: what diagnosis.json holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from modeseek.diagnostics.coverage import coverage
from modeseek.diagnostics.geometry import geometry
from modeseek.diagnostics.look import Look
from modeseek.diagnostics.on_policyness import on_policyness, p_value
from modeseek.diagnostics.risk import risk
from modeseek.diagnostics.states import Verdict, told
from modeseek.diagnostics.tails import Found, Refused
from modeseek.diagnostics.verdicts import answers
from modeseek.diagnostics.words import words

SECTIONS: Mapping[str, str] = {
    "on_policyness": "Is the data what the model would write?",
    "coverage": "Does the data cover what the model writes?",
    "geometry": "Where does the reward lie for this model?",
    "risk": "What may a contrastive run do wrong?",
    "run": "What is the run doing?",
}


def diagnose(look: Look, *, beta: float = 0.1, seed: int = 0, run: Verdict | None = None) -> dict[str, Any]:
    """`estimates`: {section, name, value, low, high, n, sentence, ...}, value null where it is refused; `answers`.

    `run` is what a run's rows say, where the model is a run's.
    """
    sections: dict[str, list[Found]] = {
        "on_policyness": on_policyness(look, seed=seed),
        "coverage": coverage(look),
        "geometry": geometry(look, beta=beta),
        "risk": risk(look, beta=beta),
    }
    p = p_value(look, seed=seed)
    said = answers([found for every in sections.values() for found in every], p)
    return {
        "p_value": p,
        "answers": [vars(one) | {"why": list(one.why)} for one in said],
        "estimates": [row(section, found) for section, every in sections.items() for found in every],
        "run": None if run is None else told(run),
        "samples_per_prompt": look.own_logp.shape[1],
        "prompts": len(look),
        "beta": beta,
    }


def row(section: str, found: Found) -> dict[str, Any]:
    """A number as diagnosis.json keeps it."""
    shown = words(found)
    base = {"section": section, "name": found.name, "label": shown.label}
    if isinstance(found, Refused):
        return base | {"value": None, "low": None, "high": None, "n": 0, "sentence": shown.sentence, "share": False}
    return base | {
        "value": _finite(found.value),
        "low": _finite(found.low),
        "high": _finite(found.high),
        "n": found.n,
        "sentence": shown.sentence,
        "share": shown.share,
        "interval": found.interval,
    }


def _finite(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None
