"""Rounds of collect, diagnose, train, evaluate, and promote or stop; killed at any moment, they go on and end alike.

    output_dir/iterate.yaml          what was asked for, written once
    output_dir/preferences.sqlite    what every round collected
    output_dir/round-1/data.jsonl    what the round trained on
    output_dir/round-1/run/          its training run: `modeseek report` reads it
    output_dir/round-1/round.json    what came of it; a round is over when this is there
    output_dir/model/                the last policy that was promoted
    output_dir/rounds.html           the page

A round's chance comes from the seed and its number. Its reference is the policy that it began with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from modeseek import config as runs_config
from modeseek import record
from modeseek.collect.alone import alone
from modeseek.collect.chunks import collect
from modeseek.collect.diagnosed import check as check_diagnostics
from modeseek.collect.diagnosed import diagnosed
from modeseek.collect.exports import export
from modeseek.collect.judging import ACCOUNT, Judging, reward_of
from modeseek.collect.plan import EXECUTION, without
from modeseek.collect.rounds import Rounds, called, policy_of, run_tree, seed_of
from modeseek.collect.store import Store
from modeseek.config import converter
from modeseek.disk import write_json, write_yaml
from modeseek.report.rounds import write
from modeseek.runs import train

FREE = ("rounds", "patience", "output_dir")  # what may change when the rounds go on


class Waiting(Exception):
    """People have labels to give before the rounds can go on."""


def iterate(rounds: Rounds, console: Console | None = None) -> Path:
    """Run the rounds that are left; the page. Raises Waiting where people's labels are wanted first."""
    console = console or Console(stderr=True)
    folder = Path(rounds.output_dir)
    _check(rounds)
    _same(folder, rounds)
    done = list[dict[str, Any]]()
    with alone(str(folder / "iterate.lock"), f"output_dir: {folder}"), contextlib.closing(Judging(rounds)) as judge:
        for number in range(1, rounds.rounds + 1):
            kept = folder / f"round-{number}" / "round.json"
            if kept.is_file():
                found = json.loads(kept.read_text(encoding="utf-8"))
            else:
                if stopped(done, rounds):
                    break
                found = one_round(number, rounds, _current(done), judge, console)
                write_json(kept, found)
            done.append(found)
            write(folder)
            console.print(f"round {number}: {found['says']}", highlight=False)
        _deliver(folder, _current(done))
    return write(folder)


def one_round(number: int, rounds: Rounds, current: int, judge: Judging, console: Console) -> dict[str, Any]:
    """Everything of a round, each part of it left alone where it is there already."""
    folder, begun = Path(rounds.output_dir) / f"round-{number}", time.time()
    start = policy_of(rounds, current)
    collected = collect(
        dataclasses.replace(
            rounds.collect,
            policies=(start, *rounds.collect.policies),
            store=str(folder.parent / "preferences.sqlite"),
            seed=seed_of(rounds, "collect", number),
        ),
        rounds.prompts,
        names=[called(current), *rounds.collect.policies],
        console=console,
        account=ACCOUNT,
    )
    if collected.waiting:
        raise Waiting(
            f"round {number}: {collected.waiting} labels are wanted; run `modeseek label {collected.store}`, then this"
            " again"
        )
    found: dict[str, Any] = {"round": number, "policy": current, "plan": collected.plan, "collected": collected.counts}
    plans = [collected.plan] if rounds.keep == "last" else [*_plans(folder.parent, number), collected.plan]
    with Store(collected.store) as store:
        exported = export(store, folder / "data.jsonl", shape=rounds.data, plans=plans)
    found |= {"data": dict(exported), "plans": plans}
    if not exported["rows"]:
        return found | {"promoted": False, "results": [], "says": "nothing to learn from: no pair has a winner"}
    if rounds.diagnose:
        found["diagnosis"] = diagnosed(rounds, number, current, judge)
    _trained(rounds, number, start, console)
    found |= judge.judged(number, current)
    return found | {"seconds": round(time.time() - begun, 1)}


def stopped(done: Sequence[dict[str, Any]], rounds: Rounds) -> bool:
    """Whether the last rounds brought nothing, as many of them as patience allows."""
    last = done[-rounds.patience :]
    return len(last) == rounds.patience and not any(found["promoted"] for found in last)


def _trained(rounds: Rounds, number: int, start: str, console: Console) -> None:
    """The round's run, gone on with where it was left."""
    folder = Path(rounds.output_dir) / f"round-{number}"
    out = folder / "run"
    if (out / "model").is_dir():
        return
    own = {"model": start, "data": str(folder / "data.jsonl"), "output_dir": str(out)}
    run = runs_config.from_dict(run_tree(rounds, {**own, "seed": seed_of(rounds, "train", number)}), "train")
    train(run, resume=(out / record.ROWS).exists(), console=console)
    if not (out / "model").is_dir():
        raise KeyboardInterrupt


def _check(rounds: Rounds) -> None:
    """What cannot go together, said before anything is spent."""
    for key, found in (("model", rounds.model), ("prompts", rounds.prompts)):
        if not found:
            raise ValueError(f"{key}: none given; write --{key} FILE_OR_HUB_NAME, or start: fables")
    if not rounds.evaluate.prompts:
        raise ValueError("evaluate.prompts: none given; name held-out prompts: a policy is promoted on those")
    reward_of(rounds)
    if rounds.diagnose:
        check_diagnostics()
    own = {"model": rounds.model, "data": "data.jsonl", "output_dir": "run", "seed": 0}
    runs_config.from_dict(run_tree(rounds, own), "train")


def _same(folder: Path, rounds: Rounds) -> None:
    """Rounds that go on must be those that were begun; how many there are and what they may spend may change."""
    path = folder / "iterate.yaml"
    now = converter().unstructure(rounds)
    if path.is_file():
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
        fixed = lambda tree: {k: v for k, v in without(tree, EXECUTION).items() if k not in FREE}
        for key, one, other in _differing(fixed(before), fixed(json.loads(json.dumps(now)))):
            raise ValueError(f"{key}: {path} says {one!r} and now it is {other!r}; name another output_dir")
    folder.mkdir(parents=True, exist_ok=True)
    write_yaml(path, now)


def _differing(before: Any, now: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The dotted keys under which two trees say different things."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted(before.keys() | now.keys()):
            yield from _differing(before.get(key), now.get(key), f"{where}.{key}" if where else key)
    elif before != now:
        yield where, before, now


def _current(done: Sequence[dict[str, Any]]) -> int:
    return next((found["round"] for found in reversed(done) if found["promoted"]), 0)


def _plans(folder: Path, number: int) -> list[str]:
    said = [json.loads((folder / f"round-{n}" / "round.json").read_text(encoding="utf-8")) for n in range(1, number)]
    return [found["plan"] for found in said]


def _deliver(folder: Path, number: int) -> None:
    """Copy the policy that was promoted last beside the rounds, whole or not at all."""
    if not number:
        return
    draft, target = folder / "model.draft", folder / "model"
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(folder / f"round-{number}" / "run" / "model", draft)
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
