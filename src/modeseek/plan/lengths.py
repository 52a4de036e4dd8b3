"""How long prompts and responses are, and how many rows there are: from the data where they are there, else assumed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeseek.config import Offline, OnPolicy, Run
from modeseek.plan.rows import TRAIN_ROWS

FILL = 0.5  # of the longest allowed, where nothing better is known


@dataclass(frozen=True, kw_only=True)
class Length:
    """Tokens: their mean over rows, and the most."""

    mean: float
    most: float


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Of a run's prompts, its data's responses and the responses it will sample; `rows` may be unknown."""

    prompt: Length
    told: Length
    sampled: Length
    rows: int | None
    said: str  # where the numbers come from

    def busiest(self, prompts: int, mean: float, most: float) -> float:
        """Tokens of the fullest of many minibatches of so many prompts: three standard deviations above the mean,
        the longest row being taken for three of one row's. One prompt: the longest."""
        return prompts * mean + math.sqrt(prompts) * (most - mean)


def lengths(run: Run, fill: float = FILL) -> Lengths:
    """From the data's file and the model's tokenizer where both are here; from max_length else."""
    if not 0 < fill <= 1:
        raise ValueError(f"fill: {fill}, expected above 0 and at most 1")
    paths = [m.path for m in run.mixture] or [run.data]
    here = all(path and Path(path).is_file() for path in paths)
    tokenised = here and (Path(run.model) / "tokenizer_config.json").is_file()
    return _measured(run, fill) if tokenised else _assumed(run, fill, paths)


def _assumed(run: Run, fill: float, paths: list[str]) -> Lengths:
    response = Length(mean=fill * run.max_completion_length, most=run.max_completion_length)
    room = run.max_length - run.max_completion_length
    rows = [TRAIN_ROWS.get((path, run.split if not run.mixture else m.split)) for path, m in _with_parts(run, paths)]
    known = None if None in rows else sum(n for n in rows if n is not None)
    if known is not None:
        known -= round(run.eval_size * known if run.eval_size < 1 else run.eval_size) * (not run.eval_data)
    return Lengths(
        prompt=Length(mean=fill * room, most=room),
        told=response,
        sampled=response,
        rows=known,
        said=f"assumed: {fill:.0%} of max_length {run.max_length} and max_completion_length {run.max_completion_length}"
        + (", rows as published" if known else ", rows unknown"),
    )


def _with_parts(run: Run, paths: list[str]) -> list[tuple[str, Any]]:
    return [(m.path, m) for m in run.mixture] or [(paths[0], run)]


def _measured(run: Run, fill: float) -> Lengths:
    from modeseek.build import load_data
    from modeseek.data.template import Template

    train, _, _ = load_data(run, Template.load(run.model, trust_remote_code=run.trust_remote_code), None)
    prompt, told = train.prompt.lengths, train.response.lengths
    limit = run.max_completion_length
    mean = float(told.mean()) if len(told) else fill * limit
    return Lengths(
        prompt=Length(mean=float(prompt.mean()), most=float(prompt.max())),
        told=Length(mean=mean, most=float(told.max()) if len(told) else limit),
        sampled=Length(mean=mean if len(told) else fill * limit, most=limit),
        rows=len(train),
        said="from the data" + ("" if len(told) else f"; responses assumed: {fill:.0%} of max_completion_length"),
    )


def responses(run: Run) -> tuple[int, int]:
    """Responses to a prompt that are learnt from in a step: the data's, and the policy's own."""
    kept = 2 if run.responses == "best_worst" else 1
    told = 0 if isinstance(run.source, OnPolicy) else kept
    sampled = 0 if isinstance(run.source, Offline) else run.source.num_generations
    names = {spec.name for spec in run.stages}
    if names & {"chosen"}:
        told = min(told, 1)
    if names & {"best"}:
        sampled = 1
    if names & {"best_worst", "best_second", "best_random", "best_sigma"}:
        sampled = 2
    return told, sampled
