import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from modeseek.disk import write_json
from modeseek.record import Record, read, truncate


def begun(path: Path, steps: int = 0, **card) -> Record:
    run = Record.start(path, {"seed": 0}, {"method": "dpo", **card})
    for step in range(1, steps + 1):
        run.row({"step": step, "loss": 1 / step})
        run.samples([{"step": step, "prompt": "p", "response": f"r{step}", "reward": 0.5}])
    return run


def test_a_run_reads_back_as_it_was_written(tmp_path):
    run = begun(tmp_path / "run", 2, model="m")
    run.card(data={"kept": 3, "dropped": {"too_long": 1}})
    run.results([{"name": "win_rate", "value": 0.6, "low": 0.5, "high": 0.7, "n": 40}])
    data = read(tmp_path / "run")
    assert data.config == {"seed": 0}
    assert data.card == {
        "warnings": [],
        "method": "dpo",
        "model": "m",
        "data": {"kept": 3, "dropped": {"too_long": 1}},
    }
    assert data.rows == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]
    assert [s["response"] for s in data.samples] == ["r1", "r2"]
    assert data.results[0]["high"] == 0.7
    assert data.torn == ()


def test_numbers_that_are_not_finite_are_null_in_the_file_and_come_back(tmp_path):
    run = begun(tmp_path)
    run.row({"step": 1, "loss": math.nan, "kl": math.inf, "reward": -math.inf, "entropy": 1.0})
    stored = json.loads((tmp_path / "rows.jsonl").read_text(), parse_constant=pytest.fail)
    assert stored["loss"] is None and stored["nonfinite"] == {"loss": "nan", "kl": "inf", "reward": "-inf"}
    row = read(tmp_path).rows[0]
    assert math.isnan(row["loss"]) and row["kl"] == math.inf and row["reward"] == -math.inf
    assert "nonfinite" not in row


def test_numpy_numbers_paths_and_tuples_are_stored_as_plain_ones(tmp_path):
    run = Record.start(
        tmp_path, {"model": Path("a/b"), "betas": (0.9, 0.95)}, {"kept": np.int64(3), "share": np.float32(0.5)}
    )
    run.row({"step": np.int64(4), "loss": np.float32(0.25), "lengths": np.array([1, 2])})
    data = read(tmp_path)
    assert data.config == {"model": str(Path("a/b")), "betas": [0.9, 0.95]}
    assert data.card["kept"] == 3 and data.card["share"] == 0.5
    assert data.rows == [{"step": 4, "loss": 0.25, "lengths": [1, 2]}]


@pytest.mark.parametrize("text", ["a\u2028b\u0085c\r\nd", "\ud800 alone", "狐 🦊", "\x00\x1b[31m", '"}\n{"step": 9'])
def test_any_text_survives(tmp_path, text):
    begun(tmp_path).samples([{"step": 1, "prompt": text, "response": text}])
    assert [s["response"] for s in read(tmp_path).samples] == [text]


def test_wherever_a_crash_cuts_the_file_the_whole_lines_are_read_and_the_run_goes_on(tmp_path):
    run = begun(tmp_path)
    for step in (1, 2, 3):
        run.row({"step": step, "text": "狐"})
    whole = (tmp_path / "rows.jsonl").read_bytes()
    line = len(whole) // 3
    for cut in range(len(whole) + 1):
        (tmp_path / "rows.jsonl").write_bytes(whole[:cut])
        kept = (cut + 1) // line  # a line is whole without its newline
        data = read(tmp_path)
        assert [row["step"] for row in data.rows] == [1, 2, 3][:kept]
        assert data.torn == (("rows.jsonl",) if cut > kept * line else ())
        again = Record.resume(tmp_path, kept)
        again.row({"step": kept + 1, "text": "狐"})
        assert [row["step"] for row in read(tmp_path).rows] == list(range(1, kept + 2))


def test_truncation_keeps_the_checkpoints_own_step_and_the_bytes_before_it(tmp_path):
    begun(tmp_path, 5)
    before = (tmp_path / "rows.jsonl").read_bytes()
    assert truncate(tmp_path, 3) == 4  # steps 4 and 5, a row and a sample each
    after = (tmp_path / "rows.jsonl").read_bytes()
    assert before.startswith(after) and after.count(b"\n") == 3
    assert [s["step"] for s in read(tmp_path).samples] == [1, 2, 3]
    assert truncate(tmp_path, 3) == 0


def test_a_resumed_run_writes_the_rows_of_an_uninterrupted_one(tmp_path):
    begun(tmp_path / "whole", 5)
    begun(tmp_path / "broken", 4)
    run = Record.resume(tmp_path / "broken", 2)
    for step in (3, 4, 5):
        run.row({"step": step, "loss": 1 / step})
    assert (tmp_path / "broken/rows.jsonl").read_bytes() == (tmp_path / "whole/rows.jsonl").read_bytes()


def test_a_torn_line_that_is_not_the_last_is_an_error_that_names_it(tmp_path):
    begun(tmp_path, 3)
    lines = (tmp_path / "rows.jsonl").read_bytes().split(b"\n")
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([lines[0], lines[1][:7], *lines[2:]]))
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2: .*a whole line of JSON was expected"):
        read(tmp_path)


def test_a_failed_replacement_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    run = begun(tmp_path, 3)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full_disk)
    for attempt in (lambda: truncate(tmp_path, 1), lambda: run.card(kept=1), lambda: run.results([])):
        with pytest.raises(OSError, match="no space left"):
            attempt()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_file_may_go_into_a_folder_that_is_not_there_yet(tmp_path):
    write_json(tmp_path / "new" / "deep" / "numbers.json", {"a": 1})
    assert json.loads((tmp_path / "new" / "deep" / "numbers.json").read_text()) == {"a": 1}


def test_a_directory_with_rows_is_not_started_again(tmp_path):
    begun(tmp_path, 2)
    with pytest.raises(ValueError, match=r"output_dir: .* already holds a run \(2 rows\); write --resume"):
        begun(tmp_path)
    assert len(read(tmp_path).rows) == 2


def test_a_run_that_logged_nothing_may_be_started_again(tmp_path):
    begun(tmp_path, model="old")
    begun(tmp_path, model="new")
    assert read(tmp_path).card["model"] == "new"


@pytest.mark.parametrize("row", [{"loss": 1.0}, {"step": 1.5}, {"step": True}, {"step": None}])
def test_a_row_without_a_whole_step_is_refused_and_nothing_is_written(tmp_path, row):
    run = begun(tmp_path, 1)
    with pytest.raises(ValueError, match="a row needs `step`"):
        run.row(row)
    assert len(read(tmp_path).rows) == 1


def test_samples_and_results_name_what_they_lack(tmp_path):
    run = begun(tmp_path)
    with pytest.raises(ValueError, match="a sample lacks response"):
        run.samples([{"step": 1, "prompt": "p"}])
    with pytest.raises(ValueError, match="a result lacks value"):
        run.results([{"name": "kl"}])


def test_what_is_not_a_run_is_refused_with_what_it_is(tmp_path):
    with pytest.raises(ValueError, match="there is no such directory"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"neither card\.json nor run\.yaml"):
        read(tmp_path / "empty")
    begun(tmp_path / "runs/a")
    begun(tmp_path / "runs/b")
    with pytest.raises(ValueError, match=r"it holds 2 of them \(a, b\)"):
        read(tmp_path / "runs")
    with pytest.raises(ValueError, match="it is a file"):
        read(tmp_path / "runs/a/card.json")


def test_a_broken_card_or_config_is_named(tmp_path):
    begun(tmp_path)
    (tmp_path / "run.yaml").write_text("a: [1")
    with pytest.raises(ValueError, match=r"run\.yaml is not valid YAML"):
        read(tmp_path)
    (tmp_path / "run.yaml").write_text("")
    (tmp_path / "card.json").write_text("[]")
    with pytest.raises(ValueError, match=r"card\.json: found a list, expected a dict"):
        read(tmp_path)


def test_a_warning_stands_on_the_card_once(tmp_path):
    run = begun(tmp_path)
    run.warn("unverified")
    run.warn("unverified")
    run.warn("biased")
    assert read(tmp_path).card["warnings"] == ["unverified", "biased"]


def test_an_unknown_logger_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="report_to: 'mlflow' is not known; choose from tensorboard, wandb, trackio"):
        Record.start(tmp_path / "run", {}, {}, report_to=["mlflow"])
    assert not (tmp_path / "run").exists()
    assert Record.start(tmp_path / "run", {}, {}, report_to=["none"]).loggers == ()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_an_absent_logger_says_what_to_install(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"pip install 'modeseek\[{name}\]'"):
        Record.start(tmp_path, {}, {}, report_to=[name])


def test_tensorboard_gets_every_number_and_a_resumed_run_hides_what_it_redoes(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Record.start(tmp_path, {}, {}, report_to=["tensorboard"])
    for step in (1, 2, 3):
        run.row({"step": step, "loss": float(step), "note": "text"})
    run.close()
    run = Record.resume(tmp_path, 1, report_to=["tensorboard"])
    run.row({"step": 2, "loss": 20.0})
    run.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 20.0)]


def test_wandb_goes_on_in_the_same_run_after_a_resume(tmp_path, monkeypatch):
    calls = []

    def init(**settings):
        calls.append(settings)
        log = lambda metrics, step: calls.append((step, metrics))
        return SimpleNamespace(id="abc", log=log, finish=lambda: calls.append("finish"))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    run = Record.start(tmp_path, {"beta": 0.1}, {}, report_to=["wandb"])
    run.row({"step": 1, "loss": 0.5, "note": "text"})
    run.close()
    Record.resume(tmp_path, 1, report_to=["wandb"])
    assert calls[0]["id"] is None and calls[0]["config"] == {"beta": 0.1}
    assert calls[1:3] == [(1, {"loss": 0.5}), "finish"]
    assert calls[3]["id"] == "abc" and calls[3]["resume"] == "allow"


def test_trackio_gets_the_rows(tmp_path, monkeypatch):
    calls = []
    trackio = SimpleNamespace(
        init=lambda **settings: calls.append(settings["resume"]),
        log=lambda metrics, step: calls.append((step, metrics)),
        finish=lambda: calls.append("finish"),
    )
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    run = Record.start(tmp_path, {}, {}, report_to=["trackio"])
    run.row({"step": 1, "kl": 2})
    run.close()
    assert calls == ["never", (1, {"kl": 2.0}), "finish"]


def test_the_record_imports_no_torch():
    code = "import sys, modeseek.record, modeseek.report, modeseek.report.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
