"""What a round collected, looked at before it is trained on: does it cover the policy that it came from?"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from modeseek.collect.judging import Judging
from modeseek.collect.rounds import Rounds, policy_of, seed_of
from modeseek.data.files import load
from modeseek.data.template import Template
from modeseek.data.tokenise import tokenise

SECTIONS = ("on_policyness", "coverage", "risk")
KEYS = ("name", "value", "low", "high", "n", "reason")
SAMPLES, PROMPTS = 8, 128


def check() -> None:
    """Refuse before anything is spent where this version has no diagnostics."""
    try:
        for name in ("look", *SECTIONS):
            importlib.import_module(f"modeseek.diagnostics.{name}")
    except ImportError as error:
        raise ValueError(f"diagnose: this version has no {error.name}; write diagnose: false") from error


def diagnosed(rounds: Rounds, number: int, current: int, judge: Judging) -> list[dict[str, Any]]:
    """The numbers of each section, or why one is refused: `section, name, value, low, high, n` or `reason`."""
    plan, model = rounds.collect, policy_of(rounds, current)
    template = Template.load(model, trust_remote_code=plan.trust_remote_code)
    policy = judge.policy(model, template)
    records = load(str(Path(rounds.output_dir) / f"round-{number}" / "data.jsonl"))
    lengths: dict[str, Any] = {"max_length": plan.max_length, "max_completion_length": plan.max_completion_length}
    data = tokenise(records, template, responses="best_worst", truncate_responses=True, **lengths)
    part = data.prompts(torch.arange(min(len(data), PROMPTS)))
    look = importlib.import_module("modeseek.diagnostics.look").look
    seed = seed_of(rounds, "diagnose", number)
    with torch.no_grad():
        seen = look(policy, part, samples=SAMPLES, seed=seed, batch_size=rounds.evaluate.batch_size)
    found = list[dict[str, Any]]()
    for section in SECTIONS:
        measured = getattr(importlib.import_module(f"modeseek.diagnostics.{section}"), section)(seen)
        found += [{"section": section} | {k: getattr(e, k) for k in KEYS if hasattr(e, k)} for e in measured]
    return found
