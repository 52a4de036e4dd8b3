"""Files that are replaced whole or grow by whole lines, of numbers, text, lists and mappings.

JSON has no NaN: such a number is stored as null, and in a line `"nonfinite": {"loss": "nan"}` beside it keeps which
one it was.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file whole: at every moment it is the old one or the new one. Its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    if os.name == "posix":  # the new name itself must reach the disk
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file whole. A number that is not finite becomes null."""
    write_bytes(path, _dumps(value, indent=2) + b"\n")


def write_yaml(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a YAML file whole, its keys in the order given."""
    text = yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=True)
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    lines = []
    for row in map(plain, rows):
        if type(row.get("step")) is not int:
            raise ValueError(f"{path.name}: a row needs `step`, a whole number; found {row.get('step')!r}")
        lost = {k: str(v) for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)}
        lines.append(_dumps(row | ({"nonfinite": lost} if lost else {})) + b"\n")
    with path.open("ab") as file:
        file.write(b"".join(lines))


def read_lines(path: Path) -> tuple[list[tuple[bytes, dict[str, Any]]], bool]:
    """Each line with what it says, and whether the last was torn. Only newlines split: text holds U+2028."""
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    found, last = [], len(lines) - 1
    for i, line in enumerate(lines):
        if not line and i == last:
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError("not an object with a `step`")
        except ValueError as error:
            if i == last:
                return found, True
            raise ValueError(
                f"{path}, line {i + 1}: {error}; a whole line of JSON was expected. Delete the line to go on"
            ) from None
        found.append((line, row))
    return found, False


def read_json(path: Path, default: Any) -> Any:
    if not path.exists():
        return default
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, type(default)):
        raise ValueError(f"{path}: found a {type(value).__name__}, expected a {type(default).__name__}")
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = yaml.safe_load(path.read_bytes()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: found a {type(value).__name__}, expected keys and values")
    return value


def _dumps(value: Any, indent: int | None = None) -> bytes:
    text = json.dumps(_finite(plain(value)), ensure_ascii=False, indent=indent, allow_nan=False)
    return text.encode("utf-8", "backslashreplace")  # a lone surrogate as \udXXX, which is JSON


def plain(value: Any) -> Any:
    """Numbers, text, lists and mappings only: numpy's and torch's numbers, paths and tuples become these."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(plain(v) for v in value)
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"a run's files hold numbers, text, lists and mappings, not {value!r}")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list) else value
