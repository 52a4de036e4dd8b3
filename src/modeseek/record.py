"""A run's directory: what the run was told, what it is, what it measured and what it wrote.

    run.yaml        the config, written once
    card.json       the run card: facts about model, data, objective, path, seeds, versions; warnings
    rows.jsonl      one object a logged step, under TRL's metric names; held-out ones as `eval/...`
    samples.jsonl   one object a sampled response: step, prompt, response, reward, reference
    results.json    what `evaluate` measured: a list of {name, value, low, high, n}

Everything but the two growing files is replaced whole (written beside, synced, renamed; `modeseek.disk`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modeseek.disk import append, plain, read_json, read_lines, read_yaml, write_bytes, write_json, write_yaml
from modeseek.loggers import Logger, check_loggers, open_loggers

RUN, CARD, ROWS, SAMPLES, RESULTS = "run.yaml", "card.json", "rows.jsonl", "samples.jsonl", "results.json"


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
        """A new run, in a directory that `vacant` does not refuse."""
        path = Path(path)
        vacant(path)
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
        append(self.path / ROWS, [row])
        told = plain(row)
        metrics = {k: float(v) for k, v in told.items() if k != "step" and isinstance(v, int | float)}
        for logger in self.loggers:
            logger.row(told["step"], metrics)

    def samples(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Append responses: `step, prompt, response`; where known `reward`, and the `reference`'s response."""
        for sample in samples:
            if missing := {"prompt", "response"} - sample.keys():
                raise ValueError(f"a sample lacks {', '.join(sorted(missing))}: it has {sorted(sample)}")
        append(self.path / SAMPLES, samples)

    def card(self, **facts: Any) -> None:
        """Add facts to the run card, or replace them."""
        write_json(self.path / CARD, {**read_json(self.path / CARD, {}), **facts})

    def warn(self, warning: str) -> None:
        """Put a warning on the run card, once."""
        warnings = read_json(self.path / CARD, {}).get("warnings", [])
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
    (rows, rows_torn), (samples, samples_torn) = read_lines(path / ROWS), read_lines(path / SAMPLES)
    return RunData(
        path=path,
        card=read_json(path / CARD, {}),
        config=read_yaml(path / RUN),
        rows=[_with_nonfinite(row) for _, row in rows],
        samples=[_with_nonfinite(sample) for _, sample in samples],
        results=read_json(path / RESULTS, []),
        torn=tuple(name for name, torn in ((ROWS, rows_torn), (SAMPLES, samples_torn)) if torn),
    )


def vacant(path: Path) -> None:
    """Refuse a directory that already has rows: no earlier run is overwritten."""
    if (path / ROWS).exists() and (path / ROWS).stat().st_size:
        raise ValueError(
            f"output_dir: {path} already holds a run ({len(read_lines(path / ROWS)[0])} rows); "
            "write --resume to continue it, or choose another output_dir"
        )
    if path.exists() and not path.is_dir():
        raise ValueError(f"output_dir: {path} is a file; choose a directory")


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
        lines, torn = read_lines(file)
        kept = [line for line, row in lines if row["step"] <= step]
        gone += len(lines) - len(kept) + torn
        content = b"".join(line + b"\n" for line in kept)
        if file.exists() and file.read_bytes() != content:
            write_bytes(file, content)
    return gone


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


def _with_nonfinite(row: Mapping[str, Any]) -> dict[str, Any]:
    lost = {name: float(value) for name, value in row.get("nonfinite", {}).items()}
    return {name: value for name, value in row.items() if name != "nonfinite"} | lost
