"""What a race has spent, line by line in files, so that one that is cut off pays for nothing twice.

`race.json` says which race a folder holds, `hours.jsonl` what each rung has taken over all its processes, and
`rung-N/labels.jsonl` every reading by what was read (whose answer, to which prompt), not by where it stood.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modeseek.disk import write_json


def same_race(folder: Path, card: Mapping[str, Any]) -> None:
    """Refuse to go on with a race that began from something else; write the card of one that begins."""
    file = folder / "race.json"
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        for key in sorted(before.keys() | card.keys()):
            if before.get(key) != card.get(key):
                raise ValueError(
                    f"output_dir: {folder} holds a race whose {key} was {before.get(key)!r} and is now"
                    f" {card.get(key)!r}; write another --output-dir, or the same {key}"
                )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, card)


@dataclass
class Hours:
    """How long each rung has taken, over all processes that worked on it."""

    file: Path
    last: float = field(default_factory=time.monotonic)

    def tick(self, rung: int) -> None:
        """What has passed since the last tick was this rung's."""
        now = time.monotonic()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps([rung, (now - self.last) / 3600]) + "\n")
        self.last = now

    def of(self, rung: int) -> float:
        """Hours of one rung."""
        return sum(hours for at, hours in whole(self.file) if at == rung)


@dataclass(frozen=True)
class Labels:
    """A rung's readings, by the name of whose answer was read, the prompt, and which of its answers."""

    file: Path

    def add(self, arm: str, prompt: int, answer: int, reading: float) -> None:
        """One that has just been paid for."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps([arm, prompt, answer, reading]) + "\n")

    def kept(self, arms: Sequence[str]) -> tuple[list[tuple[int, int, int, float]], int]:
        """(whose, prompt, answer, reading) of these arms, and how many were paid for in all: a candidate that no longer
        runs has had its labels."""
        lines = whole(self.file)
        mine = [(arms.index(arm), prompt, answer, reading) for arm, prompt, answer, reading in lines if arm in arms]
        return mine, len(lines)


def whole(file: Path) -> list[Any]:
    """The lines of a file; one that was cut off while it was written is taken out of it, and is bought again."""
    if not file.exists():
        return []
    found = file.read_text(encoding="utf-8").splitlines(keepends=True)
    lines = [line for line in found if line.endswith("]\n")]
    if len(lines) < len(found):
        file.write_text("".join(lines), encoding="utf-8")
    return [json.loads(line) for line in lines]
