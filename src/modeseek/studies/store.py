"""What a study leaves behind: a Parquet file of rows for each cell and chunk of seeds. Reading needs no torch.

    study.json         what was asked: claims, cells with their dials, seeds, the command
    rows/*.parquet     one row a seed and checkpoint; the name ends in a hash of cell, dials, seeds and version
    verdicts.json      what the claims came to
    curves.json        means and intervals over seeds, for the page
    openings.log       when the report seeds were opened, and by which commit

A file is written beside and renamed: what is there is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from modeseek.disk import write_bytes
from modeseek.studies.base import Cell, Dial, Row

ROWS, OPENINGS = "rows", "openings.log"
KEYS = ("seed", "step")


@dataclass(frozen=True)
class Job:
    """A cell with every dial that is not left at its world's default, and the seeds of one chunk."""

    cell: Cell  # its dials are the resolved ones
    seeds: tuple[int, ...]
    version: str  # of the world: source and settings

    @property
    def name(self) -> str:
        """The file's name: what it holds, and a hash of all that decides it."""
        said = json.dumps([self.cell.world, self.cell.method, self.cell.dials, self.seeds, self.version])
        digest = hashlib.sha256(said.encode()).hexdigest()[:16]
        return f"{_plain(self.cell.world)}-{_plain(self.cell.method)}-{digest}.parquet"


@dataclass(frozen=True)
class Trace:
    """One metric of one seed, by step. NaN and infinities are kept; a row without the metric is not in it."""

    steps: np.ndarray
    values: np.ndarray


def encode(job: Job, rows: Sequence[Row], seconds: float) -> bytes:
    """Rows as a Parquet file. Rows of other seeds than the job's, a seed without rows or a doubled step are refused."""
    _check(job, rows)
    names = dict.fromkeys(name for row in rows for name in row if name not in KEYS)
    columns: dict[str, pa.Array] = {key: pa.array([int(row[key]) for row in rows], pa.int64()) for key in KEYS}
    for name in names:
        values = [None if row.get(name) is None else float(row[name]) for row in rows]
        columns[name] = pa.array(values, pa.float64(), from_pandas=False)  # NaN is a number that was lost, not a gap
    facts = {"cell": str(job.cell), "seeds": list(job.seeds), "version": job.version, "seconds": round(seconds, 3)}
    table = pa.table(columns).replace_schema_metadata({"modeseek": json.dumps(facts)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def write(folder: Path, job: Job, content: bytes) -> None:
    """Keep a finished job."""
    write_bytes(folder / ROWS / job.name, content)


def done(folder: Path, job: Job) -> bool:
    """Whether a job is finished."""
    return (folder / ROWS / job.name).exists()


def facts(folder: Path, job: Job) -> Mapping[str, Any]:
    """What a finished job's file says of itself: cell, seeds, version, seconds."""
    metadata = pq.read_schema(folder / ROWS / job.name).metadata
    return json.loads(metadata[b"modeseek"])


def read(folder: Path, names: Iterable[str]) -> dict[str, dict[int, Trace]]:
    """The traces of each metric by seed, from these files of one cell. A file that is not there has no seeds."""
    found: dict[str, dict[int, Trace]] = {}
    for path in (folder / ROWS / name for name in names):
        if not path.exists():
            continue
        table = pq.read_table(path)
        seed, step = (table[key].to_numpy() for key in KEYS)
        for metric in (name for name in table.column_names if name not in KEYS):
            told = table[metric].is_valid().to_numpy()
            values = table[metric].to_numpy()
            for s in dict.fromkeys(seed.tolist()):
                at = np.flatnonzero((seed == s) & told)
                at = at[np.argsort(step[at], kind="stable")]
                if len(at):
                    found.setdefault(metric, {})[s] = Trace(step[at], values[at])
    return found


def _check(job: Job, rows: Sequence[Row]) -> None:
    if any(key not in row for row in rows for key in KEYS):
        raise ValueError(f"{job.cell}: every row needs `seed` and `step`")
    have, wanted = {int(row["seed"]) for row in rows}, set(job.seeds)
    if have != wanted:
        raise ValueError(
            f"{job.cell}: the world was asked for {len(wanted)} seeds; it left out {sorted(wanted - have)} "
            f"and made rows of {sorted(have - wanted)}"
        )
    places = [(int(row["seed"]), int(row["step"])) for row in rows]
    if len(set(places)) < len(places):
        raise ValueError(f"{job.cell}: a seed has two rows at the same step")


def _plain(word: str) -> str:
    return "".join(c if c.isalnum() or c in "_." else "_" for c in word)


def of(dials: Mapping[str, Dial]) -> tuple[tuple[str, Dial], ...]:
    """Dials as a cell keeps them."""
    return tuple(sorted(dials.items()))
