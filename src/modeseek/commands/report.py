"""One HTML page of training runs, or of a study: `modeseek report RUN...`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Report:
    """One self-contained HTML page of training runs; runs of the same method with other seeds are one line."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]  # folders that train wrote
    output: str = ""  # unset: report.html in the first run's folder
    title: str = ""


def main(words: list[str]) -> int:
    """Make the page."""
    asked = tyro.cli(Report, args=words, prog="modeseek report")
    if not asked.runs:
        raise ValueError("which runs? Name at least one folder that train wrote")
    first, *others = asked.runs
    from modeseek.report import study_data, write

    if any(map(study_data.is_study, asked.runs)):
        if others or asked.title:
            raise ValueError("runs: a study has a page of its own; name it alone, without --title")
        from modeseek.report.study import write as write_study

        print(write_study(first, asked.output or None))
        return 0
    out = Path(asked.output or Path(first) / "report.html")
    print(write(asked.runs, out, asked.title or None))
    return 0
