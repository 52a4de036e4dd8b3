"""What a study is told, by a YAML file, a shipped name or a user's Python file, with the sets of claims it names."""

from __future__ import annotations

import difflib
import hashlib
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

import cattrs
import yaml
from cattrs.strategies import configure_union_passthrough
from cattrs.v import format_exception

from modeseek.studies import SETS, study_of
from modeseek.studies.base import Dial, Study


@dataclass(frozen=True, kw_only=True)
class Quick:
    """The short form: fewer seeds, and dials that make a world's cells shorter."""

    seeds: int = 3
    dials: dict[str, dict[str, Dial]] = field(default_factory=dict)  # by world or world/method; over a cell's own


@dataclass(frozen=True, kw_only=True)
class Runs:
    """A grid of training runs on a language model instead of worlds."""

    methods: tuple[str, ...]  # names of shipped configs, or YAML files
    options: dict[str, Any] = field(default_factory=dict)  # of every run, as the YAML of `modeseek train` has them
    options_of: dict[str, dict[str, Any]] = field(default_factory=dict)  # of one method's runs, over these
    grid: dict[str, list[Dial]] = field(default_factory=dict)  # options to tune, with the values to try


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a study's YAML file says."""

    name: str = ""  # unset: the file's
    sets: tuple[str, ...] = ()  # shipped sets of claims, or Python files that define `study`
    runs: Runs | None = None  # instead of sets
    seeds: int = 20
    seeds_of: dict[str, int] = field(default_factory=dict)  # of some worlds
    chunk_of: dict[str, int] = field(default_factory=dict)  # seeds that a worker takes at once; unset: all
    tune_seeds: int = 5
    quick: Quick = field(default_factory=Quick)

    def __post_init__(self) -> None:
        if bool(self.sets) == (self.runs is not None):
            raise ValueError("sets and runs: expected one of the two; sets names claims, runs a grid of training runs")
        for key, counts in (("seeds_of", self.seeds_of), ("chunk_of", self.chunk_of)):
            if bad := [f"{key}.{world}: {n}" for world, n in counts.items() if n < 1]:
                raise ValueError(f"{bad[0]}, expected at least 1")


@dataclass(frozen=True)
class Source:
    """A user's file, carried as text to wherever its worlds run."""

    path: str
    text: str

    @property
    def module(self) -> str:
        """The name under which Python knows it, the same everywhere."""
        return "modeseek_study_" + hashlib.sha256((self.path + "\n" + self.text).encode()).hexdigest()[:12]

    def install(self) -> types.ModuleType:
        """Import it, once a process."""
        if self.module not in sys.modules:
            made = types.ModuleType(self.module)
            made.__file__ = self.path
            sys.modules[self.module] = made  # before it runs: dataclasses look themselves up there
            try:
                exec(compile(self.text, self.path, "exec"), made.__dict__)
            except BaseException:
                del sys.modules[self.module]
                raise
        return sys.modules[self.module]


@dataclass(frozen=True)
class Loaded:
    """A set of claims, and the user's file where it came from one."""

    study: Study
    source: Source | None = None


def settings(config: str) -> Settings:
    """The settings of a shipped study, of a YAML file, or of a Python file that defines `study`."""
    path = Path(config)
    if path.suffix == ".py":
        return Settings(name=path.stem, sets=(config,))
    if not path.suffix and config in names():
        text = resources.files("modeseek.configs").joinpath("studies", f"{config}.yaml").read_text()
    elif path.is_file():
        text = path.read_text()
    else:
        raise ValueError(f"config: no study {config!r}{_near(config, names())}; there are {', '.join(names())}")
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{config}: not YAML: {' '.join(str(error).split())}") from None
    return _structure({"name": path.stem, **tree}, config)


def names() -> list[str]:
    """The studies that are shipped."""
    folder = resources.files("modeseek.configs").joinpath("studies")
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_set(name: str, quick: bool = False) -> Loaded:
    """A set of claims by its shipped name, in its short form where it has one, or from a Python file."""
    if not name.endswith(".py"):
        if name not in SETS:
            raise ValueError(f"sets: no set {name!r}{_near(name, SETS)}; there are {', '.join(SETS)}")
        return Loaded(_checked(study_of(name, quick)))
    if not Path(name).is_file():
        raise ValueError(f"sets: no file {name}")
    source = Source(name, Path(name).read_text())
    study = getattr(source.install(), "study", None)
    if not isinstance(study, Study):
        raise ValueError(f"{name}: `study` is {type(study).__name__}, expected `study = Study(name, worlds, claims)`")
    return Loaded(_checked(study), source)


def _checked(study: Study) -> Study:
    """Refuse what would fail after an hour: a claim on a world or a method that is not there, two of one name."""
    worlds = {world.name: world for world in study.worlds}
    for what, said in (("worlds", [w.name for w in study.worlds]), ("claims", [c.name for c in study.claims])):
        if twice := sorted({name for name in said if said.count(name) > 1}):
            raise ValueError(f"study {study.name}: two {what} are called {', '.join(twice)}")
    for claim in study.claims:
        if not claim.parts:
            raise ValueError(f"claim {claim.name}: it has no parts, and nothing to test")
        for part in claim.parts:
            if part.relation == "equal" and not part.margin > 0:
                raise ValueError(f"claim {claim.name}: {part.says!r} is an equivalence and needs a margin above 0")
        for cell in claim.cells():
            if cell.world not in worlds:
                raise ValueError(f"claim {claim.name}: no world {cell.world!r}{_near(cell.world, worlds)}")
            if cell.method not in (methods := worlds[cell.world].methods()):
                near = _near(cell.method, methods)
                raise ValueError(f"claim {claim.name}: {cell.world} has no method {cell.method!r}{near}")
    return study


def _structure(tree: Any, where: str) -> Settings:
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where}: expected keys and values, found a {type(tree).__name__}")
    for cls, keys, path in (
        (Settings, tree, where),
        (Quick, tree.get("quick"), f"{where}.quick"),
        (Runs, tree.get("runs"), f"{where}.runs"),
    ):
        known = [f.name for f in fields(cls)]
        for key in keys if isinstance(keys, Mapping) else ():
            if key not in known:
                raise ValueError(f"{path}.{key}: no such key{_near(str(key), known)}")
    made = cattrs.Converter()
    configure_union_passthrough(float | int | str, made)
    try:
        return made.structure(tree, Settings)
    except cattrs.ClassValidationError as error:
        words = lambda e, kind: str(e) if isinstance(e, ValueError) and str(e) else format_exception(e, kind)
        raise ValueError("; ".join(cattrs.transform_error(error, path=where, format_exception=words))) from None


def _near(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), 1, 0.6)
    return f"; did you mean {close[0]}?" if close else ""
