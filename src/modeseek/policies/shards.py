"""Rows of numbers on disk, found by the hash of what they are about: appended, memory-mapped, never rewritten.

Each process appends to a shard of its own: `NAME.values` holds the numbers end to end, `NAME.index` a record of fixed
size for each row. Numbers are written first, so a process may be killed at any moment: half a record is not read, and a
checksum finds a row whose numbers never reached the disk. Many processes may fill a folder at once and read each
other's rows; none is written twice.
"""

import fcntl
import secrets
import struct
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

RECORD = struct.Struct("<16sQIBI")  # key, first byte, numbers, bytes of a number, checksum
KINDS = {4: np.dtype("<f4"), 8: np.dtype("<f8")}


@dataclass(frozen=True)
class _Row:
    """Where a row stands."""

    shard: Path  # without its ending
    start: int
    length: int
    width: int
    check: int


class Shards:
    """A folder of rows of float32 or float64, each under a key of 16 bytes."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.damaged = folder, 0  # rows whose numbers are not what was written: computed anew
        self._rows: dict[bytes, list[_Row]] = {}  # several where one was damaged
        self._seen: dict[Path, int] = {}  # bytes read of each shard's index
        self._maps: dict[Path, np.ndarray] = {}
        self._own: Path | None = None
        self.look()

    def __len__(self) -> int:
        return sum(map(bool, self._rows.values()))

    def look(self) -> None:
        """Take notice of what other processes have written."""
        for index in sorted(self.folder.glob("*.index")):  # by age: a shard's name begins with its time
            self._read(index.with_suffix(""))

    def get(self, key: bytes) -> np.ndarray | None:
        """The row under this key, or None where there is none."""
        for row in self._rows.get(key, [])[:]:
            found = self._bytes(row)
            if zlib.crc32(found, zlib.crc32(key)) == row.check:
                return np.frombuffer(found, KINDS[row.width])
            self.damaged += 1
            self._rows[key].remove(row)
        return None

    def add(self, rows: Mapping[bytes, np.ndarray]) -> None:
        """Keep these rows, without those that another process has kept meanwhile: one at a time looks and writes."""
        if not rows:
            return
        with (self.folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.look()
            if new := {key: row for key, row in rows.items() if not self._rows.get(key)}:
                self._write(new)

    def _write(self, new: Mapping[bytes, np.ndarray]) -> None:
        if self._own is None:
            self._own = self.folder / f"{time.time_ns():020d}-{secrets.token_hex(4)}"
        numbers, records = [], []
        with self._own.with_suffix(".values").open("ab") as file:
            start = file.tell()
            for key, row in new.items():
                width = row.dtype.itemsize
                numbers.append(np.ascontiguousarray(row, KINDS[width]).tobytes())
                records.append(RECORD.pack(key, start, len(row), width, zlib.crc32(numbers[-1], zlib.crc32(key))))
                start += len(numbers[-1])
            file.write(b"".join(numbers))
        with self._own.with_suffix(".index").open("ab") as file:
            file.write(b"".join(records))
        self._read(self._own)

    def _bytes(self, row: _Row) -> bytes:
        stop = row.start + row.length * row.width
        if not row.length:
            return b""
        if len(self._maps.get(row.shard, ())) < stop:
            self._maps[row.shard] = np.memmap(row.shard.with_suffix(".values"), np.uint8, mode="r")
        return self._maps[row.shard][row.start : stop].tobytes()

    def _read(self, shard: Path) -> None:
        seen, index = self._seen.get(shard, 0), shard.with_suffix(".index")
        if index.stat().st_size < seen + RECORD.size:
            return
        with index.open("rb") as file:
            file.seek(seen)
            told = file.read()
        whole = len(told) // RECORD.size * RECORD.size
        for key, *where in RECORD.iter_unpack(told[:whole]):
            row = _Row(shard, *where)
            if row.width in KINDS and shard.with_suffix(".values").stat().st_size >= row.start + row.length * row.width:
                self._rows.setdefault(key, []).append(row)
            else:
                self.damaged += 1
        self._seen[shard] = seen + whole
