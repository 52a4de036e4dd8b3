"""One process at a time: two would sample the same chunks, pay for the same labels and train into the same folder."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator


@contextlib.contextmanager
def alone(lock_file: str, what: str) -> Iterator[None]:
    """Hold the lock, or raise ValueError about `what`. The lock goes with its process, however that ends."""
    lock = sqlite3.connect(lock_file, timeout=0, isolation_level=None)
    try:
        try:
            lock.execute("begin exclusive")
        except sqlite3.OperationalError:
            raise ValueError(f"{what}: another process is at work there; wait for it, or stop it") from None
        yield
    finally:
        lock.close()
