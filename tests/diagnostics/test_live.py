"""A run says what it is doing: on its card, on its page, and by ending where it was asked to."""

import pytest
import yaml

from modeseek.config import load
from modeseek.diagnostics.states import SICK, refuse_blind
from modeseek.record import read
from modeseek.report.page import render
from modeseek.runs import train

SMALL = {
    "max_steps": 40,
    "prompts_per_round": 8,
    "max_length": 120,
    "max_completion_length": 60,
    "eval_steps": 4,
    "eval_prompts": 4,
    "eval_size": 8,
    "save_steps": 0,
}


def run_of(tiny, pairs, folder, method="dpo", **flags):
    words = {"model": tiny, "data": pairs, "output_dir": folder, **SMALL, **flags}
    return load(method, [w for key, value in words.items() for w in (f"--{key}", str(value))])


@pytest.fixture(scope="module")
def ended(tiny, fable_pairs, tmp_path_factory):
    """DPO at a rate at which both responses of a pair fall, asked to end on that."""
    folder = tmp_path_factory.mktemp("live") / "run"
    return train(run_of(tiny, fable_pairs, folder, learning_rate=1e-2, stop_on="displacement,drift,collapse"))


def test_a_run_ends_on_a_sick_state_and_keeps_what_it_has(ended):
    found = read(ended)
    state = found.card["state"]
    assert state["state"] in SICK and state["remedy"] and state["evidence"]
    assert max(row["step"] for row in found.rows) < 40
    assert (ended / "model" / "README.md").exists()
    assert found.card["states"][-1] == {"step": state["step"], "state": state["state"]}


def test_rows_hold_what_drift_and_collapse_are_seen_by(ended):
    """Of fresh responses, -log pi_ref is entropy + KL, so it is no less than the KL by more than chance."""
    rows = [row for row in read(ended).rows if "eval/surprise" in row]
    assert len(rows) >= 3 and all(row["eval/surprise"] > 0 for row in rows)


def test_the_page_says_what_the_run_was_doing(ended):
    state, page = read(ended).card["state"], render([read(ended)])
    assert "What the run was doing" in page and state["title"] in page
    assert state["remedy"].split(",")[0] in page


def test_a_run_that_ended_on_a_state_goes_on_where_it_is_no_longer_asked_to(ended, tiny, fable_pairs):
    before = max(row["step"] for row in read(ended).rows)
    run = run_of(tiny, fable_pairs, ended, learning_rate=1e-2, stop_on="none", max_steps=before + 2)
    train(run, resume=True)
    assert max(row["step"] for row in read(ended).rows) == before + 2


def test_a_reward_that_is_never_trained_on_is_measured(tiny, fable_pairs, tmp_path):
    flags = {"gold_reward": "length:prefer=shorter", "max_steps": 2, "eval_steps": 1}
    found = read(train(run_of(tiny, fable_pairs, tmp_path / "run", **flags)))
    gold = [row for row in found.rows if "eval/gold_reward" in row]
    assert [row["step"] for row in gold] == [0, 1, 2]
    assert yaml.safe_load((found.path / "run.yaml").read_text())["gold_reward"]["type"] == "length"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"stop_on": "healthy"}, "stop_on: 'healthy', expected some of displacement"),
        ({"stop_on": "over-optimisation"}, "over-optimisation cannot be seen.*--gold-reward"),
        ({"stop_on": "collapse", "eval_prompts": 0}, "collapse cannot be seen.*eval_prompts"),
        ({"stop_on": "drift", "eval_steps": 0}, "drift cannot be seen"),
        ({"gold_reward": "length", "eval_prompts": 0}, "gold_reward: given, but eval_prompts is 0"),
    ],
)
def test_a_state_that_a_run_cannot_show_is_refused(flags, message, tiny, fable_pairs, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(run_of(tiny, fable_pairs, tmp_path / "run", **flags))
    assert not (tmp_path / "run" / "rows.jsonl").exists()


def test_displacement_needs_pairs():
    with pytest.raises(ValueError, match="one response to a prompt"):
        refuse_blind(["displacement"], pairs=False, samples=True, score=True)
    refuse_blind(["displacement", "drift", "collapse", "over-optimisation"], pairs=True, samples=True, score=True)
    refuse_blind(["collapse", "over-optimisation"], pairs=True, samples=True, score=True, rewarded=True)
    with pytest.raises(ValueError, match="may leave the pairs"):
        refuse_blind(["drift"], pairs=True, samples=True, score=True, rewarded=True)
