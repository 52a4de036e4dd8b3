"""States of runs made on purpose, from a generator on which nothing was tuned, and states by hand."""

import pytest

from diagnostics.run_worlds import STATES, judged_on, runs, tuned_on
from modeseek.diagnostics.detector import Watch, name_state
from modeseek.diagnostics.states import SICK

RUNS = 10  # of each state, from each generator


@pytest.mark.parametrize("worlds", [tuned_on, judged_on])
def test_nine_runs_of_ten_are_named_rightly_within_their_first_third(worlds):
    right = {
        state: sum(name_state(rows).state == state for rows, _ in runs(worlds, state, RUNS, first=500, share=1 / 3))
        for state in STATES
    }
    assert sum(right.values()) >= 0.9 * RUNS * len(STATES), right


@pytest.mark.parametrize("worlds", [tuned_on, judged_on])
def test_the_runs_are_what_they_are_called(worlds):
    """By the truth at the end, which the detector never sees."""
    ends = {state: [truth for _, truth in runs(worlds, state, 2, first=0)] for state in STATES}
    assert all(end["chosen"] > 0 and end["outside"] < 0.1 for end in ends["healthy"])
    assert all(end["chosen"] < -0.5 and end["outside"] < 0.2 for end in ends["displacement"])
    assert all(end["outside"] > 0.5 for end in ends["drift"])
    assert all(end["entropy"] < 0.3 for end in ends["collapse"])
    assert all(end["gold_lost"] > 0.3 for end in ends["over-optimisation"])


def _rows(**columns):
    n = len(next(iter(columns.values())))
    return [{"step": i} | {name.replace("__", "/"): values[i] for name, values in columns.items()} for i in range(n)]


RISING = [0.1 * i for i in range(12)]


def test_margins_that_grow_while_the_chosen_hold_are_healthy():
    rows = _rows(rewards__margins=RISING, logps__chosen=[-40.0] * 12, logps__rejected=[-40.0 - i for i in range(12)])
    assert name_state(rows).state == "healthy"


def test_margins_that_grow_while_the_chosen_fall_are_displacement():
    """The chosen lose 11 nats, the rejected 22."""
    fall = lambda each: [-40.0 - each * i for i in range(12)]
    rows = _rows(rewards__margins=RISING, logps__chosen=fall(1), logps__rejected=fall(2))
    found = name_state(rows)
    assert found.state == "displacement" and "SFT" in found.remedy and "10 nats" in str(found).replace("10.0", "10")


def test_rows_of_other_pairs_are_no_fall():
    """Batches differ by nats: a first row that happens to be high is no displacement, and three rows say nothing."""
    chosen = [-38.0, -41.0, -39.5, -41.5, -40.0, -41.0, -39.0, -40.5]
    for n in (3, 4, 8):
        found = name_state(_rows(rewards__margins=RISING[:n], logps__chosen=chosen[:n]))
        assert found.state != "displacement", n


def test_a_score_that_turns_while_the_reward_rises_is_over_optimisation():
    rows = _rows(reward=RISING, eval__win_rate=[0.5, 0.55, 0.6, 0.65, 0.7, 0.7, 0.6, 0.5, 0.4, 0.35, 0.3, 0.3])
    assert name_state(rows).state == "over-optimisation"


def test_the_reward_that_is_trained_on_is_no_witness_against_itself():
    rows = _rows(reward=RISING, eval__reward=[*RISING[:6], *RISING[:6]])
    found = name_state(rows)
    assert found.state != "over-optimisation" and any("over-optimisation" in text for text in found.blind)


def test_a_run_that_learns_from_a_reward_of_its_own_samples_may_leave_the_pairs():
    """The held-out numbers of RLOO on the fables model, whose true reward rises all the while."""
    rows = _rows(
        eval__logps__chosen=[-11.36, -10.97, -11.1, -11.88, -12.53, -12.85, -12.97],
        eval__rewards__margins=[0.0, 0.93, 2.25, 3.81, 4.57, 4.8, 4.77],
        eval__kl=[0.0, 0.49, 1.19, 2.01, 2.49, 2.91, 2.58],
        eval__surprise=[12.88, 10.31, 10.52, 13.47, 14.44, 15.2, 13.7],
    )
    assert name_state(rows).state == "displacement"
    own = [row | {"reward": 0.1 * row["step"], "sample_age": 0} for row in rows]
    assert name_state(own).state == "healthy"
    fresh = [row | {"sample_age": 0} for row in rows]  # HyPO learns from pairs, and its samples have no reward
    assert name_state(fresh).state == "displacement"


GROWING = {"rewards__margins": RISING, "logps__chosen": [-40.0 + i for i in range(12)]}  # to 10 nats more at the end
OWN = {"sample_age": [0] * 12}


def test_how_far_the_chosen_moved_is_said_of_data_that_stay_the_same():
    """The mean of the last quarter, of -31, -30 and -29, less the first, of -40: 10 nats."""
    told = "margins grew by 1; the chosen moved by +10 nats"
    held = {f"eval__{name}": values for name, values in GROWING.items()}
    fresh = GROWING | OWN | {"reward": RISING}
    assert name_state(_rows(**GROWING)).evidence == (told,)
    assert name_state(_rows(**GROWING, **OWN)).evidence == (told,)  # HyPO: pairs of the data, samples without reward
    assert name_state(_rows(**held, **fresh | {"logps__chosen": [0.0] * 12})).evidence == (told,)


def test_fresh_samples_that_a_reward_chose_are_not_said_to_have_moved():
    """Online DPO: each round has its own. Two held-out rows are too few to be read instead."""
    fresh = GROWING | OWN | {"reward": RISING}
    few = {"eval__logps__chosen": [-40.0, -30.0] + [None] * 10}
    for columns in (fresh, fresh | few):
        found = name_state(_rows(**columns))
        assert found.state == "healthy" and found.evidence == ("margins grew by 1",)


def test_drift_says_how_far_the_chosen_moved_only_where_they_stay_the_same():
    """The samples' KL climbs to 10 nats, and their surprise by as much from 12; the chosen lose 10 nats."""
    away = {"eval__kl": [float(i) for i in range(12)], "eval__surprise": [12.0 + i for i in range(12)]}
    pairs = {"logps__chosen": [-40.0 - i for i in range(12)], "rewards__margins": RISING}
    first = "fresh samples cost the reference 10 nats more than its own (22)"
    assert name_state(_rows(**away, **pairs, **OWN)).evidence == (
        first,
        "the chosen moved by -10 nats, the samples by 10",
    )
    pairs.pop("rewards__margins")  # own samples that no pair is made of: each round has others
    found = name_state(_rows(**away, **pairs, **OWN))
    assert found.state == "drift" and found.evidence == (first, "their KL is 10 nats")


def test_samples_of_one_kind_are_collapse():
    rows = _rows(reward=RISING, entropy=[3.0 - 0.25 * i for i in range(12)])
    assert name_state(rows).state == "collapse"


def test_too_few_rows_say_nothing():
    assert name_state([]).state == "too early"
    assert name_state([{"step": 1, "loss": 0.69}]).state == "too early"


def test_rows_without_numbers_are_passed_over():
    rows = _rows(rewards__margins=[*RISING[:11], float("nan")], logps__chosen=[-40.0] * 12)
    assert name_state([*rows, {"step": 12, "note": "text"}]).state == "healthy"


def test_a_watch_stops_a_run_only_where_it_was_asked_to():
    fall = [-40.0 - i for i in range(12)]
    rows = _rows(rewards__margins=RISING, logps__chosen=fall, logps__rejected=[2 * x for x in fall])
    idle, asked = Watch(), Watch(stop_on=("displacement",), patience=2)
    stopped = [asked(None, row) for row in rows]
    assert not any(idle(None, row) for row in rows) and idle.verdict.state == "displacement"
    assert any(stopped) and stopped.index(True) >= 3


def test_a_state_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="stop_on: 'healthy', expected some of displacement"):
        Watch(stop_on=("healthy",))
    assert "healthy" not in SICK
