"""A run's directory: what the run was told, what it is, what it measured and what it wrote.

    run.yaml        the config, written once
    card.json       the run card: facts about model, data, objective, path, seeds, versions; warnings
    rows.jsonl      one object a logged step, under TRL's metric names; held-out ones as `eval/...`
    samples.jsonl   one object a sampled response: step, prompt, response, reward, reference
    results.json    what `evaluate` measured: a list of {name, value, low, high, n}

Everything but the two growing files is replaced whole (written beside, synced, renamed). JSON has no NaN: such
a number is stored as null, and in a row `"nonfinite": {"loss": "nan"}` beside it keeps which one it was.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import yaml

RUN, CARD, ROWS, SAMPLES, RESULTS = "run.yaml", "card.json", "rows.jsonl", "samples.jsonl", "results.json"


@runtime_checkable
class Logger(Protocol):
    """Somebody else's place for the same rows."""

    def row(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Record:
    """The writing side of a run's directory. `start` begins a run, `resume` continues one."""

    path: Path
    loggers: tuple[Logger, ...] = ()

    @staticmethod
    def start(
        path: str | Path,
        config: Mapping[str, Any],
        card: Mapping[str, Any],
        report_to: Sequence[str] = (),
    ) -> Record:
        """A new run. A directory that already has rows is refused: no earlier run is overwritten."""
        path = Path(path)
        if (path / ROWS).exists() and (path / ROWS).stat().st_size:
            raise ValueError(
                f"output_dir: {path} already holds a run ({len(_lines(path / ROWS)[0])} rows); "
                "write --resume to continue it, or choose another output_dir"
            )
        if path.exists() and not path.is_dir():
            raise ValueError(f"output_dir: {path} is a file; choose a directory")
        check_loggers(report_to)
        path.mkdir(parents=True, exist_ok=True)
        write_yaml(path / RUN, config)
        write_json(path / CARD, {"warnings": [], **card})
        for name in (ROWS, SAMPLES):
            (path / name).write_bytes(b"")
        return Record(path, open_loggers(report_to, path, config, step=None))

    @staticmethod
    def resume(path: str | Path, step: int, report_to: Sequence[str] = ()) -> Record:
        """The same run from `step` on: what was written past it is cut away, to be written again."""
        path = Path(path)
        config = read(path).config
        truncate(path, step)
        return Record(path, open_loggers(report_to, path, config, step=step))

    def row(self, row: Mapping[str, Any]) -> None:
        """Append one logged step. It names its `step`; the numbers go to the loggers as well."""
        _append(self.path / ROWS, [row])
        plain = _plain(row)
        metrics = {k: float(v) for k, v in plain.items() if k != "step" and isinstance(v, int | float)}
        for logger in self.loggers:
            logger.row(plain["step"], metrics)

    def samples(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Append responses: `step, prompt, response`; where known `reward`, and the `reference`'s response."""
        for sample in samples:
            if missing := {"prompt", "response"} - sample.keys():
                raise ValueError(f"a sample lacks {', '.join(sorted(missing))}: it has {sorted(sample)}")
        _append(self.path / SAMPLES, samples)

    def card(self, **facts: Any) -> None:
        """Add facts to the run card, or replace them."""
        write_json(self.path / CARD, {**_json(self.path / CARD, {}), **facts})

    def warn(self, warning: str) -> None:
        """Put a warning on the run card, once."""
        warnings = _json(self.path / CARD, {}).get("warnings", [])
        if warning not in warnings:
            self.card(warnings=[*warnings, warning])

    def results(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Store what `evaluate` measured: `name, value, low, high, n` each."""
        write_results(self.path, results)

    def close(self) -> None:
        """Let the loggers finish. The files need no closing."""
        for logger in self.loggers:
            logger.close()


@dataclass(frozen=True)
class RunData:
    """The reading side: a run's directory as it stands."""

    path: Path
    card: Mapping[str, Any]
    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    samples: Sequence[Mapping[str, Any]]
    results: Sequence[Mapping[str, Any]]
    torn: Sequence[str] = field(default=())  # files whose last line was cut short by a crash


def read(path: str | Path) -> RunData:
    """A run from its directory. A last line that a crash cut short is left out and named in `torn`."""
    path = Path(path)
    if not is_run(path):
        raise ValueError(f"{path} is not a run: {_why_not(path)}")
    (rows, rows_torn), (samples, samples_torn) = _lines(path / ROWS), _lines(path / SAMPLES)
    return RunData(
        path=path,
        card=_json(path / CARD, {}),
        config=_yaml(path / RUN),
        rows=[_with_nonfinite(row) for _, row in rows],
        samples=[_with_nonfinite(sample) for _, sample in samples],
        results=_json(path / RESULTS, []),
        torn=tuple(name for name, torn in ((ROWS, rows_torn), (SAMPLES, samples_torn)) if torn),
    )


def is_run(path: Path) -> bool:
    """Whether a run was started here."""
    return (path / CARD).is_file() or (path / RUN).is_file()


def write_results(path: str | Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Store what `evaluate` measured beside the run that it is about."""
    for result in results:
        if missing := {"name", "value"} - result.keys():
            raise ValueError(f"a result lacks {', '.join(sorted(missing))}: it has {sorted(result)}")
    write_json(Path(path) / RESULTS, list(results))


def truncate(path: str | Path, step: int) -> int:
    """Cut rows and samples past `step` out of a run's directory; how many lines went, a torn one included.

    The lines that stay are kept byte for byte. Each file is replaced whole, so a crash here loses nothing.
    """
    gone = 0
    for file in (Path(path) / ROWS, Path(path) / SAMPLES):
        lines, torn = _lines(file)
        kept = [line for line, row in lines if row["step"] <= step]
        gone += len(lines) - len(kept) + torn
        content = b"".join(line + b"\n" for line in kept)
        if file.exists() and file.read_bytes() != content:
            write_bytes(file, content)
    return gone


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file whole: at every moment it is the old one or the new one."""
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
    text = yaml.safe_dump(_plain(value), sort_keys=False, allow_unicode=True)
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def _append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    lines = []
    for row in map(_plain, rows):
        if type(row.get("step")) is not int:
            raise ValueError(f"{path.name}: a row needs `step`, a whole number; found {row.get('step')!r}")
        lost = {k: str(v) for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)}
        lines.append(_dumps(row | ({"nonfinite": lost} if lost else {})) + b"\n")
    with path.open("ab") as file:
        file.write(b"".join(lines))


def _lines(path: Path) -> tuple[list[tuple[bytes, dict[str, Any]]], bool]:
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


def _json(path: Path, default: Any) -> Any:
    if not path.exists():
        return default
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, type(default)):
        raise ValueError(f"{path}: found a {type(value).__name__}, expected a {type(default).__name__}")
    return value


def _yaml(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = yaml.safe_load(path.read_bytes()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: found a {type(value).__name__}, expected keys and values")
    return value


def _why_not(path: Path) -> str:
    if not path.exists():
        return "there is no such directory"
    if not path.is_dir():
        return "it is a file; name the directory that holds card.json and rows.jsonl"
    inside = sorted(p.name for p in path.iterdir() if p.is_dir() and is_run(p))
    if inside:
        names = ", ".join(inside[:6]) + (", ..." if len(inside) > 6 else "")
        return f"it holds {len(inside)} of them ({names}); name these, as in {path}/*"
    return "it has neither card.json nor run.yaml; name a directory that `modeseek train` wrote"


def _dumps(value: Any, indent: int | None = None) -> bytes:
    text = json.dumps(_finite(_plain(value)), ensure_ascii=False, indent=indent, allow_nan=False)
    return text.encode("utf-8", "backslashreplace")  # a lone surrogate as \udXXX, which is JSON


def _plain(value: Any) -> Any:
    """Numbers, text, lists and mappings only: numpy's and torch's numbers, paths and tuples become these."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(_plain(v) for v in value)
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


def _with_nonfinite(row: Mapping[str, Any]) -> dict[str, Any]:
    lost = {name: float(value) for name, value in row.get("nonfinite", {}).items()}
    return {name: value for name, value in row.items() if name != "nonfinite"} | lost


class _Tensorboard:
    """Event files under `<run>/tensorboard`, without torch. A resumed run hides the steps it redoes."""

    def __init__(self, path: Path, config: Mapping[str, Any], step: int | None) -> None:
        writer = _need("tensorboard", "tensorboard.summary.writer.event_file_writer")
        self.event = _need("tensorboard", "tensorboard.compat.proto.event_pb2")
        self.summary = _need("tensorboard", "tensorboard.compat.proto.summary_pb2").Summary
        self.writer = writer.EventFileWriter(str(path / "tensorboard"))
        if step is not None:
            start = self.event.SessionLog(status=self.event.SessionLog.START)
            self._add(step + 1, session_log=start)

    def row(self, step: int, metrics: Mapping[str, float]) -> None:
        values = [self.summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._add(step, summary=self.summary(value=values))

    def close(self) -> None:
        self.writer.close()

    def _add(self, step: int, **what: Any) -> None:
        self.writer.add_event(self.event.Event(wall_time=time.time(), step=step, **what))
        self.writer.flush()


class _Wandb:
    """A Weights & Biases run, its id kept in `<run>/wandb.json` so that a resumed run goes on in it.

    W&B never rewrites a step, and warns of those it gets twice; a resumed run repeats their numbers exactly.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], step: int | None) -> None:
        wandb, kept = _need("wandb", "wandb"), path / "wandb.json"
        run_id = _json(kept, {}).get("id") if step is not None else None
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "modeseek"),
            name=path.name,
            dir=str(path),
            config=dict(config),
            id=run_id,
            resume="allow",
        )
        write_json(kept, {"id": self.run.id})

    def row(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log(dict(metrics), step=step)

    def close(self) -> None:
        self.run.finish()


class _Trackio:
    """A trackio run of the directory's name."""

    def __init__(self, path: Path, config: Mapping[str, Any], step: int | None) -> None:
        self.trackio = _need("trackio", "trackio")
        self.trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "modeseek"),
            name=path.name,
            config=dict(config),
            resume="never" if step is None else "allow",
        )

    def row(self, step: int, metrics: Mapping[str, float]) -> None:
        self.trackio.log(dict(metrics), step=step)

    def close(self) -> None:
        self.trackio.finish()


LOGGERS: Mapping[str, Callable[[Path, Mapping[str, Any], int | None], Logger]] = {
    "tensorboard": _Tensorboard,
    "wandb": _Wandb,
    "trackio": _Trackio,
}


def check_loggers(report_to: Sequence[str]) -> None:
    """Refuse a `report_to` that cannot be honoured, before anything is computed. `none` stands alone."""
    for name in report_to:
        if name == "none" and len(report_to) == 1:
            return
        if name not in LOGGERS:
            raise ValueError(f"report_to: {name!r} is not known; choose from {', '.join(LOGGERS)}, or none alone")
        _need(name, name)


def open_loggers(
    report_to: Sequence[str], path: Path, config: Mapping[str, Any], step: int | None
) -> tuple[Logger, ...]:
    """The loggers named; `step` is that of the checkpoint a run continues from, None for a new one."""
    check_loggers(report_to)
    return tuple(LOGGERS[name](path, config, step) for name in report_to if name != "none")


def _need(name: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != name:
            raise
        raise ValueError(
            f"report_to: {name} is not installed; write pip install 'modeseek[{name}]', or leave it out"
        ) from None
