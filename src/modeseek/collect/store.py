"""The preference store: one SQLite file that any number of processes append to, and that no crash can corrupt.

Machines write whole chunks, people write one label at a time; either is one transaction, on disk when the call
returns. The journal is a write-ahead log, so that a page goes on reading while a chunk is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from modeseek.collect.rows import Group, Preferred, add_group, restore, share
from modeseek.collect.schema import VERSION, bring_up
from modeseek.data.records import Text

Shown = Literal["ab", "ba"]
HELD = 600.0  # seconds that a pair on somebody's screen is kept from others


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A pair for a person to look at. `order` is the same each time the same person is shown it."""

    pair_id: int
    prompt: Text
    a: Text
    b: Text
    order: Shown  # which response stands first


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far people are. `done` and `skipped` are one person's where one was named, else everybody's."""

    pairs: int  # that people are asked about
    wanted: int  # labels in all, overlap included
    got: int  # labels so far, skips not counted
    done: int
    skipped: int
    by: Mapping[str, int] = field(default_factory=dict)  # labels of each of those persons, skips not counted


class Store:
    """A preference store. `Store(path)` makes the file where there is none, unless `must_exist`."""

    def __init__(self, path: str | Path, *, must_exist: bool = False):
        self.path = Path(path)
        if must_exist and not self.path.is_file():
            raise ValueError(f"store: no file {self.path}; `modeseek collect` makes one, or mend the path")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        try:
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
            for pragma in ("journal_mode = wal", "synchronous = full", "foreign_keys = on"):
                self._db.execute(f"pragma {pragma}")
            with self.writing() as db:
                bring_up(db)
            (found,) = self._db.execute("select value from facts where name = 'version'").fetchone()
        except sqlite3.DatabaseError as error:
            raise ValueError(f"store: {self.path}: {error}; name a preference store or a new file") from error
        if int(found) != VERSION:
            raise ValueError(f"store: {self.path} is of version {found}, this program reads {VERSION}; export it there")

    def close(self) -> None:
        """Let the file go."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is on disk when the block ends, or none of it ever was."""
        with self._lock:
            self._db.execute("begin immediate")
            try:
                yield self._db
                self._db.execute("commit")
            except BaseException:
                self._db.execute("rollback")
                raise

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """What a query finds."""
        with self._lock:
            return self._db.execute(query, values).fetchall()

    # Machines: plans and their chunks

    def begin(self, plan: Mapping[str, Any]) -> str:
        """Write a plan down; its hash, under which its chunks are found again."""
        name = plan_hash(plan)
        with self.writing() as db:
            db.execute("insert or ignore into plans values (?, ?)", (name, json.dumps(plan, sort_keys=True)))
        return name

    def done(self, plan: str) -> set[int]:
        """The numbers of a plan's chunks that are stored."""
        return {number for (number,) in self.rows("select number from chunks where plan = ?", plan)}

    def counts(self, plan: str) -> dict[str, int]:
        """What a plan's chunks hold and left out, added up."""
        total = dict[str, int]()
        for (counts,) in self.rows("select counts from chunks where plan = ? order by number", plan):
            for name, n in json.loads(counts).items():
                total[name] = total.get(name, 0) + n
        return total

    def commit(
        self,
        plan: str,
        number: int,
        groups: Sequence[Group],
        *,
        selected: str,
        left_out: Mapping[str, int] | None = None,
    ) -> bool:
        """Store a chunk whole; False, and nothing changes, where it is there already."""
        with self.writing() as db:
            if db.execute("select 1 from chunks where plan = ? and number = ?", (plan, number)).fetchone():
                return False
            at = time.time()
            for place, group in enumerate(groups):
                add_group(db, group, (plan, number, place), selected, at)
            counts = {
                "prompts": len(groups),
                "responses": sum(len(g.responses) for g in groups),
                "pairs": sum(len(g.pairs) for g in groups),
                **(left_out or {}),
            }
            db.execute("insert into chunks values (?, ?, ?, ?)", (plan, number, json.dumps(counts), at))
            db.execute("delete from drafts where plan = ? and number = ?", (plan, number))
        return True

    def draft(self, plan: str, number: int) -> str | None:
        """What was sampled for a chunk that is not labelled yet, as it was kept."""
        found = self.rows("select groups from drafts where plan = ? and number = ?", plan, number)
        return found[0][0] if found else None

    def keep_draft(self, plan: str, number: int, groups: str) -> None:
        """Keep what was sampled until the chunk is labelled: a label is for these texts, not for others."""
        with self.writing() as db:
            db.execute("insert or replace into drafts values (?, ?, ?)", (plan, number, groups))

    def spent(self, account: str) -> int:
        """Requests that an account has sent to a judge, by every process that drew on it."""
        found = self.rows("select requests from paid where account = ?", account)
        return found[0][0] if found else 0

    def spend(self, account: str, requests: int) -> None:
        """Write down requests before they are sent."""
        more = "on conflict (account) do update set requests = requests + excluded.requests"
        with self.writing() as db:
            db.execute(f"insert into paid values (?, ?) {more}", (account, requests))

    # People

    def ask(self, *, overlap: float = 0.1, times: int = 2, unlabelled_only: bool = False) -> int:
        """Put pairs into people's queue: each once, a share of them `times`. How many pairs are in it.

        Which pairs overlap is a matter of their id, so that asking again changes nothing.
        """
        if not 0 <= overlap <= 1 or times < 1:
            raise ValueError(
                f"overlap {overlap} and times {times}: expected a share between 0 and 1 and 1 or more people"
            )
        unlabelled = "where not exists (select 1 from labels where pair = pairs.id and undone is null)"
        found = self.rows(f"select id from pairs {unlabelled if unlabelled_only else ''}")
        wanted = [(times if overlaps(pair, overlap) else 1, pair) for (pair,) in found]
        with self.writing() as db:
            db.executemany("update pairs set wanted = ? where id = ?", wanted)
            db.execute("update annotators set done_before = 0")
        return len(wanted)

    def next_pair(self, annotator: str) -> Asked | None:
        """The pair on this person's screen, else the first that waits for them and is on nobody else's, or None.

        Everybody goes through the pairs in the same order, so that pairs with overlap meet their second person early.
        """
        _check_name(annotator)
        now = time.time()
        with self.writing() as db:
            db.execute("insert or ignore into annotators (name) values (?)", (annotator,))
            query = "select done_before, holds from annotators where name = ?"
            start, held = db.execute(query, (annotator,)).fetchone()
            free = lambda pair, wanted, got: got + _holders(db, pair, annotator, now) < wanted
            on_screen = db.execute(_ON_SCREEN, (held, annotator)).fetchone()
            first, found = None, held if on_screen and free(*on_screen) else None
            for row in () if found else db.execute(_WAITING, (start, annotator)):
                first = row[0] if first is None else first
                if free(*row):
                    found = row[0]
                    break
            update = "update annotators set done_before = coalesce(?, done_before), holds = ?, since = ? where name = ?"
            db.execute(update, (first, found, now, annotator))
            return None if found is None else _asked(db, found, annotator)

    def label(
        self,
        pair_id: int,
        annotator: str,
        preferred: Preferred,
        seconds: float | None = None,
        order: Shown = "ab",
        note: str = "",
        client: str | None = None,
    ) -> int:
        """Keep what a person said of a pair; the label's id. On disk when this returns.

        The same `client` id again is the same click: nothing changes. Another one for the same pair replaces what
        this person said before, which stays in the file as taken back.
        """
        _check_name(annotator)
        if preferred not in ("a", "b", "tie", "skip") or order not in ("ab", "ba"):
            raise ValueError(f"label: {preferred!r} shown {order!r}, expected a, b, tie or skip, shown ab or ba")
        with self.writing() as db:
            same = db.execute("select id, pair, annotator from labels where client = ?", (client,)).fetchone()
            if same and same[1:] != (pair_id, annotator):
                raise ValueError(f"label: the click {client} was for another pair or by another person")
            if same:
                return same[0]
            if not db.execute("select 1 from pairs where id = ?", (pair_id,)).fetchone():
                raise ValueError(f"label: no pair {pair_id} in {self.path.name}")
            before = db.execute(f"select id from labels where pair = ? and annotator = ? {_LIVE}", (pair_id, annotator))
            for (old,) in before.fetchall():
                _take_back(db, old)
            row = (pair_id, annotator, "person", preferred, order, seconds, note, client, time.time())
            made = db.execute(f"insert into labels ({_LABEL}) values (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            db.execute("update pairs set got = got + ? where id = ?", (preferred != "skip", pair_id))
            db.execute("update annotators set holds = null where name = ?", (annotator,))
            assert made.lastrowid is not None
            return made.lastrowid

    def undo(self, annotator: str, label: int | None = None) -> int | None:
        """Take this person's last label back, or the one named; its pair, which is on their screen from now, or None.

        One that is named is taken back once, however often it is asked for: an answer may be lost on its way.
        """
        named = "select id, pair, undone from labels where annotator = ? and kind = 'person' and id = ?"
        with self.writing() as db:
            last = self.last(annotator) if label is None else label
            found = db.execute(named, (annotator, last)).fetchone()
            if found is None:
                return None
            if found[2] is None:
                _take_back(db, found[0])
                held = "update annotators set holds = ?, since = ? where name = ?"
                db.execute(held, (found[1], time.time(), annotator))
            return found[1]

    def last(self, annotator: str) -> int | None:
        """The last label of a person that stands."""
        query = f"select id from labels where annotator = ? and kind = 'person' {_LIVE} order by id desc limit 1"
        found = self.rows(query, annotator)
        return found[0][0] if found else None

    def progress(self, annotator: str | None = None) -> Progress:
        """How far people are, one of them or all."""
        pairs = self.rows("select wanted, got, n from asked")
        found = self.rows(
            "select annotator, done, skipped from said where annotator = coalesce(?, annotator)", annotator
        )
        return Progress(
            pairs=sum(n for _, _, n in pairs),
            wanted=sum(wanted * n for wanted, _, n in pairs),
            got=sum(min(got, wanted) * n for wanted, got, n in pairs),
            done=sum(done for _, done, _ in found),
            skipped=sum(skipped for _, _, skipped in found),
            by={name: done for name, done, _ in found if done},
        )

    def digest(self) -> str:
        """A hash of everything but times and row numbers: two stores that hold the same say the same."""
        found = hashlib.sha256()
        for query in _CONTENT:
            for row in sorted(map(repr, self.rows(query))):
                found.update(row.encode("utf-8", "backslashreplace") + b"\n")
        return found.hexdigest()


def plan_hash(plan: Mapping[str, Any]) -> str:
    """16 hex digits of a plan's content."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:16]


def overlaps(pair: int, part: float) -> bool:
    """Whether a pair is among the share that several people label."""
    return share(f"overlap {pair}") < part


_LIVE = "and undone is null"
_LABEL = "pair, annotator, kind, preferred, shown, seconds, note, client, at"
_WAITING = f"""
    select id, wanted, got from pairs where got < wanted and id >= ?
    and not exists (select 1 from labels where pair = pairs.id and annotator = ? {_LIVE}) order by id
"""
_ON_SCREEN = _WAITING.replace("id >= ?", "id = ?")
_CONTENT = (
    "select hash, plan from plans",
    "select plan, number, counts from chunks",
    "select key, prompt, source from prompts",
    "select key, response, writer, policy_hash, step, temperature, logp, tokens, plan, chunk, place, finished,"
    " reward, rewarded_by"
    " from responses",
    "select x.key, y.key, pairs.plan, pairs.chunk, selected, wanted, got from pairs, responses x, responses y"
    " where x.id = a and y.id = b",
    "select x.key, y.key, annotator, kind, preferred, confidence, shown, note, orders from labels, pairs, responses x,"
    " responses y where pair = pairs.id and x.id = a and y.id = b and undone is null",
)


def _holders(db: sqlite3.Connection, pair: int, but: str, now: float) -> int:
    query = "select count(*) from annotators where holds = ? and name != ? and since > ?"
    return db.execute(query, (pair, but, now - HELD)).fetchone()[0]


def _asked(db: sqlite3.Connection, pair: int, annotator: str) -> Asked:
    query = """select prompts.prompt, x.response, y.response from pairs, prompts, responses x, responses y
        where pairs.id = ? and prompts.id = pairs.prompt and x.id = a and y.id = b"""
    prompt, a, b = map(restore, db.execute(query, (pair,)).fetchone())
    order: Shown = "ab" if share(f"order {pair} {annotator}") < 0.5 else "ba"
    return Asked(pair_id=pair, prompt=prompt, a=a, b=b, order=order)


def _take_back(db: sqlite3.Connection, label: int) -> None:
    pair, preferred = db.execute("select pair, preferred from labels where id = ?", (label,)).fetchone()
    db.execute("update labels set undone = ? where id = ?", (time.time(), label))
    db.execute("update pairs set got = got - ? where id = ?", (preferred != "skip", pair))
    db.execute("update annotators set done_before = min(done_before, ?)", (pair,))


def _check_name(annotator: str) -> None:
    if not annotator.strip() or ":" in annotator:
        raise ValueError(f"annotator: {annotator!r}, expected a name without a colon")
