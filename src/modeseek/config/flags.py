"""A run from a file and the flags over it: the file picks the parts, the flags turn the knobs."""

from collections.abc import Mapping, Sequence
from typing import Any

import tyro
import yaml

from modeseek.config.files import read_tree
from modeseek.config.foreign import OTHERS
from modeseek.config.run import Run
from modeseek.config.trees import from_dict, reward_tree


def load(config: str, flags: Sequence[str] = ()) -> Run:
    """A Run from a YAML file or the name of a shipped config, and flags that override it."""
    tree = read_tree(config)
    rest: list[str] = []
    tree = _apply_structural_flags(tree, list(flags), rest)
    run = from_dict(tree, where=config)
    return tyro.cli(tyro.conf.AvoidSubcommands[Run], default=run, args=_ours(rest), prog="modeseek train CONFIG")


def _apply_structural_flags(tree: dict[str, Any], flags: list[str], rest: list[str]) -> dict[str, Any]:
    """`--reward`, `--columns`, `--lora.*`, `--stop-on` and `--stages.NAME.OPTION`, which tyro cannot read."""
    tree = dict(tree)
    while flags:
        flag = flags.pop(0)
        name, equals, value = flag.partition("=")
        key = name.lstrip("-").replace("-", "_")
        structural = key in ("reward", "gold_reward", "report_to", "stop_on", "columns") or key.startswith(
            ("lora", "stages.", "before.")
        )
        if not name.startswith("--") or not structural or key in OTHERS:
            rest.append(flag)
            continue
        if not equals:
            if not flags:
                raise ValueError(f"{name} needs a value")
            value = flags.pop(0)
        if key in ("reward", "gold_reward"):
            tree[key] = reward_tree(value)
        elif key in ("report_to", "stop_on"):
            tree[key] = [] if value == "none" else value.split(",")
        elif key == "columns":
            tree[key] = _value(name, value)
        elif key.startswith("lora"):
            tree["lora"] = _lora(tree.get("lora"), key, value)
        else:
            part, stage, option = ([*key.split("."), "", ""])[:3]
            tree[part] = _tell_stage(list(tree.get(part, ())), part, stage, option, value)
    return tree


def _lora(now: Mapping[str, Any] | None, key: str, value: str) -> dict[str, Any] | None:
    if key == "lora":
        told = _value("--lora", value)
        if isinstance(told, dict) or told is None:
            return told
        return {} if told else None
    return {**(now or {}), key.partition(".")[2]: _value(f"--{key}", value)}


def _value(flag: str, said: str) -> Any:
    try:
        return yaml.safe_load(said)
    except yaml.YAMLError as error:
        raise ValueError(f"{flag}: {said!r} is not YAML: {' '.join(str(error).split())}") from None


def _tell_stage(stages: list[Any], part: str, name: str, option: str, value: str) -> list[Any]:
    for i, spec in enumerate(stages):
        known, options = (spec, {}) if isinstance(spec, str) else next(iter(spec.items()))
        if known == name and option:
            stages[i] = {name: {**(options or {}), option: _value(f"--{part}.{name}.{option}", value)}}
            return stages
    have = [s if isinstance(s, str) else next(iter(s)) for s in stages]
    raise ValueError(f"{part}.{name}.{option}: this method has no such stage; it has {', '.join(have) or 'none'}")


def _ours(flags: list[str]) -> list[str]:
    """Answer the flags of other tools before tyro says that it does not know them."""
    for flag in flags:
        name = flag.partition("=")[0].lstrip("-").replace("-", "_")
        if flag.startswith("--") and name in OTHERS:
            raise ValueError(f"--{name} is another tool's: {OTHERS[name]}")
    return flags
