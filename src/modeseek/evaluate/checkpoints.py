"""A policy as one of its run's checkpoints holds it: `RUN/checkpoints/step-00000120`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import yaml

from modeseek import checkpoint
from modeseek.build import load_policy
from modeseek.config import Run, from_dict
from modeseek.data.template import Template
from modeseek.policies.hf import HFPolicy
from modeseek.record import RUN


def run_of(name: str) -> Path | None:
    """The run that a checkpoint's folder lies in; None for any other word."""
    path = Path(name)
    if not path.name.startswith(checkpoint.PREFIX) or path.parent.name != "checkpoints":
        return None
    run = path.resolve().parent.parent
    return run if (path / "state.json").is_file() and (run / RUN).is_file() else None


def begun_with(run: Path) -> Run:
    """What a run was told."""
    return from_dict(yaml.safe_load((run / RUN).read_text(encoding="utf-8")))


def shape_of(name: str) -> str:
    """The folder or hub name that says a policy's tokenizer and context: itself, or its run's model."""
    run = run_of(name)
    inside = (run or Path(name)) / "model"
    if inside.is_dir():
        return str(inside)
    return name if run is None else begun_with(run).model


def open_policy(name: str, template: Template, *, max_new: int, run: Run) -> HFPolicy:
    """A policy by folder, run or hub name, or a run's checkpoint."""
    home = run_of(name)
    if home is None:
        return load_policy(shape_of(name), template, max_new=max_new, run=run)
    told = begun_with(home)
    how = dataclasses.replace(run, lora=told.lora, load_in_4bit=told.load_in_4bit)
    policy = load_policy(told.model, template, max_new=max_new, run=how)
    stored = checkpoint.weights(Path(name))
    trained = {n: x for n, x in stored.items() if not n.startswith("critic.")}
    checkpoint.load_weights(trained, {n: p for n, p in policy.named_parameters() if p.requires_grad})
    return policy
