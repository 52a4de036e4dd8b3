"""The same harness on a language model: runs of `modeseek train` become rows, and methods are compared in pairs."""

import pytest
from rich.console import Console

from modeseek.record import is_run, read
from modeseek.studies.conduct import Order, conduct
from modeseek.studies.lm import study_of
from modeseek.studies.load import Runs

OPTIONS = """
runs:
  methods: [dpo, best_of_n]
  options: {max_steps: 2, prompts_per_round: 4, max_length: 120, max_completion_length: 60, eval_steps: 1,
    eval_prompts: 4}
  options_of: {best_of_n: {source: {num_generations: 2}}}
seeds: 2
chunk_of: {lm: 1}
"""


def test_dials_stand_over_options_and_both_over_the_method(tmp_path):
    runs = Runs(methods=("dpo",), options={"learning_rate": 1e-3, "objective": {"beta": 0.5}})
    world = study_of("lm", runs, model="M", data="D", reward="length", folder=tmp_path).worlds[0]
    plain, told = world.config("dpo", 5, {}), world.config("dpo", 5, {"objective.beta": 0.2, "max_steps": 7})
    assert (plain.learning_rate, plain.objective.beta, plain.seed, plain.prompts_per_round) == (1e-3, 0.5, 5, 16)
    assert (told.objective.beta, told.max_steps, told.learning_rate) == (0.2, 7, 1e-3)
    assert plain.output_dir != told.output_dir != world.config("dpo", 6, {}).output_dir


def test_a_method_or_an_option_that_is_not_known_is_refused_before_anything_is_trained(tmp_path):
    for runs, said in (
        (Runs(methods=("dppo",)), "no method 'dppo'"),
        (Runs(methods=("dpo",), options={"learning_rat": 1}), "learning_rat: no such key"),
    ):
        with pytest.raises(ValueError, match=said):
            study_of("lm", runs, model="M", data="D", reward="length", folder=tmp_path)


@pytest.mark.slow
def test_a_grid_of_runs_is_compared_and_not_run_twice(tiny, fable_pairs, tmp_path):
    (tmp_path / "grid.yaml").write_text(OPTIONS)
    order = Order(
        config=str(tmp_path / "grid.yaml"),
        model=str(tiny),
        data=str(fable_pairs),
        reward="length:prefer=shorter",
        workers=1,
        output_dir=str(tmp_path / "out"),
    )
    folder, said, failed = conduct(order, Console(quiet=True))
    assert not failed
    found = said["sets"][0]["differences"]
    assert [(d["metric"], d["ours"], d["theirs"], d["n"]) for d in found] == [
        ("reward", "dpo", "best_of_n", 2),
        ("kl", "dpo", "best_of_n", 2),
    ]
    runs = sorted(path for path in (folder / "runs").iterdir() if is_run(path))
    assert len(runs) == 4 and not any((path / "checkpoints").exists() for path in runs)
    ends = {(r.config["method"], r.config["seed"]): r.rows[-1]["eval/reward"] for r in map(read, runs)}
    seeds = sorted({seed for _, seed in ends})
    by_hand = sum(ends["dpo", s] - ends["best_of_n", s] for s in seeds) / 2
    assert found[0]["effect"] == pytest.approx(by_hand)
    before = {path: (path / "rows.jsonl").stat().st_mtime_ns for path in runs}
    for path in (folder / "rows").iterdir():
        path.unlink()  # the runs themselves are still there
    again = conduct(order, Console(quiet=True))[1]
    assert again["sets"] == said["sets"]
    assert before == {path: (path / "rows.jsonl").stat().st_mtime_ns for path in runs}
