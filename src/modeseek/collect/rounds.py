"""What `iterate` is told: rounds of collecting, training and evaluating, from a YAML file."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml

from modeseek import config as runs_config
from modeseek.collect import plan as plans
from modeseek.collect.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How a round's policy is compared with the one before it."""

    prompts: str = ""  # held-out prompts: a file or hub name
    reward: Annotated[str | dict[str, Any], tyro.conf.Suppress] = ""  # unset: what labels, where that is a reward
    samples: int = 4  # responses to each prompt
    limit: int = 256  # prompts at most, the file's first; 0: all
    batch_size: int = 32  # prompts at once


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Rounds of collect, train, evaluate, and promote or stop. The keys of the YAML file are the flags."""

    start: Literal["", "fables"] = ""  # fables: a small model made on the spot, with its prompts; instead of model
    model: str = ""  # the first round's policy: folder, run or hub name
    prompts: str = ""  # what is sampled for: a file or hub name
    output_dir: str = "runs/iterate"
    rounds: int = 3
    seed: int = 0
    collect: Plan = field(default_factory=Plan)  # its policies are sampled from beside the round's own
    data: Literal["pairs", "rated"] = "pairs"  # what the method reads: pairs, or lists of responses with rewards
    keep: Literal["all", "last"] = "last"  # train on the data of all rounds so far, or of this one
    train: Annotated[dict[str, Any], tyro.conf.Suppress] = field(default_factory=dict)  # method, and keys of its run
    evaluate: Measure = field(default_factory=Measure)
    promote: Literal["better", "significant", "always"] = "better"  # on reward; on the win rate's interval; in any case
    patience: int = 1  # rounds in a row that may bring nothing before it stops
    diagnose: bool = False  # look at what was collected before training on it

    def __post_init__(self) -> None:
        for name in ("rounds", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}, expected at least 1")
        if self.start and self.model:
            raise ValueError(f"model: {self.model}, but start: {self.start} makes one; leave one of them out")


def names() -> list[str]:
    """The rounds that are shipped as configs."""
    folder = resources.files("modeseek.configs").joinpath("iterate")
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def read_tree(word: str) -> dict[str, Any]:
    """The keys of a YAML file, or of a shipped config by name: quick, or configs/iterate/quick.yaml."""
    path = Path(word)
    if path.is_file():
        return plans.load(word)
    if path.stem in names() and (path.suffix in ("", ".yaml")):
        shipped = resources.files("modeseek.configs").joinpath("iterate", f"{path.stem}.yaml")
        return yaml.safe_load(shipped.read_text(encoding="utf-8"))
    raise ValueError(f"config: no file {word}; there are {', '.join(names())}")


def from_dict(tree: Mapping[str, Any], where: str = "iterate") -> Rounds:
    """Rounds from plain data. Raises ValueError naming the key and what to write instead."""
    tree = dict(tree)
    runs_config.check(tree, Rounds, where)
    train = dict(tree.pop("train", None) or {})
    method = train.get("method")
    if not isinstance(method, str) or method not in runs_config.names():
        raise ValueError(f"{where}.train.method: {method!r}, expected one of {', '.join(runs_config.names())}")
    told = dict(tree.pop("collect", None) or {})
    for key in ("store", "seed"):
        if key in told:
            raise ValueError(f"{where}.collect.{key}: each round has its own; leave it out")
    collect = plans.from_dict(told, f"{where}.collect")
    measure = plans.structured(tree.pop("evaluate", None) or {}, Measure, f"{where}.evaluate")
    made = plans.structured(tree, Rounds, where)
    return dataclasses.replace(made, collect=collect, train=train, evaluate=measure)


def run_tree(rounds: Rounds, told: Mapping[str, Any]) -> dict[str, Any]:
    """A round's training run: the shipped method, what the rounds change of it, what the round decides."""
    own = {k: v for k, v in rounds.train.items() if k != "method"}
    for key in ("model", "data", "output_dir", "seed"):
        if key in own:
            raise ValueError(f"train.{key}: each round has its own; leave it out")
    lengths = {k: getattr(rounds.collect, k) for k in ("max_length", "max_completion_length", "device", "dtype")}
    return runs_config.over(runs_config.read_tree(rounds.train["method"]) | lengths, own) | dict(told)


def apply_flags(tree: dict[str, Any], flags: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """`--train.KEY VALUE`, `--collect.label SPEC` and the like into the tree; the other flags are for tyro."""
    rest, flags = list[str](), list(flags)
    words = ("--collect.label", "--collect.proxy", "--evaluate.reward")
    while flags:
        name, equals, value = flags.pop(0).partition("=")
        if not name.startswith("--train.") and name not in words:
            rest.append(name + equals + value)
            continue
        if not equals:
            if not flags:
                raise ValueError(f"{name} needs a value")
            value = flags.pop(0)
        keys = name.removeprefix("--").split(".")
        change: Any = value if name in words else yaml.safe_load(value)
        for key in reversed(keys):
            change = {key: change}
        tree = runs_config.over(tree, change)
    return tree, rest


def policy_of(rounds: Rounds, number: int) -> str:
    """The folder of a round's policy; 0 is the one that the first round begins with."""
    if number:
        return str(Path(rounds.output_dir) / f"round-{number}" / "run" / "model")
    inside = Path(rounds.model) / "model"
    return str(inside) if inside.is_dir() else rounds.model


def called(number: int) -> str:
    """What the store calls a round's policy."""
    return f"round {number}" if number else "start"


def seed_of(rounds: Rounds, part: str, number: int) -> int:
    """The seed of a part of a round."""
    return int.from_bytes(hashlib.sha256(f"{rounds.seed} {part} {number}".encode()).digest()[:4]) >> 1
