"""A language model as a world: a method is a shipped config, a seed a training run, its rows what was held out.

Each run has a directory of its own, as `modeseek train` writes it, which `modeseek report` reads too. A run that was
cut off is resumed. The checkpoints of a finished run are removed; its model stays.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from modeseek import record
from modeseek.config import Run, from_dict, over, read_tree
from modeseek.studies.base import Dial, Row, Study, World
from modeseek.studies.load import Runs

SHORT = {"completions/mean_length": "length", "n": "prompts"}  # by the name in a run's rows
NAME = "lm"


@dataclass(frozen=True)
class LanguageModel:
    """Training runs on one model, data set and reward. Seeds share the split, the order of prompts and the weights."""

    model: str
    data: str
    reward: str
    runs: Runs
    stamp: str  # of model and data: sizes and times of their files
    folder: str = field(repr=False)  # where the runs are kept
    name: str = NAME
    judged_by: str = "reward"

    def methods(self) -> Sequence[str]:
        return self.runs.methods

    def grid(self, method: str) -> Mapping[str, Sequence[Dial]]:
        return dict(self.runs.grid)

    def run(self, method: str, seeds: Sequence[int], **dials: Dial) -> list[Row]:
        return [row for seed in seeds for row in self._rows(method, seed, dials)]

    def geometry(self) -> Mapping[str, np.ndarray]:
        return {}

    def config(self, method: str, seed: int, dials: Mapping[str, Dial]) -> Run:
        """The config of one run: the method's own keys under the study's options under the dials."""
        tree = read_tree(method)
        for options in (self.runs.options, self.runs.options_of.get(method, {}), _nested(dials)):
            tree = over(tree, options)
        where = hashlib.sha256(json.dumps([tree, seed, self.stamp], default=str).encode()).hexdigest()[:10]
        own = {"model": self.model, "data": self.data, "reward": self.reward, "seed": seed}
        folder = Path(self.folder) / f"{Path(method).stem}-{where}"
        return from_dict({**tree, **own, "output_dir": str(folder)}, where=method)

    def _rows(self, method: str, seed: int, dials: Mapping[str, Dial]) -> list[Row]:
        from modeseek.data.kept import kept_tokens
        from modeseek.runs import train
        from modeseek.train import NotFinite

        run = self.config(method, seed, dials)
        folder = Path(run.output_dir)
        lost: list[Row] = []
        if not (record.is_run(folder) and "steps" in record.read(folder).card):
            try:
                with kept_tokens():  # the next run of this process has the same texts
                    train(run, resume=(folder / record.ROWS).exists(), console=Console(quiet=True))
            except NotFinite:
                lost = [{"seed": seed, "step": run.max_steps, "reward": float("nan"), "kl": float("nan")}]
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return [*_held_out(record.read(folder), seed), *lost]


def study_of(name: str, runs: Runs, *, model: str, data: str, reward: str, folder: Path) -> Study:
    """The study of one model; it claims nothing, and its methods are compared pair by pair."""
    for key, value in (("model", model), ("data", data), ("reward", reward)):
        if not value:
            raise ValueError(f"--{key}: not given; a grid of training runs needs --model, --data and --reward")
    stamp = hashlib.sha256("\n".join([*_files(model), *_files(data)]).encode()).hexdigest()[:12]
    world = LanguageModel(model, data, reward, runs, stamp, str(folder))
    for method in runs.methods:
        world.config(method, 0, {})  # refuses what it does not know before anything is trained
    return Study(name, (world,), ())


def warnings(worlds: Sequence[World]) -> list[str]:
    """What the run cards warn of, each once with how many runs do, from the folders of grids of runs."""
    found: Counter[str] = Counter()
    for world in worlds:
        if isinstance(world, LanguageModel):
            folders = [path for path in sorted(Path(world.folder).glob("*")) if record.is_run(path)]
            for run in map(record.read, folders):
                found.update(f"{run.config.get('method')}: {text}" for text in run.card.get("warnings", []))
    return [f"{text} ({count} run{'s' if count > 1 else ''})" for text, count in found.items()]


def _held_out(run: record.RunData, seed: int) -> list[Row]:
    found: dict[int, dict[str, float | int]] = {}
    for row in run.rows:
        told = {
            name.removeprefix("eval/"): float(value)
            for name, value in row.items()
            if name.startswith("eval/") and not name.endswith(("/low", "/high")) and isinstance(value, int | float)
        }
        if told:
            step = int(row["step"])
            found.setdefault(step, {"seed": seed, "step": step}).update(
                {SHORT.get(name, name): value for name, value in told.items()}
            )
    return list(found.values())


def _files(path: str) -> list[str]:
    """Name, size and time of a file, or of those in a folder; a hub's name stands for itself."""
    here = Path(path)
    inside = sorted(p for p in here.rglob("*") if p.is_file()) if here.is_dir() else [here] if here.is_file() else []
    return [f"{p.name} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in inside] or [path]


def _nested(dials: Mapping[str, Dial]) -> dict[str, Any]:
    """`objective.beta: 0.1` as `objective: {beta: 0.1}`."""
    tree: dict[str, Any] = {}
    for name, value in dials.items():
        *path, last = name.split(".")
        at = tree
        for key in path:
            at = at.setdefault(key, {})
        at[last] = value
    return tree
