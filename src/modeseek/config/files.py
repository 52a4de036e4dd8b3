"""A config's keys from its file or its shipped name, with those that it extends."""

import re
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from modeseek.config.trees import nearest


def read_tree(config: str, _within: tuple[str, ...] = ()) -> dict[str, Any]:
    """The keys of a YAML file, or of a shipped config by name; those it `extends` underneath its own."""
    path, shipped = Path(config), resources.files("modeseek.configs").joinpath(f"{config}.yaml")
    if re.fullmatch(r"(full/)?[\w.-]+", config) and shipped.is_file():
        text = shipped.read_text()
    elif path.is_file():
        text = path.read_text()
    elif path.suffix in (".yaml", ".yml"):
        raise ValueError(f"config: no file {config}")
    else:
        known = [*names(), *recipes()]
        raise ValueError(f"config: no method {config!r}{nearest(config, known)}; there are {', '.join(names())}")
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{config}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{config}: expected keys and values, found a {type(tree).__name__}")
    under = tree.pop("extends", ())
    made: dict[str, Any] = {"method": path.stem}
    for base in [under] if isinstance(under, str) else under:
        if base in (*_within, config):
            raise ValueError(f"{config}.extends: {base} would be underneath itself")
        made = over(made, read_tree(base, (*_within, config)))
    return over(made, tree)


def over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of `above` on those of `below`, branch by branch; a part of another `type` is put in whole, lists too."""
    made = dict(below)
    for key, value in above.items():
        old = made.get(key)
        same = isinstance(old, Mapping) and isinstance(value, Mapping) and value.get("type") in (None, old.get("type"))
        made[key] = over(old, value) if same else value  # type: ignore[arg-type]
    return made


def names() -> list[str]:
    """The methods that are shipped as configs."""
    return _shipped(resources.files("modeseek.configs"))


def recipes() -> list[str]:
    """The published recipes, `full/NAME`: a method with its model, its data and its settings."""
    found = _shipped(resources.files("modeseek.configs").joinpath("full"))
    return [f"full/{name}" for name in found if not name.startswith("_")]


def _shipped(folder: Traversable) -> list[str]:
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))
