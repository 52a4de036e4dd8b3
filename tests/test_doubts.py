"""What a run wastes is said, once, by the numbers that it logs."""

from dataclasses import replace

from modeseek.config import load
from modeseek.record import read
from modeseek.runs import train
from modeseek.runs.doubts import Doubts


def said(run, rows):
    doubts = Doubts(run)
    return [text for row in rows for text in doubts(row)]


def test_prompts_that_teach_nothing_are_named_once_after_five_steps():
    """12 of 16 prompts dropped is 75%; a step in which all 16 are groups without variance is 100%."""
    run = load("online_dpo", ["--reward", "length"])
    dropped, tied = {"loss": 0.1, "prompts/dropped": 12.0}, {"loss": 0.0, "frac_reward_zero_std": 1.0}
    assert said(run, [dropped] * 4) == []
    (text,) = said(run, [dropped] * 20)
    assert text.startswith("75% of the prompts") and "num_generations" in text
    assert said(run, [dropped] * 4 + [tied])[0].startswith("80% of")  # (4 x .75 + 1) / 5
    assert said(run, [{"loss": 0.1, "prompts/dropped": 7.0}] * 20) == []


def test_what_an_offline_run_leaves_out_is_no_waste():
    run = load("binary_feedme", [])
    assert said(run, [{"loss": 0.1, "prompts/dropped": 12.0}] * 20) == []


def test_answers_that_are_all_cut_off_are_named_where_a_reward_reads_them():
    row = {"step": 0, "eval/completions/finished": 0.0}
    run = load("rloo", ["--reward", "length", "--max_completion_length", "64"])
    (text,) = said(run, [row, row])
    assert text.startswith("100% of the held-out answers are cut off at 64 tokens")
    assert said(run, [{"eval/completions/finished": 0.2}]) == []
    assert said(load("dpo", []), [row]) == []
    assert said(replace(load("dpo", []), reward=run.reward), [row])


def test_a_runs_doubts_are_on_its_card(tiny, fable_pairs, tmp_path):
    """Two tokens are never enough, and every sample is as long as the other: no pair is made."""
    words = [
        "--model",
        str(tiny),
        "--data",
        str(fable_pairs),
        "--output_dir",
        str(tmp_path / "run"),
        "--max_steps",
        "5",
    ]
    words += ["--max_length", "60", "--max_completion_length", "2", "--eval_prompts", "4", "--reward", "length"]
    words += ["--truncate_responses"]
    train(load("gspo", words))
    warnings = " ".join(read(tmp_path / "run").card["warnings"])
    assert "cut off at 2 tokens" in warnings and "taught nothing" in warnings
