"""Run directories as one page that a browser opens without a network, and as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeseek.disk import write_bytes
from modeseek.record import RunData, read


def write(runs: Sequence[str | Path], out: str | Path, title: str | None = None) -> Path:
    """One self-contained HTML page about these runs; the path of the file. A directory gets a `report.html`."""
    from modeseek.report.page import render

    out = Path(out)
    if out.is_dir():
        out = out / "report.html"
    html = render(_read(runs), title)
    write_bytes(out, html.encode("utf-8", "replace"))
    return out


def table(runs: Sequence[str | Path]) -> list[dict[str, Any]]:
    """A row per method: its seeds, its steps, and where each metric ended. `str` of a cell is what to print."""
    from modeseek.report.page import table

    return table(_read(runs))


def _read(runs: Sequence[str | Path]) -> list[RunData]:
    if not runs:
        raise ValueError("report: no runs were named; write the directories that `modeseek train` made")
    return [read(path) for path in dict.fromkeys(Path(run).resolve() for run in runs)]
