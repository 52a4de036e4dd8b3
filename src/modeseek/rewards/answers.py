"""What a judge said: the verdict of an answer, and answers kept so that none is paid for twice."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

Verdict = Literal["A", "B", "C", "unclear"]  # C: a tie


class Answer(NamedTuple):
    """What the judge said, and whether it was cut off."""

    content: str
    cut: bool


def verdict(answer: Answer) -> Verdict:
    """What an answer decides. Only its last line counts, and only if a verdict is all that it has."""
    lines = [line for line in answer.content.rpartition("</think>")[2].splitlines() if line.strip()]
    found = re.fullmatch(r"\W*(?:(?:final )?verdict\W*)?(A|B|C|tie)\W*", lines[-1] if lines else "", re.IGNORECASE)
    if answer.cut or not found:
        return "unclear"
    match found[1].upper():
        case "A":
            return "A"
        case "B":
            return "B"
        case _:
            return "C"


class Cache:
    """Answers by the hash of what was asked, in an SQLite file that several processes may share, or in memory."""

    def __init__(self, path: Path | None):
        self.path, self._memory = path, dict[str, Answer]()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as file:
                file.execute("create table if not exists answers (key text primary key, content text, cut integer)")

    def get(self, keys: Iterable[str]) -> dict[str, Answer]:
        """Those that are known."""
        if self.path is None:
            return {key: self._memory[key] for key in keys if key in self._memory}
        with self._open() as file:
            one = lambda key: file.execute("select content, cut from answers where key = ?", (key,)).fetchone()
            found = {key: one(key) for key in keys}
        return {key: Answer(row[0], bool(row[1])) for key, row in found.items() if row}

    def put(self, key: str, answer: Answer) -> None:
        """Keep an answer."""
        if self.path is None:
            self._memory[key] = answer
            return
        with self._open() as file:
            file.execute("insert or replace into answers values (?, ?, ?)", (key, answer.content, answer.cut))

    @contextlib.contextmanager
    def _open(self):
        assert self.path is not None
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=30)) as file, file:
                yield file
        except sqlite3.DatabaseError as error:
            raise ValueError(f"reward.cache: {self.path}: {error}; write another path or delete the file") from error
