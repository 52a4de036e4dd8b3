"""What to collect: a plan, from a YAML file whose keys are the flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
import yaml

from modeseek.config import check, converter, parse_reward, reasons
from modeseek.rewards import AnyReward, Ensemble, Judge, Table

T = TypeVar("T")
PEOPLE = "people"
EXECUTION = (
    "max_requests",
    "timeout",
    "retries",
    "backoff",
    "workers",
    "max_unclear",
    "cache",
    "api_key_env",
    "sampler",
)
Precision = Literal["float32", "bfloat16", "float64"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sample from policies, choose pairs, label them, keep all of it in a store."""

    # more to sample from: folders, runs, hub names, vllm:URL, or chat models as URL#MODEL
    policies: tuple[str, ...] = ()
    sampler: str = ""  # vllm:URL, a server that is given the weights of the policies loaded here and samples for them
    prompts: int = 0  # prompts to answer, the file's first; more than it has: from its start again; 0: each once
    num_generations: int = 4  # responses of each policy to a prompt
    temperature: float = 1.0
    top_p: float = 1.0
    select: str = "best_worst"  # how pairs are chosen: modeseek collect --help lists the strategies
    features: Literal["words", "model"] = "words"  # what designs tell responses by; model: the first policy's states
    label: Annotated[str | dict[str, Any], tyro.conf.Suppress] = ""  # as in --reward, or people
    proxy: Annotated[str | dict[str, Any], tyro.conf.Suppress] = ""  # reward that chooses pairs; unset: what labels
    overlap: float = 0.1  # share of the pairs that several people label
    people: int = 2  # how many of them
    seed: int = 0
    store: str = "preferences.sqlite"
    chunk: int = 16  # prompts that are sampled, labelled and stored at once
    split: str = "train"  # of a hub data set
    max_length: int = 1024  # tokens of prompt and response together
    max_completion_length: int = 256  # tokens of a response
    stop_strings: tuple[str, ...] = ()  # texts that end a response too; it keeps them
    token_budget: int | None = None  # tokens in memory at once while sampling; unset: all of a chunk's
    api_key_env: str = ""  # environment variable with the key of the served policies
    dtype: Precision = "float32"
    device: str = "auto"
    trust_remote_code: bool = False  # run code that comes with a model

    def __post_init__(self) -> None:
        for name, least in (("prompts", 0), ("num_generations", 1), ("chunk", 1), ("people", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)}, expected at least {least}")
        if not 0 <= self.overlap <= 1:
            raise ValueError(f"overlap: {self.overlap}, expected a share between 0 and 1")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature {self.temperature} and top_p {self.top_p}: expected at least 0, and 0 to 1")
        if self.max_completion_length >= self.max_length:
            raise ValueError(
                f"max_completion_length: {self.max_completion_length}, expected less than max_length"
                f" ({self.max_length}), which counts prompt and response together"
            )


def from_dict(tree: Mapping[str, Any], where: str = "plan") -> Plan:
    """A Plan from plain data. Raises ValueError naming the key and what to write instead."""
    check(tree, Plan, where)
    for key in ("label", "proxy"):
        if not isinstance(tree.get(key) or "", str | Mapping):
            raise ValueError(f"{where}.{key}: {tree[key]!r}, expected a word as in --reward, or keys with a `type`")
    return structured({k: v for k, v in tree.items() if v is not None}, Plan, where)


def structured(tree: Mapping[str, Any], kind: type[T], where: str) -> T:
    """A dataclass from plain data, or what is wrong with it, in one line."""
    made = converter()
    made.register_structure_hook(str | dict[str, Any], lambda value, _: value)
    try:
        return made.structure(tree, kind)
    except Exception as error:  # cattrs groups what it found
        raise ValueError(reasons(error, where)) from None


def load(path: str) -> dict[str, Any]:
    """The keys of a plan's file."""
    if not Path(path).is_file():
        raise ValueError(f"plan: no file {path}")
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected keys and values, found a {type(tree).__name__}")
    return tree


def labeller(plan: Plan) -> AnyReward | None:
    """The reward that labels; None where people do."""
    if not plan.label:
        raise ValueError("label: none given; write a reward as in --label length:prefer=shorter, or --label people")
    return None if plan.label == PEOPLE else _reward(plan.label, "label")


def proxy(plan: Plan) -> AnyReward | None:
    """The reward that chooses pairs, where another labels them."""
    return _reward(plan.proxy, "proxy") if plan.proxy else None


def _reward(spec: str | dict[str, Any], key: str) -> AnyReward:
    config = parse_reward(spec, key)
    if isinstance(config, Table):
        raise ValueError(f"{key}.type: table reads token ids, but collecting reads text; take another")
    return kept(config, key)


def kept(config: AnyReward, key: str) -> AnyReward:
    """A reward whose judges keep their answers; refused where one does not."""
    members = config.members if isinstance(config, Ensemble) else (config,)
    if any(isinstance(one, Judge) and not one.cache for one in members):
        raise ValueError(f"{key}.cache: found none; name a file, so that no answer is ever paid for twice")
    return config


def identity(plan: Plan, policies: Sequence[str], prompts: str) -> dict[str, Any]:
    """What decides what is collected. Two plans of the same identity are one, whatever its files are called.

    `policies` names each by its content, and so does `prompts`. A budget, a time limit or a device is not part of it:
    more may be granted and the work goes on.
    """
    config, chooser = labeller(plan), proxy(plan)
    plain = lambda reward: without(converter().unstructure(reward, unstructure_as=AnyReward), EXECUTION)
    parts = {name: getattr(plan, name) for name in ("num_generations", "temperature", "top_p", "select", "seed")}
    parts |= {name: getattr(plan, name) for name in ("chunk", "max_length", "max_completion_length", "dtype")}
    parts |= {"stop_strings": list(plan.stop_strings)} if plan.stop_strings else {}
    if plan.features != "words":
        parts |= {"features": plan.features}
    if config is None:
        parts |= {"overlap": plan.overlap, "people": plan.people}
    return parts | {
        "policies": list(policies),
        "prompts": prompts,
        "prompts_wanted": plan.prompts,
        "label": PEOPLE if config is None else plain(config),
        "proxy": None if chooser is None else plain(chooser),
    }


def without(tree: Any, keys: Sequence[str]) -> Any:
    """A tree without these keys, however deep they stand."""
    if isinstance(tree, Mapping):
        return {k: without(v, keys) for k, v in tree.items() if k not in keys}
    return [without(v, keys) for v in tree] if isinstance(tree, list | tuple) else tree
