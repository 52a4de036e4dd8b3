"""Records from where data lies: JSONL, JSON, Parquet and CSV files (gzip too), hub data sets, mixtures of them."""

from __future__ import annotations

import csv
import dataclasses
import difflib
import gzip
import io
import json
import os
import random
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeseek.data.records import ROLES, Columns, DataError, Record, check_columns, normalise, parse

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
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
        for source, number, row in _rows(item["path"], item["split"], item["subset"]):
            try:
                if isinstance(row, _Broken):
                    raise DataError(row.reason)
                record = parse(row, source=source, number=number, columns=item["columns"])
            except DataError as error:
                if skip_bad_rows is None:
                    raise
                content = row.content if isinstance(row, _Broken) else row
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
    """Writes the file whole or not at all."""
    lines = (json.dumps(dataclasses.asdict(row), ensure_ascii=False, default=str) + "\n" for row in bad)
    scratch = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch.write_text("".join(lines), encoding="utf-8", newline="\n", errors="backslashreplace")
    os.replace(scratch, path)


# Rows


@dataclass(frozen=True)
class _Broken:
    reason: str
    content: str


Row = tuple[str, int, Any]


def _rows(path: str | Path, split: str, subset: str | None) -> Iterator[Row]:
    """`(source, number, row)`; a row that cannot even be decoded is a `_Broken`."""
    where = _only_file(Path(path))
    suffixes = "".join(where.suffixes[-2:]).lower()
    kind = next((s for s in SUFFIXES if suffixes.endswith((s, s + ".gz"))), None)
    if not where.exists():
        if kind is None and isinstance(path, str) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
            yield from _hub(path, split, subset)
            return
        near = difflib.get_close_matches(where.name, [p.name for p in where.parent.glob("*")], 1)
        fix = f"did you mean {near[0]!r}?" if near else "mend the path"
        raise DataError(f"{where}: found no such file, expected data; {fix}")
    if kind is None:
        raise DataError(
            f"{where}: found a file of unknown kind, expected {', '.join(SUFFIXES)} (or with .gz); rename it"
        )
    if subset is not None:
        raise DataError(f"{where}: found subset {subset!r}, expected none: a file has no subsets; leave subset out")
    content = _content(where)
    if kind == ".parquet":
        rows = _parquet(where, content)
    elif kind == ".csv":
        rows = _csv(where, content)
    elif kind == ".jsonl":
        rows = _jsonl(where, content)
    else:
        rows, split = _json(where, content, split)
    if split != "train":
        raise DataError(f"{where}: found split {split!r}, expected none: this file has no splits; leave split out")
    for number, row in rows:
        if not isinstance(row, Mapping | _Broken):
            reason = f"{where}, row {number}: found {str(row)[:40]!r}, expected an object with named columns; mend it"
            row = _Broken(reason, str(row))
        yield str(where), number, row


def _only_file(path: Path) -> Path:
    """A folder with one data file stands for that file."""
    if not path.is_dir():
        return path
    endings = tuple(s + end for s in SUFFIXES for end in ("", ".gz"))
    files = sorted(p for p in path.iterdir() if p.is_file() and p.name.lower().endswith(endings))
    if len(files) == 1:
        return files[0]
    found = f"a directory with {len(files)} data files" if files else "a directory without data files"
    fix = f"name one of them: {', '.join(p.name for p in files[:4])}" if files else f"name a {', '.join(SUFFIXES)} file"
    raise DataError(f"{path}: found {found}, expected a file; {fix}")


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: found a file that cannot be read ({error.strerror}), expected data; mend it"
        ) from error
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{path}: found a truncated or damaged gzip stream ({error}), expected a whole one; fetch it again"
            ) from error
    elif path.suffix.lower() == ".gz" and content:
        raise DataError(f"{path}: found no gzip data, expected some after the name; rename it without .gz")
    content = content.removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        raise DataError(f"{path}: found an empty file, expected rows; name another or write it again")
    return content


def _decoded(path: Path, content: bytes, place: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            raise DataError(
                f"{path}{place}: found text that ends inside a character, expected a whole file; fetch it again"
            ) from error
        raise DataError(
            f"{path}{place}: found the byte 0x{content[error.start]:02x} at {error.start},"
            " expected UTF-8 text; convert the file (iconv -t UTF-8)"
        ) from error


def _jsonl(path: Path, content: bytes) -> Iterator[tuple[int, Any]]:
    """Lines end at "\\n" only: U+2028, U+0085 and their like occur inside strings."""
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            text = _decoded(path, line, f", row {number}")
        except DataError as error:
            yield number, _Broken(str(error), line.decode("utf-8", "backslashreplace"))
            continue
        try:
            yield number, _parsed(text)
        except json.JSONDecodeError as error:
            reason = (
                f"{path}, row {number}: found broken JSON ({error.msg} at character {error.pos} of {len(text)}),"
                " expected one whole object a line; mend the line or fetch the file again"
            )
            yield number, _Broken(reason, text)


def _json(path: Path, content: bytes, split: str) -> tuple[Iterator[tuple[int, Any]], str]:
    text = _decoded(path, content, "")
    try:
        whole = _parsed(text)
    except json.JSONDecodeError as error:
        if text.lstrip()[0] == "{" and error.msg == "Extra data":
            return _jsonl(path, content), split
        raise DataError(
            f"{path}, line {error.lineno}: found broken JSON ({error.msg}), expected a whole list of objects;"
            " mend it or fetch the file again"
        ) from error
    if isinstance(whole, Mapping):
        lists = [key for key, value in whole.items() if isinstance(value, list) and value and _is_row(value[0])]
        if split in lists:
            return _numbered(whole[split]), "train"
        key = next((key for key in ("data", "rows") if key in lists), None)
        whole = whole[key] if key else [whole]
    if not isinstance(whole, list):
        raise DataError(f"{path}: found {type(whole).__name__}, expected a list of objects; mend the file")
    return _numbered(whole), split


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except (RecursionError, ValueError):  # nothing that a row could hold
        raise json.JSONDecodeError("Nested too deeply, or a number of too many digits", text, 0) from None


def _numbered(rows: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    return enumerate(rows, start=1)


def _is_row(x: Any) -> bool:
    return isinstance(x, Mapping) and not ("role" in x or "from" in x)


def _csv(path: Path, content: bytes) -> Iterator[tuple[int, Any]]:
    text = _decoded(path, content, "")
    limit = csv.field_size_limit(len(text) + 1)
    try:
        table = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise DataError(f"{path}: found broken CSV ({error}), expected quoted fields; write it again") from error
    finally:
        csv.field_size_limit(limit)
    header, *lines = table
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise DataError(f"{path}: found the column {twice[0]!r} twice, expected every name once; rename one of them")
    for number, line in enumerate((line for line in lines if line), start=1):
        if len(line) != len(header):
            reason = (
                f"{path}, row {number}: found {len(line)} fields, expected {len(header)} ({', '.join(header)});"
                " quote fields that hold commas or line breaks"
            )
            yield number, _Broken(reason, ",".join(line))
        else:
            yield number, {name: _cell(name, field) for name, field in zip(header, line, strict=True)}


def _cell(name: str, field: str) -> Any:
    """A field of a CSV: JSON where it holds messages or a rated list, nothing where it is an empty optional one."""
    if field.startswith(("[", "{")):
        try:
            value = json.loads(field)
        except json.JSONDecodeError:
            return field
        first = value[0] if isinstance(value, list) and value else value
        if name in ("responses", "completions", "rewards", "scores", "ratings"):
            return value
        if isinstance(first, Mapping) and first.get("role", first.get("from")) in ROLES:
            return value
    if field == "" and name not in ("chosen", "rejected", "completion", "response", "output"):
        return None
    return field


def _parquet(path: Path, content: bytes) -> Iterator[tuple[int, Any]]:
    import pyarrow as arrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(io.BytesIO(content)).to_pylist()
    except (arrow.ArrowException, OSError) as error:
        said = str(error).split("\n")[0][:120]
        raise DataError(f"{path}: found broken Parquet ({said}), expected a whole file; fetch it again") from error
    return _numbered(rows)


def _hub(name: str, split: str, subset: str | None) -> Iterator[Row]:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        rows = datasets.load_dataset(name, subset, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        said = " ".join(str(error).split())[:160]
        raise DataError(
            f"{name}: found no such file, and as a data set of the hub it cannot be read ({said});"
            " mend the path or the name, the split or the subset, or fetch it first"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield name, number, row
