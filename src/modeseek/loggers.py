"""Other people's places for a run's rows: tensorboard, wandb, trackio, each an extra."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from modeseek.disk import read_json, write_json


@runtime_checkable
class Logger(Protocol):
    """Somebody else's place for the same rows."""

    def row(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


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
        run_id = read_json(kept, {}).get("id") if step is not None else None
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
