"""What the columns of preference data are called, and a row seen through our names for them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from modeseek.data.records import DataError

KNOWN = {  # our names, and the columns that are understood without a mapping: the first that is there
    "prompt": ("prompt", "instruction", "question", "query"),
    "input": ("input",),  # only beside an instruction
    "system": ("system", "system_prompt"),
    "messages": ("messages", "conversations", "conversation"),
    "chosen": ("chosen", "response_j"),
    "rejected": ("rejected", "response_k"),
    "completion": ("completion", "response", "output"),
    "label": ("label", "kto_tag"),
    "responses": ("responses", "completions"),
    "rewards": ("rewards", "scores", "ratings"),
    "response_a": ("response_a", "conversation_a"),
    "response_b": ("response_b", "conversation_b"),
    "winner": ("winner",),
    "margin": ("margin", "preference_strength"),
    "chosen_score": ("chosen_score", "score_chosen", "chosen_reward", "chosen_rating"),
    "rejected_score": ("rejected_score", "score_rejected", "rejected_reward", "rejected_rating"),
    "weight": ("weight",),
    "source": ("source", "model"),
}
SCORES = ("overall_score", "score", "reward", "rating", "fine-grained_score")  # of one entry of a rated list
TEXTS = ("response", "completion", "text", "content", "output")  # of one entry of a rated list
Column = str | list[str] | dict[str, Any]
Columns = Mapping[str, Column]


def check_columns(columns: Columns | None) -> None:
    """Refuses a mapping whose keys are not names of ours, or whose values are not columns."""
    for name, column in (columns or {}).items():
        if name not in KNOWN:
            near = difflib.get_close_matches(name, KNOWN, 1, 0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(f"columns: unknown name {name!r}; {hint}write one of {', '.join(KNOWN)}")
        if isinstance(column, list) and name not in ("prompt", "responses"):
            raise DataError(f"columns.{name}: found a list, expected one column; only prompt and responses take more")
        if isinstance(column, dict) and (name != "winner" or not {"column", "a", "b"} <= set(column)):
            raise DataError(
                f"columns.{name}: found {column}, expected a column name"
                " (winner also takes {column: label, a: 0, b: 1, tie: 2}: the codes of its values)"
            )


class Row:
    """A row seen through our names, that remembers which of its columns were read."""

    def __init__(self, row: Mapping[str, Any], at: str, columns: Columns | None):
        check_columns(columns)
        self.row, self.at, self.read = row, at, set[str]()
        self.names: dict[str, Column] = {}
        claimed = set[str]()
        for name, column in (columns or {}).items():
            wanted = [column["column"]] if isinstance(column, dict) else [column] if isinstance(column, str) else column
            for one in wanted:
                if one not in row:
                    raise DataError(
                        f"{at}, column {one!r}: not there, expected because columns.{name} names it;"
                        f" the columns are {listing(row)}"
                    )
            claimed.update(wanted)
            self.names[name] = column
        for name, candidates in KNOWN.items():
            if name not in self.names:
                found = next((c for c in candidates if c in row and c not in claimed), None)
                if found is not None:
                    self.names[name] = found

    def has(self, name: str) -> bool:
        """Whether the row has the column with something in it."""
        column = self.names.get(name)
        first = column["column"] if isinstance(column, dict) else column[0] if isinstance(column, list) else column
        return first is not None and self.row[first] is not None

    def column(self, name: str) -> str:
        """What the file calls it."""
        column = self.names.get(name, name)
        return column["column"] if isinstance(column, dict) else column if isinstance(column, str) else column[0]

    def get(self, name: str) -> Any:
        """What stands in it; the column counts as read."""
        column = self.column(name)
        self.read.add(column)
        return self.row[column]

    def bad(self, name: str, found: Any, expected: str, fix: str) -> DataError:
        """What is wrong with it, to be raised."""
        return DataError(f"{self.at}, column {self.column(name)!r}: found {found}, expected {expected}; {fix}")

    def number(self, name: str) -> float | None:
        """The number in it; None where there is nothing."""
        if not self.has(name):
            return None
        return self.as_number(name, self.get(name))

    def as_number(self, name: str, value: Any) -> float:
        """A value of it as a finite number."""
        if not isinstance(value, bool):
            try:
                number = float(value)
                if math.isfinite(number):
                    return number
            except (TypeError, ValueError):
                pass
        raise self.bad(name, show(value), "a finite number", "mend the value or leave the row out")


def listing(row: Mapping[str, Any]) -> str:
    """The names of its columns, for a message."""
    return ", ".join(str(name) for name in row) or "none"


def show(value: Any) -> str:
    """What was found, for a message: short, with its kind."""
    match value:
        case None:
            return "nothing"
        case bool():
            return f"{str(value).lower()} (a boolean)"
        case int() | float():
            return f"{value} (a number)"
        case str():
            return f"the text {value[:40] + ('...' if len(value) > 40 else '')!r}"
        case list() | tuple():
            inside = show(value[0]).split(" '")[0].split(' "')[0] if value else "nothing"
            return f"a list of {len(value)} ({inside} first)"
        case Mapping():
            return f"an object with {listing(value)}"
        case _:
            return f"a {type(value).__name__}"


def unpair(prompt: Sequence[Any], chosen: Sequence[Any], rejected: Sequence[Any]) -> dict[str, list[Any]]:
    """Columns of pairs as columns of single responses with a label: all the chosen, then all the rejected."""
    return {
        "prompt": [*prompt, *prompt],
        "completion": [*chosen, *rejected],
        "label": [True] * len(chosen) + [False] * len(rejected),
    }
