"""The shapes of known models, shipped as small files, so that a plan needs neither the hub nor the weights."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from modeseek.config import read_tree, recipes


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A transformers config as plain data, and what stands beside it."""

    name: str  # what was asked for
    config: dict[str, Any]  # keys of config.json, `model_type` among them
    parameters: int | None = None  # as published; unset: not known
    template: str | None = None  # a chat template that renders turns as the model's own does


@functools.cache
def shipped() -> dict[str, Architecture]:
    """The known models by hub name."""
    folder, found = resources.files("modeseek.configs").joinpath("architectures"), {}
    for file in sorted(folder.iterdir(), key=lambda f: f.name):
        if not file.name.endswith(".yaml"):
            continue
        told = yaml.safe_load(file.read_text())
        template = told.get("template") and folder.joinpath(f"{told['template']}.jinja").read_text().strip()
        for name in told["names"]:
            found[name] = Architecture(
                name=name, config=told["config"], parameters=told["parameters"], template=template
            )
    return found


def architecture(model: str) -> Architecture:
    """Of a known hub name, of a folder with a config.json, or of the model that a shipped recipe will write.

    Raises ValueError where none of these is to be had.
    """
    if not model:
        raise ValueError("model: none given; write --model FOLDER_OR_HUB_NAME")
    if model in shipped():
        return shipped()[model]
    folder = Path(model)
    base = _base_of_adapter(folder)
    if base is not None:
        return architecture(base)
    if (folder / "config.json").is_file():
        config = json.loads((folder / "config.json").read_text())
        return Architecture(name=model, config=config, template=_template_in(folder))
    recipe = written_by(model)
    if recipe is not None:
        return architecture(read_tree(recipe)["model"])
    raise ValueError(
        f"model: {model} is neither a folder with a config.json nor a known model; known are "
        f"{', '.join(shipped())}: download its config.json into a folder and name that"
    )


def written_by(folder: str) -> str | None:
    """The recipe whose run writes this folder: runs/full/NAME/model is written by full/NAME."""
    for recipe in recipes():
        if Path(folder).as_posix() == f"runs/{recipe}/model":
            return recipe
    return None


def _base_of_adapter(folder: Path) -> str | None:
    file = folder / "adapter_config.json"
    return json.loads(file.read_text())["base_model_name_or_path"] if file.is_file() else None


def _template_in(folder: Path) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text()
    file = folder / "tokenizer_config.json"
    told = json.loads(file.read_text()).get("chat_template") if file.is_file() else None
    return told if isinstance(told, str) else None
