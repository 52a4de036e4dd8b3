"""The harness on a study of one file: what is run, kept, skipped, tuned and refused."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from modeseek.studies import load, store, version
from modeseek.studies.base import Cell
from modeseek.studies.conduct import Order, conduct, plan, tune_all
from modeseek.studies.grid import Clock, Outcome
from modeseek.studies.load import Settings
from modeseek.studies.plan import Task
from modeseek.studies.seeds import PURPOSES, draw
from modeseek.studies.store import Job

QUIET = Console(quiet=True)
CELL = Cell.of("w", "m", rate=0.1)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The small study as a user's file, its trail beside it."""
    shutil.copy(Path(__file__).parent / "small_study.py", tmp_path / "own.py")
    monkeypatch.setenv("TRAIL", str(tmp_path / "trail"))
    monkeypatch.setattr("modeseek.report.study.write", lambda folder: folder)  # test_page.py draws it
    return tmp_path


def run(own, config="own.py", **how):
    """Conduct it; what ran since the last time, the verdicts, what failed."""
    (own / "trail").write_text("")
    how = {"seeds": 8, "workers": 1, "output_dir": str(own / "out")} | how
    _, said, failed = conduct(Order(config=str(own / config), **how), QUIET)
    return (own / "trail").read_text().splitlines(), said, failed


def test_the_three_purposes_never_share_a_seed():
    drawn = {purpose: set(draw(purpose, 500)) for purpose in PURPOSES}
    assert all(len(seeds) == 500 for seeds in drawn.values())
    assert not drawn["tune"] & drawn["choose"] and not drawn["tune"] & drawn["report"]
    assert not drawn["choose"] & drawn["report"]
    assert [max(drawn[p]) >> 28 for p in PURPOSES] == [min(drawn[p]) >> 28 for p in PURPOSES] == [1, 2, 3]


def test_more_seeds_leave_the_first_ones_as_they_were():
    assert draw("report", 30)[:7] == draw("report", 7)
    assert (draw("tune", 1), draw("choose", 2), draw("report", 1)) == (
        (369726999,),
        (578479100, 795577638),
        (1036877053,),
    )


def test_what_is_finished_is_not_run_again(own):
    first, said, failed = run(own)
    again, same, _ = run(own)
    assert len(first) == 3 and not again and not failed
    assert said["sets"] == same["sets"]


def test_more_seeds_run_only_the_new_ones(own):
    (own / "study.yaml").write_text(f"sets: [{own}/own.py]\nchunk_of: {{line: 2}}\n")
    first, _, _ = run(own, "study.yaml", seeds=4)
    more, said, _ = run(own, "study.yaml", seeds=6)
    assert len(first) == 6 and len(more) == 3
    assert {line.split()[-1] for line in more} == {",".join(map(str, draw("choose", 6)[4:]))}
    assert said["sets"][0]["claims"][0]["parts"][0]["n"] == 6


def test_a_world_that_changed_is_run_again_but_not_for_a_comment(own):
    run(own)
    text = (own / "own.py").read_text()
    (own / "own.py").write_text(text + "\n# nothing\n")
    assert not run(own)[0]
    (own / "own.py").write_text(text.replace("0.1 * t", "0.2 * t"))
    assert len(run(own)[0]) == 3


def test_a_cell_that_fails_loses_only_itself(own, monkeypatch):
    monkeypatch.setenv("BROKEN", "bad")
    ran, said, failed = run(own)
    assert len(ran) == 3 and [str(f.task.job.cell) for f in failed] == ["line/bad"]
    part = said["sets"][0]["claims"][0]["parts"][0]
    assert (part["status"], part["n"], part["wanted"], part["reason"]) == (
        "undecided",
        0,
        8,
        "8 of 8 seeds have no rows",
    )
    assert "RuntimeError: bad <b>broke</b>" in said["failed"][0]["error"]
    monkeypatch.delenv("BROKEN")
    ran, said, failed = run(own)
    assert [line.split()[0] for line in ran] == ["bad"] and not failed
    assert said["sets"][0]["claims"][0]["verdict"] == "replicated"


def test_the_numbers_are_those_of_the_world(own):
    """Good gains 1 - 0.4 a step, bad -1 - 0.4: 8 after 4 steps, whatever the seed."""
    parts = run(own)[1]["sets"][0]["claims"][0]["parts"]
    assert parts[0]["effect"] == pytest.approx(8) and parts[1]["effect"] == 0
    lost = run(own)[1]["sets"][0]["claims"][1]
    assert (lost["verdict"], lost["parts"][0]["not_finite"], lost["parts"][0]["n"]) == ("undecided", 8, 0)


@pytest.mark.slow
def test_worker_processes_find_what_one_process_does(own):
    alone, many = run(own)[1], run(own, workers=2, output_dir=str(own / "many"))[1]
    assert alone["sets"] == many["sets"]


@pytest.mark.slow
def test_a_ray_cluster_finds_what_one_process_does(own):
    ray = pytest.importorskip("ray", reason="ray is an extra; write pip install 'modeseek[ray]'")
    alone, there = run(own)[1], run(own, on="ray", workers=1, output_dir=str(own / "ray"))[1]
    ray.shutdown()
    assert alone["sets"] == there["sets"]


def test_without_ray_the_way_to_get_it_is_said(own, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'modeseek\[ray\]'"):
        run(own, on="ray")


def test_tuning_finds_the_best_rate_on_seeds_that_nothing_else_sees(own):
    """The slope is largest at rate 3; the report and the choose seeds are not touched."""
    (own / "trail").write_text("")
    order = Order(config=str(own / "own.py"), workers=1, output_dir=str(own / "out"))
    (path,) = tune_all(order, QUIET)
    entry = json.loads(path.read_text())["chosen"][0]
    assert (entry["world"], entry["method"], entry["dials"]) == ("line", "good", {"rate": 3})
    assert entry["budget"] == "3 points x 5 seeds" and entry["at_the_edge"] == []
    seen = {int(s) for line in (own / "trail").read_text().splitlines() for s in line.split()[-1].split(",")}
    assert seen == set(draw("tune", 5))
    assert not seen & {*draw("report", 500), *draw("choose", 500)}
    ran, said, _ = run(own)
    assert "good 3" in ran[0] and said["warnings"] == []
    assert said["sets"][0]["claims"][0]["parts"][0]["effect"] == pytest.approx(9.6)  # 1 x 4 + 1.4 x 4


def test_explicit_dials_stand_over_tuned_ones_and_short_ones_over_both(own):
    order = Order(config=str(own / "own.py"), quick=True)
    settings, (p,), _ = plan(order)
    tuned = {("line", "good"): load_tuned(rate=3)}
    quick = Settings(sets=("x",), quick=load.Quick(dials={"line": {"steps": 2}, "line/bad": {}}))
    p = type(p)(loaded=p.loaded, settings=quick, quick=True, tuned=tuned)
    assert p.dials(Cell.of("line", "good")) == {"rate": 3, "steps": 2}
    assert p.dials(Cell.of("line", "good", rate=5, steps=9)) == {"rate": 5, "steps": 2}
    assert p.dials(Cell.of("line", "bad", steps=9)) == {"steps": 9}


def load_tuned(**dials):
    from modeseek.studies.plan import Tuned

    return Tuned(store.of(dials))


def test_stale_tuned_dials_are_a_loud_warning(own):
    (path,) = tune_all(Order(config=str(own / "own.py"), workers=1, output_dir=str(own / "out")), QUIET)
    text = (own / "own.py").read_text()
    (own / "own.py").write_text(text.replace("(1, 3, 5)", "(1, 3, 6)"))
    _, said, _ = run(own)
    assert said["warnings"] == [
        "small: the dials of good in line were tuned for other settings; tune again with --tune"
    ]


def test_opening_the_report_seeds_is_logged_once_a_run(own):
    log = own / "out" / store.OPENINGS
    run(own)
    assert not log.exists()
    run(own, purpose="report")
    run(own, purpose="report")  # finished: nothing is opened
    assert [line.split("\t")[1] for line in log.read_text().splitlines()] == ["own"]
    with pytest.raises(ValueError, match="too short to open the report seeds"):
        run(own, purpose="report", quick=True)


def test_one_claim_alone_still_pays_for_the_others(own):
    """Its cells alone are run, and Holm counts the parts that were not."""
    whole = run(own, seeds=3)[1]["sets"][0]
    ran, said, _ = run(own, seeds=3, only=("wild",), output_dir=str(own / "one"))
    assert sorted(line.split()[0] for line in ran) == ["bad", "wild"]
    assert [claim["name"] for claim in said["sets"][0]["claims"]] == ["wild"]
    assert said["sets"][0]["family"] == whole["family"] == 3


def test_rows_come_back_as_they_went(tmp_path):
    """NaN and infinity are numbers that were lost; a metric that a row does not have is no number."""
    job = Job(CELL, (3, 4), "v")
    told = [
        {"seed": 4, "step": 1, "a": math.nan},
        {"seed": 4, "step": 0, "a": 1.5, "b": 2},
        {"seed": 3, "step": 0, "a": math.inf},
    ]
    store.write(tmp_path, job, store.encode(job, told, 1.0))
    found = store.read(tmp_path, [job.name, "not-there.parquet"])
    assert (
        found["a"][4].steps.tolist() == [0, 1] and np.isnan(found["a"][4].values[1]) and found["a"][4].values[0] == 1.5
    )
    assert found["a"][3].values.tolist() == [math.inf] and list(found["b"]) == [4]
    assert store.facts(tmp_path, job) == {"cell": "w/m[rate=0.1]", "seeds": [3, 4], "version": "v", "seconds": 1.0}


def test_rows_that_cannot_be_paired_are_refused():
    job = Job(CELL, (3, 4), "v")
    with pytest.raises(ValueError, match=r"left out \[4\] and made rows of \[5\]"):
        store.encode(job, [{"seed": 3, "step": 0}, {"seed": 5, "step": 0}], 0.0)
    with pytest.raises(ValueError, match="two rows at the same step"):
        store.encode(job, [{"seed": 3, "step": 0}, {"seed": 3, "step": 0}, {"seed": 4, "step": 0}], 0.0)


def test_a_file_is_named_by_all_that_decides_it():
    base = Job(CELL, (3, 4), "v")
    others = [Job(Cell.of("w", "m", rate=0.2), (3, 4), "v"), Job(CELL, (3,), "v"), Job(CELL, (3, 4), "w")]
    assert len({job.name for job in [base, *others]}) == 4
    assert Job(Cell.of("w", "m", rate=0.1), (3, 4), "v").name == base.name


def test_reading_rows_and_the_page_needs_no_torch():
    code = "import sys, modeseek.studies.store, modeseek.studies.verdict, modeseek.report.study"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True)


def test_a_version_reaches_what_is_imported_and_not_how_it_is_laid_out():
    found = version._closure({"modeseek.objectives.dpo"})
    assert {"modeseek.objectives.base", "modeseek.ops"} <= set(found) and "modeseek.runs" not in found
    assert version.of_text("x = 1") == version.of_text("x  =  1  # one") != version.of_text("x = 2")
    said = '"""A module."""\ndef f():\n    """A function."""\n    return 1'
    assert version.of_text(said) == version.of_text("def f(): return 1") != version.of_text("def f(): return 2")
    assert version.of_text('x = 1\n"said"') != version.of_text("x = 1")


def test_the_time_left_counts_each_world_by_its_own_pace():
    """Two seeds of a took 4 s, so a seed takes 2 s; two are left, and three of b as slow: 10 s, on two workers 5 s."""
    tasks = [Task(Job(Cell(w, "m"), tuple(range(n)), "v"), b"") for w, n in (("a", 2), ("a", 2), ("b", 3))]
    clock = Clock(tasks, workers=2)
    clock.tick(Outcome(tasks[0], b"", "", 4.0))
    assert clock.seconds() == 5 and clock.left() == "about 0:05 left"
    clock.tick(Outcome(tasks[2], b"", "", 30.0))
    assert clock.seconds() == 2


@pytest.mark.parametrize(
    "change, said",
    [
        (('Cell.of("line"', 'Cell.of("lime"'), "no world 'lime'; did you mean line"),
        (("return tuple(WORTH)", 'return ("good", "bed", "wild")'), "no method 'bad'; did you mean bed"),
        (("margin=0.01", "margin=0"), "is an equivalence and needs a margin"),
        (('Claim("wild"', 'Claim("better"'), "two claims are called better"),
        (("study = Study", "stud = Study"), "`study` is NoneType"),
    ],
)
def test_a_study_that_would_fail_later_is_refused_now(own, change, said):
    text = (own / "own.py").read_text()
    assert change[0] in text
    (own / "own.py").write_text(text.replace(*change))
    with pytest.raises(ValueError, match=said):
        run(own)


@pytest.mark.parametrize(
    "yaml, said",
    [
        ("sets: [tajwr]", "no set 'tajwr'; did you mean tajwar"),
        ("sets: [tajwar]\nsedes: 3", r"sedes: no such key; did you mean seeds"),
        ("sets: [tajwar]\nquick: {sead: 3}", r"quick.sead: no such key"),
        ("sets: [tajwar]\nseeds: many", "seeds"),
        ("seeds: 3", "expected one of the two"),
        ("sets: [tajwar]\nchunk_of: {R1: 0}", "chunk_of.R1: 0, expected at least 1"),
    ],
)
def test_a_file_that_says_something_else_is_refused(tmp_path, yaml, said):
    (tmp_path / "s.yaml").write_text(yaml)
    with pytest.raises(ValueError, match=said):
        plan(Order(config=str(tmp_path / "s.yaml")))


def test_an_order_that_cannot_be_honoured_is_refused(own):
    with pytest.raises(ValueError, match="no study 'tajwr'; did you mean tajwar"):
        plan(Order(config="tajwr"))
    with pytest.raises(ValueError, match="only: no claim 'A9'"):
        run(own, only=("A9",))
    with pytest.raises(ValueError, match="--model: only a grid of training runs reads it"):
        run(own, model="M")
    with pytest.raises(ValueError, match="--reward: not given"):
        plan(Order(config="lm", model="M", data="D"))


def test_the_shipped_studies_can_be_read():
    for name in load.names():
        settings = load.settings(name)
        assert settings.seeds >= 3 and settings.tune_seeds >= 2
        assert set(settings.sets) <= set(load.SETS)


def test_settings_of_a_world_that_is_not_there_are_refused(own):
    for line in ("seeds_of: {lime: 3}", "chunk_of: {lime: 3}", "quick: {dials: {lime/good: {steps: 2}}}"):
        (own / "s.yaml").write_text(f"sets: [{own}/own.py]\n{line}\n")
        with pytest.raises(ValueError, match="no world 'lime'; there are line"):
            plan(Order(config=str(own / "s.yaml")))


def test_the_command_prints_verdicts_and_writes_the_docs_page(own, monkeypatch, capsys):
    from modeseek.commands.study import main

    words = [str(own / "own.py"), "--seeds", "8", "--workers", "1", "--output_dir", str(own / "out")]
    assert main([*words, "--markdown", str(own / "docs" / "own.md")]) == 0
    assert "replicated" in capsys.readouterr().out
    assert "**better** Good beats &lt;script>" in (own / "docs" / "own.md").read_text()
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sets"][0]["set"] == "small"
    monkeypatch.setenv("BROKEN", "good")
    assert main([*words, "--seeds", "9"]) == 1
    assert "FAILED line/good: RuntimeError" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("config", "claims"), [("song", ("S1", "S15")), ("tajwar", ("lemma 6.2", "theorem 6.5"))])
def test_a_slice_of_a_shipped_study_runs_from_the_command_line(config, claims, tmp_path, capsys):
    from modeseek.commands.study import main

    words = [config, "--quick", "--seeds", "2", "--workers", "1", "--output_dir", str(tmp_path)]
    assert main([*words, "--only", *claims, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert all(
        part["n"] == 2 for one in said["sets"] for claim in one["claims"] for part in claim["parts"] if part["n"]
    )
    assert (tmp_path / "report.html").exists()
