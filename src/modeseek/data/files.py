"""The records of files, hub data sets and mixtures of them; rows that cannot be read are set aside or an error."""

from __future__ import annotations

import dataclasses
import difflib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeseek.data.columns import Columns, check_columns
from modeseek.data.formats import Broken, rows
from modeseek.data.records import DataError, Record, normalise
from modeseek.data.shapes import parse
from modeseek.disk import write_bytes

PART = ("path", "weight", "split", "columns", "subset")
Data = str | Path | Sequence[str | Path | Mapping[str, Any]]


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read, and why."""

    source: str
    row: int
    reason: str
    content: Any


@dataclass(frozen=True)
class Reading:
    """What was read: the records, and the rows that were set aside."""

    records: list[Record]
    bad: list[BadRow]


def load(
    data: Data, *, split: str = "train", columns: Columns | None = None, skip_bad_rows: Path | None = None
) -> list[Record]:
    """The records of a file, of a hub data set, or of a mixture. See `read`, which also says what was left out."""
    return read(data, split=split, columns=columns, skip_bad_rows=skip_bad_rows).records


def read(
    data: Data, *, split: str = "train", columns: Columns | None = None, skip_bad_rows: Path | None = None
) -> Reading:
    """The records of `data`, and the bad rows where `skip_bad_rows` names a file to set them aside into.

    `data` is a path, the name of a hub data set, or a list of these and of mappings `path, weight, split,
    columns, subset` (a configuration of a hub set). A part's weight multiplies the weight of each of its rows: it
    says how much a row counts, not how often it is drawn. Without `skip_bad_rows` the first bad row is an error.
    """
    parts = [data] if isinstance(data, str | Path) else list(data)
    if not parts:
        raise DataError("data: found an empty list, expected a path, a hub name or a list of them; name some data")
    records, bad = list[Record](), list[BadRow]()
    for part in parts:
        item = _part(part, split, columns)
        if skip_bad_rows is not None and Path(item["path"]).resolve() == Path(skip_bad_rows).resolve():
            raise DataError(
                f"{skip_bad_rows}: found the data, expected another file to set bad rows aside into; name one"
            )
        first, before = len(bad), len(records)
        for source, number, row in rows(item["path"], item["split"], item["subset"]):
            try:
                if isinstance(row, Broken):
                    raise DataError(row.reason)
                record = parse(row, source=source, number=number, columns=item["columns"])
            except DataError as error:
                if skip_bad_rows is None:
                    raise
                content = row.content if isinstance(row, Broken) else row
                bad.append(BadRow(source, number, str(error), content))
            else:
                scaled = dataclasses.replace(record, weight=record.weight * item["weight"])
                records.append(record if item["weight"] == 1 else scaled)
        if len(records) == before:
            reason = bad[first].reason if len(bad) > first else f"{item['path']}: found no rows, expected some"
            raise DataError(f"{reason} (and no row of it is good)" if len(bad) > first else f"{reason}; name another")
    if skip_bad_rows is not None:
        _set_aside(bad, Path(skip_bad_rows))
    return Reading(records, bad)


def split_holdout(records: Sequence[Record], fraction_or_n: float, seed: int = 0) -> tuple[list[Record], list[Record]]:
    """The records to train on and those to hold out: a share of them (below 1) or about so many.

    Prompts that read the same (`records.normalise`) stay on one side, so the number held out may be a little
    smaller than asked for (larger, where a single prompt has more rows than that).
    """
    n = fraction_or_n * len(records) if fraction_or_n < 1 else fraction_or_n
    groups: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        groups.setdefault(normalise(record.prompt), []).append(i)
    if not 0 < n < len(records) or len(groups) < 2:
        raise ValueError(
            f"held out: found {fraction_or_n} of {len(records)} rows with {len(groups)} different prompts, expected"
            " at least two prompts and a part of them; write a fraction between 0 and 1, or a number of rows"
        )
    order = list(groups)
    random.Random(seed).shuffle(order)
    held, target = set[int](), min(max(round(n), 1), len(records) - 1)
    for prompt in order:
        if len(held) + len(groups[prompt]) <= target:
            held.update(groups[prompt])
    if not held:
        held.update(min(groups.values(), key=len))
    side = lambda out: [record for i, record in enumerate(records) if (i in held) is out]
    return side(False), side(True)


def _part(part: str | Path | Mapping[str, Any], split: str, columns: Columns | None) -> dict[str, Any]:
    if not isinstance(part, Mapping):
        part = {"path": part}
    for key in part:
        if key not in PART:
            near = difflib.get_close_matches(key, PART, 1, 0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(f"data: unknown key {key!r} in a mixture; {hint}write one of {', '.join(PART)}")
    if "path" not in part:
        raise DataError(f"data: found a part of a mixture with {dict(part)}, expected a path; add path: ...")
    item = {"weight": 1.0, "split": split, "columns": None, "subset": None} | dict(part)
    item["columns"] = item["columns"] or columns
    weight = item["weight"]
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise DataError(f"data: found the weight {weight!r} for {item['path']}, expected a number above 0; mend it")
    check_columns(item["columns"])
    return item


def _set_aside(bad: Sequence[BadRow], path: Path) -> None:
    lines = (json.dumps(dataclasses.asdict(row), ensure_ascii=False, default=str) + "\n" for row in bad)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, "".join(lines).encode("utf-8", "backslashreplace"))
