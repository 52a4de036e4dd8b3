"""A method as a run of `modeseek train`: the config that trains a candidate, and the one that is recommended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from modeseek import config
from modeseek.advise.methods import Arm, Method


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all candidates have in common."""

    model: str
    data: str
    reward: str  # as in --reward; empty: none
    split: str = "train"
    held_out: float = 0.1  # share of the prompts that no candidate trains on
    learning_rate: float = 0.0  # 0: the method's own
    max_length: int = 1024
    max_completion_length: int = 256
    lora: int = 16  # rank of the adapters; 0: the full weights
    device: str = "auto"
    seed: int = 0


def tree_of(arm: Arm, setup: Setup, *, steps: int, output_dir: Path) -> dict[str, Any]:
    """The keys of its YAML file; the dial of how long it trains counts in shares of the steps."""
    method = _method(arm)
    tree = {**config.read_tree(method.config), **method.changes}
    if method.dial == "max_steps":
        steps = max(1, round(arm.dial * steps))
    else:
        tree = turned(tree, method.dial, arm.dial)
    tree |= {
        "model": setup.model,
        "data": setup.data,
        "split": setup.split,
        "eval_size": setup.held_out,
        "output_dir": str(output_dir),
        "max_steps": steps,
        "max_length": setup.max_length,
        "max_completion_length": setup.max_completion_length,
        "device": setup.device,
        "seed": setup.seed,
        "skip_bad_rows": True,
    }
    if setup.learning_rate:
        tree["learning_rate"] = setup.learning_rate
    if setup.reward and method.scores:
        tree["reward"] = config.reward_tree(setup.reward)
    if setup.lora:
        tree["lora"] = {"r": setup.lora, "alpha": 2 * setup.lora}
    return tree


def turned(tree: Mapping[str, Any], dial: str, value: float) -> dict[str, Any]:
    """The tree with one dotted key set, inside `stages` too."""
    part, _, rest = dial.partition(".")
    if part == "stages":
        name, _, option = rest.partition(".")
        told = [{name: {**s[name], option: value}} if isinstance(s, Mapping) and name in s else s for s in tree[part]]
        return {**tree, part: told}
    return {**tree, part: {**tree[part], rest: value}}


def write(tree: Mapping[str, Any], path: Path) -> Path:
    """As a YAML file that `modeseek train` runs; what would be wrong with it is said now."""
    config.from_dict(tree, where=str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def _method(arm: Arm) -> Method:
    assert arm.method is not None  # doing nothing is no run
    return arm.method
