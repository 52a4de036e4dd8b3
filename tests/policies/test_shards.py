"""Rows of numbers on disk: found again by anyone, whatever happened to whoever wrote them."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from modeseek.policies.shards import RECORD, Shards

KEYS = [bytes([i]) * 16 for i in range(6)]
ROWS = [np.arange(n, dtype=np.float32) + n / 7 for n in range(6)]


def kept(folder):
    return {i: row.tolist() for i, key in enumerate(KEYS) if (row := Shards(folder).get(key)) is not None}


def test_what_is_added_is_found_by_whoever_comes_later(tmp_path):
    shards = Shards(tmp_path / "deep" / "down")
    shards.add(dict(zip(KEYS[:3], ROWS[:3], strict=True)))
    shards.add({KEYS[4]: ROWS[4].astype(np.float64)})
    assert kept(tmp_path / "deep" / "down") == {i: ROWS[i].tolist() for i in (0, 1, 2, 4)}
    assert shards.get(KEYS[4]).dtype == np.float64 and shards.get(KEYS[2]).dtype == np.float32
    assert shards.get(KEYS[5]) is None and len(shards) == 4
    assert len(list((tmp_path / "deep" / "down").glob("*.*"))) == 2  # one shard


def test_a_row_is_written_once(tmp_path):
    first, second = Shards(tmp_path), Shards(tmp_path)
    first.add({KEYS[1]: ROWS[1]})
    second.add({KEYS[1]: ROWS[1], KEYS[2]: ROWS[2]})  # it looks before it writes
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("*.index"))]
    assert sizes == [RECORD.size, RECORD.size]
    first.look()
    assert first.get(KEYS[2]).tolist() == ROWS[2].tolist()


@pytest.mark.parametrize("ending", ["index", "values"])
def test_a_process_killed_at_any_byte_costs_the_row_it_was_writing_and_no_other(tmp_path, ending):
    """The file is cut after each of its bytes: what is found is always whole, and what was lost can be added again."""
    whole = tmp_path / "whole"
    Shards(whole).add(dict(zip(KEYS[1:4], ROWS[1:4], strict=True)))  # 1, 2 and 3 numbers
    (written,) = whole.glob(f"*.{ending}")
    for size in range(written.stat().st_size + 1):
        folder = tmp_path / f"{size}"
        folder.mkdir()
        for path in whole.iterdir():
            stop = size if path == written else None
            (folder / path.name).write_bytes(path.read_bytes()[:stop])
        there = size // RECORD.size if ending == "index" else sum(size >= 4 * n for n in (1, 3, 6))
        assert kept(folder) == {i: ROWS[i].tolist() for i in range(1, 1 + there)}
        Shards(folder).add(dict(zip(KEYS[1:4], ROWS[1:4], strict=True)))
        assert kept(folder) == {i: ROWS[i].tolist() for i in (1, 2, 3)}


def test_numbers_that_never_reached_the_disk_are_not_taken_for_a_row(tmp_path):
    shards = Shards(tmp_path)
    shards.add({KEYS[3]: ROWS[3]})
    (values,) = tmp_path.glob("*.values")
    values.write_bytes(bytes(12))
    again = Shards(tmp_path)
    assert again.get(KEYS[3]) is None and again.damaged == 1
    again.add({KEYS[3]: ROWS[3]})
    assert kept(tmp_path) == {3: ROWS[3].tolist()}


def test_a_disk_that_is_full_leaves_nothing_that_points_at_nothing(tmp_path, monkeypatch):
    shards, opened = Shards(tmp_path), Path.open
    shards.add({KEYS[1]: ROWS[1]})

    def full(path, *more):
        if path.suffix == ".values":
            raise OSError("no space left on device")
        return opened(path, *more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(OSError, match="no space"):
            shards.add({KEYS[2]: ROWS[2]})
    again = Shards(tmp_path)
    assert kept(tmp_path) == {1: ROWS[1].tolist()} and again.damaged == 0
    shards.add({KEYS[2]: ROWS[2]})
    assert kept(tmp_path) == {1: ROWS[1].tolist(), 2: ROWS[2].tolist()}


def _fill_for_ever(folder, number):
    shards = Shards(folder)
    for i in range(1_000_000):
        shards.add({i.to_bytes(8, "little") + number.to_bytes(8, "little"): np.full(300, i, dtype=np.float32)})


def test_what_a_killed_process_has_kept_is_whole_and_holds_up_no_one(tmp_path):
    context = multiprocessing.get_context("fork")
    for number in range(4):
        worker = context.Process(target=_fill_for_ever, args=(tmp_path, number))
        worker.start()
        time.sleep(0.15 + 0.01 * number)
        os.kill(worker.pid, signal.SIGKILL)
        worker.join(10)
    shards = Shards(tmp_path)
    rows = {key: shards.get(key) for key in list(shards._rows)}
    assert len(rows) > 20 and shards.damaged == 0
    assert all(row.tolist() == [int.from_bytes(key[:8], "little")] * 300 for key, row in rows.items())
    shards.add({KEYS[5]: ROWS[5]})  # the lock of a dead process is nobody's
    assert Shards(tmp_path).get(KEYS[5]).tolist() == ROWS[5].tolist()


def _fill(folder, start):
    shards = Shards(folder)
    for i in range(start, start + 40):
        shards.add({i.to_bytes(16, "little"): np.full(i + 1, i, dtype=np.float32)})


def test_processes_that_fill_a_folder_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fill, args=(tmp_path, start)) for start in (0, 20, 40)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    shards = Shards(tmp_path)
    assert [worker.exitcode for worker in workers] == [0, 0, 0] and len(shards) == 80
    for i in range(80):
        assert shards.get(i.to_bytes(16, "little")).tolist() == [i] * (i + 1)
