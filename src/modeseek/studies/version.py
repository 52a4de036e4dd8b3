"""The version of a world: a hash of its source and of every module of ours that it imports, as far as that goes.

Comments, docstrings and layout do not count. What was computed by another version is computed again.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from functools import cache
from pathlib import Path

PACKAGE = "modeseek"


@cache
def of_module(name: str) -> str:
    """The hash of a module of ours and of what it imports of ours."""
    return _hash(_closure({name}))


@cache
def of_text(text: str) -> str:
    """The same for a user's file."""
    return _hash({"": _tree(text), **_closure(set(_imports(text)))})


def _hash(trees: dict[str, str]) -> str:
    sources = "\n".join(f"{name}\n{tree}" for name, tree in sorted(trees.items()))
    return hashlib.sha256(sources.encode()).hexdigest()[:16]


def _closure(start: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    waiting = set(start)
    while waiting:
        name = waiting.pop()
        if name in found or (text := _source(name)) is None:
            continue
        found[name] = _tree(text)
        waiting |= set(_imports(text))
    return found


@cache
def _imports(text: str) -> tuple[str, ...]:
    """Names of ours that are imported anywhere in it; some are not modules, but what a module holds."""
    found: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if _ours(a.name)]
        elif isinstance(node, ast.ImportFrom) and _ours(node.module or ""):
            found += [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
    return tuple(found)


def _ours(name: str) -> bool:
    return name.partition(".")[0] == PACKAGE


@cache
def _source(name: str) -> str | None:
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None  # a class or a function, not a module
    return Path(spec.origin).read_text() if spec is not None and spec.origin else None


@cache
def _tree(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)
