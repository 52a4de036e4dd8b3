"""A translated config: every key with its origin, what was lost, what means another thing here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from modeseek import config

PARTS = ("objective", "source", "stages", "before", "reward", "lora", "mixture")


@dataclass(frozen=True)
class Said:
    """A value of the other tool's, and where it stands: `beta: 0.1`, or `TRL's default of beta`."""

    value: Any
    origin: str


class Given:
    """The other tool's keys. What is asked for counts as understood; the rest has to be answered for."""

    def __init__(self, tool: str, keys: Mapping[str, Any], defaults: Mapping[str, Any]):
        self.tool, self.keys, self.defaults = tool, dict(keys), dict(defaults)
        self._left = set(self.keys)

    def take(self, *names: str) -> Said | None:
        """The first of these keys that was written, else the first that has a default."""
        self._left -= set(names)
        for name in names:
            if self.keys.get(name) is not None:
                return Said(self.keys[name], f"{name}: {_short(self.keys[name])}")
        for name in names:
            if self.defaults.get(name) is not None:
                return Said(self.defaults[name], f"{self.tool}'s default of {name}")
        return None

    def number(self, name: str, otherwise: float) -> Said:
        """The same for a number, with what to take where neither is there."""
        found = self.take(name)
        return Said(otherwise, f"no {name}") if found is None else Said(float(found.value), found.origin)

    def left(self) -> list[str]:
        """The keys that nothing asked for."""
        return [name for name in self.keys if name in self._left]


@dataclass
class Translation:
    """What `import-config` prints. `lost` changes results; `unneeded` does not."""

    tool: str
    file: str
    method: str = ""
    why_method: str = ""
    entries: dict[str, Said] = field(default_factory=dict)  # our key, dotted inside a part
    lost: list[str] = field(default_factory=list)
    unneeded: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)

    def choose(self, method: str, origin: str) -> None:
        """The shipped method to begin from."""
        self.method, self.why_method = method, origin

    def set(self, key: str, said: Said | None, change: Callable[[Any], Any] = lambda value: value) -> None:
        """A key of ours from a value of theirs; nothing where they say nothing."""
        if said is not None:
            self.entries[key] = Said(change(said.value), said.origin)

    def lose(self, what: str, why: str) -> None:
        """Something that changes results and cannot be carried over."""
        self.lost.append(f"{what}: {why}")

    def tree(self) -> dict[str, Any]:
        """The config as plain data, which `config.from_dict` takes."""
        tree = {key: value for key, value in config.read_tree(self.method).items() if key != "method"}
        for key, said in self.entries.items():
            _put(tree, key.split("."), said.value)
        return tree

    def run(self) -> config.Run:
        """The Run that the printed config is."""
        return config.from_dict(self.tree(), where=self.file)

    def render(self) -> str:
        """YAML: our keys, each with where it came from; then what is lost, and what means another thing here."""
        tree, lines = self.tree(), [f"# {self.method}: {self.why_method}"]
        for key in [*(k for k in PARTS if k in tree), *(k for k in tree if k not in PARTS)]:
            came = [s.origin for k, s in self.entries.items() if k == key or k.startswith(f"{key}.")]
            origin = "; ".join(dict.fromkeys(came)) or f"`modeseek train {self.method}`"
            lines.append(f"{key}: {_flow(tree[key])}  # {origin}")
        told = (
            ("lost, and it changes results", self.lost),
            ("means another thing here", self.differs),
            ("not needed", self.unneeded),
        )
        for title, items in told:
            lines += [f"# {title}:", *(f"#   {item}" for item in items)] if items else []
        return "\n".join(lines) + "\n"


def _put(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    if path[0] == "stages" and len(path) == 3:
        tree["stages"] = [_told(stage, path[1], path[2], value) for stage in tree["stages"]]
    elif len(path) == 1:
        tree[path[0]] = value
    else:
        inner = dict(tree.get(path[0]) or {})
        _put(inner, path[1:], value)
        tree[path[0]] = inner


def _told(stage: Any, name: str, option: str, value: Any) -> Any:
    known, options = (stage, {}) if isinstance(stage, str) else next(iter(stage.items()))
    return {name: {**options, option: value}} if known == name else stage


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).strip()
    return text.removesuffix("...").strip()


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
