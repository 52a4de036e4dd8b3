"""A run from plain data and back: unknown keys and values are answered with the nearest known one."""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import cattrs
import yaml
from cattrs.v import format_exception

from modeseek.config.foreign import OTHERS, OTHERS_OF
from modeseek.config.run import Run, StageSpec
from modeseek.rewards import AnyReward

_NAMES = {
    "ChiPO": "chipo",
    "FDPO": "f_dpo",
    "HyPO": "hypo",
    "LDDPO": "ld_dpo",
    "NegativeBoN": "negative_bon",
    "SLiC": "slic",
    "SimPO": "simpo",
    "SquaredPO": "squared_po",
    "UnpairedAOT": "unpaired_aot",
    "WithKL": "with_kl",
    "WithSFT": "with_sft",
}


def snake(cls: type) -> str:
    """DPO -> dpo, PolicyGradient -> policy_gradient, HyPO -> hypo."""
    name = _NAMES.get(cls.__name__, cls.__name__)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def converter() -> cattrs.Converter:
    """How a Run goes to and from plain dicts; a union of dataclasses carries a `type`, wherever it stands."""
    made = cattrs.Converter(forbid_extra_keys=True)
    is_union = lambda hint: len(_dataclasses(hint)) > 1

    def structure(value: Any, union: Any) -> Any:
        if value is None and type(None) in get_args(_bare(union)):
            return None
        assert isinstance(value, Mapping)  # _check_union has seen it
        kinds = {snake(c): c for c in _dataclasses(union)}
        return _tagged(made, value, kinds)

    def unstructure(value: Any) -> Any:
        return None if value is None else {"type": snake(type(value)), **made.unstructure(value)}

    made.register_structure_hook_func(is_union, structure)
    made.register_unstructure_hook_func(is_union, unstructure)
    made.register_structure_hook(bool, _strict_bool)
    made.register_structure_hook(int, _strict_int)
    made.register_structure_hook(StageSpec, _stage)
    made.register_unstructure_hook(StageSpec, lambda s: {s.name: s.options} if s.options else s.name)
    return made


def _tagged(made: cattrs.Converter, tree: Mapping[str, Any], kinds: Mapping[str, type]) -> Any:
    return made.structure({k: v for k, v in tree.items() if k != "type"}, kinds[tree["type"]])


def from_dict(tree: Mapping[str, Any], where: str = "run") -> Run:
    """A Run from plain data. Raises ValueError naming the key and what to write instead."""
    tree = dict(tree)
    for key in ("reward", "gold_reward"):
        if isinstance(tree.get(key), str):
            tree[key] = reward_tree(tree[key])
    check(tree, Run, where)
    try:
        return converter().structure(tree, Run)
    except ValueError as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # cattrs groups what it found
        raise ValueError(reasons(error, where)) from None


def to_dict(run: Run) -> dict[str, Any]:
    """The inverse of `from_dict`: what run.yaml stores."""
    return converter().unstructure(run, unstructure_as=Run)


def reward_tree(spec: str) -> dict[str, Any]:
    """`length`, `length:prefer=shorter`, `{type: regex, pattern: ab+}` or a file: a reward from the command line."""
    if spec.startswith("{"):
        return _yaml(spec, "reward")
    if Path(spec).suffix in (".yaml", ".yml") and Path(spec).is_file():
        return _yaml(Path(spec).read_text(), f"reward: {spec}")
    kind, _, options = spec.partition(":")
    known = {snake(c): c for c in _dataclasses(AnyReward)}.get(kind)
    hints = typing.get_type_hints(known) if known else {}
    tree: dict[str, Any] = {"type": kind}
    parts = [part for part in options.split(",") if part]
    if odd := [part for part in parts if "=" not in part]:
        raise ValueError(
            f"reward: {odd[0]!r} in {spec!r}, expected key=value as in length:prefer=shorter; a value with a comma "
            "in it is written as in '{type: keyword, words: [please, thanks]}'"
        )
    for part in parts:
        key, _, value = part.partition("=")
        tree[key] = value if hints.get(key) is str else _yaml(value, f"reward.{key}")  # [ab]+ is a text, not a list
    return tree


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not YAML: {' '.join(str(error).split())}") from None


def parse_reward(spec: str | Mapping[str, Any], where: str = "reward") -> AnyReward:
    """A reward's config from the command line's word or a file's keys."""
    tree = dict(reward_tree(spec) if isinstance(spec, str) else spec)
    _check_union(tree, AnyReward, where)
    try:
        return converter().structure(tree, AnyReward)  # type: ignore[arg-type]
    except Exception as error:
        raise ValueError(reasons(error, where)) from None


def check(tree: Any, cls: type, where: str) -> None:
    """Unknown keys, with the nearest known one, before cattrs sees them."""
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where}: {tree!r}, expected keys and values")
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    for key, value in tree.items():
        if key not in known:
            others = OTHERS if cls is Run else OTHERS_OF.get(where.rpartition(".")[2], {})
            said = f"; {others[key]}" if key in others else nearest(str(key), known) or _all(known)
            raise ValueError(f"{where}.{key}: no such key{said}")
        kinds = _dataclasses(hints[key])
        if value is None:
            continue  # cattrs says where a null cannot stand
        if len(kinds) > 1:
            _check_union(value, hints[key], f"{where}.{key}")
        elif kinds and isinstance(value, Mapping):
            check(value, kinds[0], f"{where}.{key}")
        elif part_of := _parts_of(hints[key]):
            for i, part in enumerate(value if isinstance(value, list | tuple) else ()):
                check(part, part_of, f"{where}.{key}[{i}]")
        elif get_origin(hints[key]) is Literal and value not in get_args(hints[key]):
            choices = [str(c) for c in get_args(hints[key])]
            raise ValueError(
                f"{where}.{key}: {value!r}{nearest(str(value), choices)}; choose from {', '.join(choices)}"
            )


def _check_union(tree: Any, union: Any, where: str) -> None:
    if tree is None:
        return
    kinds = {snake(c): c for c in _dataclasses(union)}
    if not isinstance(tree, Mapping) or "type" not in tree:
        raise ValueError(f"{where}: {tree!r}, expected keys with a `type`, one of {', '.join(sorted(kinds))}")
    kind = tree["type"]
    if kind not in kinds:
        near = nearest(str(kind), list(kinds))
        raise ValueError(f"{where}.type: {kind!r}{near}; choose from {', '.join(sorted(kinds))}")
    check({k: v for k, v in tree.items() if k != "type"}, kinds[kind], where)


def _dataclasses(hint: Any) -> list[type]:
    hint = _bare(hint)
    members = get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else [hint]
    return [m for m in members if isinstance(m, type) and dataclasses.is_dataclass(m)]


def _parts_of(hint: Any) -> type | None:
    """What a list of parts, such as a mixture, is of; stages are written in a way of their own."""
    inside = get_args(_bare(hint))[:1] if get_origin(_bare(hint)) is tuple else ()
    return next((kind for kind in inside if kind in _dataclasses(kind) and kind is not StageSpec), None)


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, 1, 0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _all(known: Sequence[str]) -> str:
    """Every key, where a reader would take them in."""
    return f"; there are {', '.join(known) or 'none'}" if len(known) <= 12 else ""


def reasons(error: Exception, where: str) -> str:
    """What cattrs found, in one line; our own words where a dataclass refused its values."""

    def words(found: BaseException, kind: Any) -> str:
        ours = isinstance(found, ValueError) and not isinstance(found, ExceptionGroup)
        return str(found) if ours and str(found) else format_exception(found, kind)

    return "; ".join(dict.fromkeys(cattrs.transform_error(error, path=where, format_exception=words)))


def _strict_bool(value: Any, _: type) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r}, expected true or false")
    return value


def _strict_int(value: Any, _: type) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(f"{value!r}, expected a whole number")
    return int(value)


def _stage(value: Any, _: type) -> StageSpec:
    if isinstance(value, str):
        return StageSpec(name=value)
    if isinstance(value, Mapping) and len(value) == 1:
        name, options = next(iter(value.items()))
        if isinstance(name, str) and isinstance(options, Mapping):
            return StageSpec(name=name, options=dict(options))
    raise ValueError(f"stage {value!r}, expected a name or `name: {{option: value}}`")
