"""What a race keeps in files: nothing is paid twice, and another race is not taken for it."""

import json
import time

import pytest

from modeseek.advise.book import Hours, Labels, same_race


def test_a_label_whose_line_was_cut_off_is_bought_again(tmp_path):
    book = Labels(tmp_path / "rung-0" / "labels.jsonl")
    book.add("dpo 0.1", 3, 1, 0.5)
    book.add("nothing", 0, 0, -1.0)
    with book.file.open("a") as file:
        file.write('["dpo 0.1", 4, 0, 0.')
    assert book.kept(["nothing", "dpo 0.1"]) == ([(1, 3, 1, 0.5), (0, 0, 0, -1.0)], 2)
    assert book.file.read_text().endswith("-1.0]\n")


def test_labels_are_found_again_when_other_candidates_run(tmp_path):
    book = Labels(tmp_path / "labels.jsonl")
    for arm, reading in (("dpo 0.1", 1.0), ("ipo 0.5", 2.0), ("dpo 0.1", 3.0)):
        book.add(arm, 7, 1, reading)
    found, bought = book.kept(["nothing", "hypo 0.1", "dpo 0.1"])  # no ipo; dpo stands elsewhere than before
    assert found == [(2, 7, 1, 1.0), (2, 7, 1, 3.0)] and bought == 3


def test_hours_count_over_processes_and_not_what_lies_between(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    first = Hours(tmp_path / "hours.jsonl", last=0.0)
    now[0] = 3600.0
    first.tick(0)
    now[0] = 90_000.0  # killed, and started again a day later
    second = Hours(tmp_path / "hours.jsonl", last=now[0])
    now[0] += 1800.0
    second.tick(0)
    now[0] += 360.0
    second.tick(1)
    assert second.of(0) == pytest.approx(1.5) and second.of(1) == pytest.approx(0.1)


def test_a_race_that_began_from_something_else_is_refused(tmp_path):
    same_race(tmp_path, {"model": "a", "judge": "length"})
    same_race(tmp_path, {"model": "a", "judge": "length"})
    with pytest.raises(ValueError, match=r"output_dir: .* judge was 'length' and is now 'other'"):
        same_race(tmp_path, {"model": "a", "judge": "other"})
    assert json.loads((tmp_path / "race.json").read_text())["judge"] == "length"
