"""A group of responses, its pairs and their labels, and how they become rows of the preference store."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from modeseek.data.records import Message, Text

Preferred = Literal["a", "b", "tie", "skip"]


@dataclass(frozen=True, kw_only=True)
class Response:
    """A response and where it comes from. `draw` tells two equal texts of one writer apart."""

    text: Text
    writer: str = ""
    draw: str
    policy_hash: str = ""
    step: int | None = None
    temperature: float | None = None
    logp: float | None = None
    tokens: int | None = None
    finished: bool = True
    reward: float | None = None
    rewarded_by: str | None = None


@dataclass(frozen=True, kw_only=True)
class Label:
    """What was said of a pair by something other than a person at the page."""

    annotator: str
    kind: Literal["rule", "model", "judge", "person", "data"]
    preferred: Preferred
    confidence: float | None = None
    shown: Literal["ab", "ba", "both", ""] = ""
    orders: str = ""  # a judge's verdicts with a first and with b first, such as "a tie"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two places of a group's responses, and the labels it has."""

    a: int
    b: int
    labels: Sequence[Label] = ()
    wanted: int = 0  # labels that people are asked for


@dataclass(frozen=True, kw_only=True)
class Group:
    """A prompt, the responses to it, and the pairs made of them."""

    prompt: Text
    source: str
    responses: Sequence[Response]
    pairs: Sequence[Pair]


def dump(text: Text) -> str:
    """A text as the store keeps it: JSON in ASCII, so that no character of any model can be refused."""
    return json.dumps(text if isinstance(text, str) else [{"role": m.role, "content": m.content} for m in text])


def restore(stored: str) -> Text:
    """The inverse of `dump`."""
    found = json.loads(stored)
    return found if isinstance(found, str) else tuple(Message(m["role"], m["content"]) for m in found)


def share(text: str) -> float:
    """A number of [0, 1) that belongs to a text: chance that comes out the same every time."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest()[:6]) / 2**48


def add_group(db: sqlite3.Connection, group: Group, where: tuple[str, int, int], selected: str, at: float) -> None:
    """Write a group; what is there already stays. `where` is the plan, the chunk and the group's place in it."""
    prompt = _prompt(db, group)
    ids = [_response(db, prompt, group, response, where, at) for response in group.responses]
    for pair in group.pairs:
        _pair(db, prompt, ids[pair.a], ids[pair.b], pair, (*where[:2], selected), at)


def _prompt(db: sqlite3.Connection, group: Group) -> int:
    stored = dump(group.prompt)
    key = hashlib.sha256(stored.encode()).hexdigest()
    db.execute("insert or ignore into prompts (key, prompt, source) values (?, ?, ?)", (key, stored, group.source))
    return db.execute("select id from prompts where key = ?", (key,)).fetchone()[0]


def _response(
    db: sqlite3.Connection, prompt: int, group: Group, x: Response, where: tuple[str, int, int], at: float
) -> int:
    stored = dump(x.text)
    content = json.dumps([dump(group.prompt), stored, x.writer, x.policy_hash, x.draw])
    key = hashlib.sha256(content.encode()).hexdigest()
    values = {
        "key": key,
        "prompt": prompt,
        "response": stored,
        **{name: getattr(x, name) for name in ("writer", "policy_hash", "step", "temperature", "logp", "tokens")},
        **dict(zip(("plan", "chunk", "place"), where, strict=True)),
        "finished": int(x.finished),
        "reward": x.reward,
        "rewarded_by": x.rewarded_by,
        "at": at,
    }
    named = ", ".join(values)
    places = ", ".join("?" * len(values))
    db.execute(f"insert or ignore into responses ({named}) values ({places})", tuple(values.values()))
    return db.execute("select id from responses where key = ?", (key,)).fetchone()[0]


def _pair(
    db: sqlite3.Connection, prompt: int, a: int, b: int, pair: Pair, made: tuple[str, int, str], at: float
) -> None:
    insert = "insert or ignore into pairs (prompt, a, b, plan, chunk, selected, wanted) values (?, ?, ?, ?, ?, ?, ?)"
    db.execute(insert, (prompt, a, b, *made, pair.wanted))
    (row,) = db.execute("select id from pairs where a = ? and b = ?", (a, b)).fetchone()
    for x in pair.labels:
        columns = "pair, annotator, kind, preferred, confidence, shown, orders, at"
        values = (row, x.annotator, x.kind, x.preferred, x.confidence, x.shown, x.orders, at)
        db.execute(f"insert or ignore into labels ({columns}) values (?, ?, ?, ?, ?, ?, ?, ?)", values)
