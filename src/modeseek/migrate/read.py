"""Which tool's file it is and how its keys are found; the tools' own files say what they mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from modeseek.migrate import axolotl, llamafactory, openrlhf, trl
from modeseek.migrate.translation import Given, Translation

TOOLS: dict[str, ModuleType] = {"trl": trl, "llamafactory": llamafactory, "axolotl": axolotl, "openrlhf": openrlhf}
NAMES = {"trl": "TRL", "llamafactory": "LLaMA-Factory", "axolotl": "Axolotl", "openrlhf": "OpenRLHF"}


def translate(tool: str, path: str | Path, *, trainer: str = "", devices: int = 1) -> Translation:
    """A config of another tool as ours. `trainer` says which of TRL's it is for, where the keys do not.

    Raises ValueError where the file cannot be read or names a method that there is none of here.
    """
    if tool not in TOOLS:
        raise ValueError(f"tool: {tool!r}, expected one of {', '.join(TOOLS)}")
    if trainer and tool != "trl":
        raise ValueError(f"trainer: {trainer}, but only TRL's files need one; {NAMES[tool]}'s say it themselves")
    if devices < 1:
        raise ValueError(f"devices: {devices}, expected at least 1")
    keys = _keys(Path(path), tool)
    given, out = Given(NAMES[tool], keys, {}), Translation(NAMES[tool], str(path))
    says: Callable[[Translation, Given, str, int], None] = TOOLS[tool].translate
    says(out, given, trainer or (trl.trainer_of(given) if tool == "trl" else ""), devices)
    for name in given.left():
        why = TOOLS[tool].UNNEEDED.get(name)
        value = " ".join(str(keys[name]).split())[:60]
        if why is not None:
            out.unneeded.append(f"{name}: {why}")
        elif keys[name] not in (None, False, "", [], {}):
            out.lose(f"{name}: {value}", TOOLS[tool].LOST.get(name, "no equivalent is known"))
    out.run()  # what is printed loads
    return out


def _keys(path: Path, tool: str) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    text = path.read_text()
    if path.suffix in (".sh", ".txt") or tool == "openrlhf":
        return openrlhf.words(text)
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected keys and values, found a {type(tree).__name__}")
    return tree
