"""Is this data set sound? `modeseek check DATA [--model M]`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml
from rich.console import Console

from modeseek.commands.models import context


@dataclass(frozen=True, kw_only=True)
class Check:
    """Look at a preference data set before anything is trained on it."""

    data: Annotated[str, tyro.conf.Positional]  # file or hub name
    model: str = ""  # folder or hub name: also count tokens, and show what its template renders
    eval_data: str = ""  # held-out file, to look for shared prompts
    split: str = "train"  # split of a hub data set
    columns: str = ""  # our names of columns that have others: '{chosen: better, rejected: worse}'
    max_length: int | None = None  # tokens of prompt and response together; unset: what the model reads, else 1024
    max_completion_length: int | None = None  # tokens of a response
    skip_bad_rows: str = ""  # set bad rows aside into this file instead of stopping at the first
    json: bool = False  # print JSON


def mapping(said: str) -> dict[str, Any] | None:
    """Our names of columns and the file's, from one word of the command line."""
    try:
        names = yaml.safe_load(said) if said else None
    except yaml.YAMLError:
        names = said
    if not isinstance(names, dict | None):
        raise ValueError(f"columns: {said!r}, expected names as in '{{chosen: better, rejected: worse}}'")
    return names


def main(words: list[str]) -> int:
    """Is this data set sound?"""
    asked = tyro.cli(Check, args=words, prog="modeseek check")
    from modeseek.data import checks, files

    aside = Path(asked.skip_bad_rows) if asked.skip_bad_rows else None
    columns = mapping(asked.columns)
    reading = files.read(asked.data, split=asked.split, columns=columns, skip_bad_rows=aside)
    held = files.load(asked.eval_data, split=asked.split, columns=columns) if asked.eval_data else None
    groups = None
    if asked.model:
        from modeseek.data.template import Template
        from modeseek.data.tokenise import tokenise

        template = Template.load(asked.model)
        limit = asked.max_length or context(asked.model)
        groups = tokenise(
            reading.records, template, max_length=limit, max_completion_length=asked.max_completion_length
        )
    report = checks.check(reading.records, groups, held)
    report = {"data": asked.data, "bad_rows": len(reading.bad), **report}
    if asked.json:
        print(json.dumps(report, indent=2, ensure_ascii=False, default=str))
    else:
        Console().print(checks.render(report))
    return 0
