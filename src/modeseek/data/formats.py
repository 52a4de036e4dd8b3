"""Rows from where data lies: JSONL, JSON, Parquet and CSV files (gzip too), and data sets of the hub."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeseek.data.records import ROLES, DataError

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")


@dataclass(frozen=True)
class Broken:
    """A row that cannot even be decoded."""

    reason: str
    content: str


def rows(path: str | Path, split: str, subset: str | None) -> Iterator[tuple[str, int, Any]]:
    """`(source, number, row)`; one that cannot even be decoded is a `Broken`."""
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
        found = _parquet(where, content)
    elif kind == ".csv":
        found = _csv(where, content)
    elif kind == ".jsonl":
        found = _jsonl(where, content)
    else:
        found, split = _json(where, content, split)
    if split != "train":
        raise DataError(f"{where}: found split {split!r}, expected none: this file has no splits; leave split out")
    for number, row in found:
        if not isinstance(row, Mapping | Broken):
            reason = f"{where}, row {number}: found {str(row)[:40]!r}, expected an object with named columns; mend it"
            row = Broken(reason, str(row))
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
            yield number, Broken(str(error), line.decode("utf-8", "backslashreplace"))
            continue
        try:
            yield number, _parsed(text)
        except json.JSONDecodeError as error:
            reason = (
                f"{path}, row {number}: found broken JSON ({error.msg} at character {error.pos} of {len(text)}),"
                " expected one whole object a line; mend the line or fetch the file again"
            )
            yield number, Broken(reason, text)


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
            yield number, Broken(reason, ",".join(line))
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


def _hub(name: str, split: str, subset: str | None) -> Iterator[tuple[str, int, Any]]:
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
