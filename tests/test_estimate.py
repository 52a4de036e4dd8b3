import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from modeseek.evaluate import kl, mean, mean_difference, share, win_rate

REWARDS = st.integers(-2, 2).map(float)


def test_the_mean_has_students_interval():
    """1, 2, 3: mean 2, standard deviation 1, standard error 1 / sqrt 3; t(0.975, 2 degrees) = 4.302653."""
    found = mean([1.0, 2.0, 3.0])
    assert (found.value, found.n, found.interval) == (2, 3, "t")
    assert found.standard_error == pytest.approx(1 / math.sqrt(3))
    assert found.high - 2 == 2 - found.low == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert str(found) == "2 [-0.484, 4.48]"


def test_responses_average_inside_their_prompt_first():
    """The prompts' means are 2, 5 and 1; six responses are not six prompts."""
    assert mean([[1, 3], [5, 5], [2, 0]]) == mean([2, 5, 1])
    assert share([[0, 1], [1, 1], [0, 0]]) == share([0.5, 1, 0])
    assert mean([[1, 3], [5, 5], [2, 0]]).n == 3


def test_one_prompt_has_an_infinite_interval():
    found = mean([0.7])
    assert (found.value, found.low, found.high, found.standard_error) == (0.7, -math.inf, math.inf, math.inf)


def test_a_higher_level_is_a_wider_interval():
    x = np.random.default_rng(0).random(50)
    for of in (mean, share):
        narrow, wide = of(x, level=0.8), of(x, level=0.99)
        assert wide.low < narrow.low < narrow.high < wide.high


def test_a_tie_is_half_a_win():
    """A win, a tie, a loss, a tie: (1 + 1/2 + 0 + 1/2) / 4."""
    assert win_rate([1, 1, 1, 0], [0, 1, 2, 0]).value == 0.5
    assert win_rate([1, 1], [1, 1]).value == 0.5
    assert win_rate([1, 1, 1], [0, 1, 1]).value == pytest.approx((1 + 0.5 + 0.5) / 3)


def test_each_of_our_responses_meets_each_of_theirs_to_the_same_prompt():
    """Prompt 1: 1-1 twice (tie), 2-1 twice (win): 3/4. Prompt 2: 0-0 twice (tie), 0-1 twice (loss): 1/4."""
    found = win_rate([[1, 2], [0, 0]], [[1, 1], [0, 1]])
    assert (found.value, found.n) == ((3 / 4 + 1 / 4) / 2, 2)
    assert win_rate([[1, 3]], [[2]]).value == 0.5
    assert win_rate([[1, 3, 3], [0, 0, 0]], [2, 2]).value == pytest.approx((2 / 3 + 0) / 2)


def test_twenty_wins_of_twenty_leave_room_for_a_loss():
    """Wilson at p = 1 is [n / (n + z^2), 1]: 20 / (20 + 1.959964^2) = 0.83887."""
    found = win_rate(np.ones(20), np.zeros(20))
    assert (found.value, found.high, found.interval) == (1, 1, "Wilson")
    assert found.low == pytest.approx(0.83887, abs=1e-5)
    lost = win_rate(np.zeros(20), np.ones(20))
    assert (lost.value, lost.low) == (0, 0)
    assert lost.high == pytest.approx(1 - 0.83887, abs=1e-5)


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_prompts_that_all_agree_never_make_a_point(n):
    for value in (0, 0.5, 0.75, 1):
        found = share(np.full(n, value))
        assert 0 <= found.low < found.high <= 1
        assert found.low <= value <= found.high


def test_the_wilson_interval_is_that_of_scipy():
    for wins, n in ((20, 20), (0, 7)):
        found, known = share(np.full(n, wins / n)), stats.binomtest(wins, n).proportion_ci(method="wilson")
        assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=1e-12)


@given(st.lists(st.tuples(REWARDS, REWARDS), min_size=1, max_size=30), st.integers(0, 5))
def test_a_win_rate_stays_inside_its_interval_and_its_interval_inside_zero_to_one(rewards, seed):
    ours, theirs = np.array(rewards).T
    found = win_rate(ours, theirs, seed=seed, resamples=200)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high
    assert found == win_rate(ours, theirs, seed=seed, resamples=200)


@given(st.lists(st.tuples(REWARDS, REWARDS), min_size=1, max_size=30))
def test_their_win_rate_is_what_ours_leaves(rewards):
    ours, theirs = np.array(rewards).T
    total = win_rate(ours, theirs, resamples=50).value + win_rate(theirs, ours, resamples=50).value
    assert total == pytest.approx(1)


def test_the_intervals_of_means_and_shares_cover_the_truth():
    """Ninety of a hundred would be too few for a 95% interval, and all of them too many to be narrow."""
    rng, draws = np.random.default_rng(0), 200
    covers = {"mean": 0, "kl": 0, "share": 0, "near one": 0, "ties": 0, "grouped": 0}
    for seed in range(draws):
        x = rng.normal(1.5, 2.0, 40)
        covers["mean"] += inside(mean(x), 1.5)
        covers["kl"] += inside(kl(rng.gamma(3, 1, (40, 2)) - 1), 2.0)
        few = {"seed": seed, "resamples": 500}
        covers["share"] += inside(share(rng.random(40) < 0.6, **few), 0.6)
        covers["near one"] += inside(share(rng.random(40) < 0.96, **few), 0.96)
        # A win in 30% of prompts, a tie in 60%: .3 + .6 / 2.
        covers["ties"] += inside(win_rate(rng.choice([1, 0, -1], 40, p=[0.3, 0.6, 0.1]), np.zeros(40), **few), 0.6)
        # A prompt has its own win probability, uniform around .5; its eight responses share it.
        p = rng.random((40, 1))
        covers["grouped"] += inside(share(rng.random((40, 8)) < p, **few), 0.5)
    assert all(0.9 * draws <= covered < draws for covered in covers.values()), covers


def inside(estimate, truth: float) -> bool:
    return estimate.low <= truth <= estimate.high


def test_pairing_is_narrower_than_not_pairing():
    """Prompts differ by 3, the policies by 0.5: the difference of each prompt does not see the 3."""
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 3, 100)
    ours, theirs = hard + 0.5 + rng.normal(0, 1, 100), hard + rng.normal(0, 1, 100)
    paired = mean_difference(ours, theirs)
    unpaired = stats.ttest_ind(ours, theirs).confidence_interval(0.95)
    # Widths go as the square roots of 1 + 1 and of 9 + 1 + 9 + 1: a third.
    assert (paired.high - paired.low) / (unpaired.high - unpaired.low) == pytest.approx(math.sqrt(2 / 20), rel=0.25)
    assert inside(paired, 0.5)
    assert paired.value == pytest.approx(ours.mean() - theirs.mean())


def test_the_difference_is_the_paired_t_test_of_scipy():
    rng = np.random.default_rng(1)
    ours, theirs = rng.random(30), rng.random(30)
    known = stats.ttest_rel(ours, theirs).confidence_interval(0.9)
    found = mean_difference(ours, theirs, level=0.9)
    assert (found.low, found.high) == pytest.approx((known.low, known.high))


def test_a_kl_may_be_estimated_below_zero():
    found = kl([[-0.1, 0.05], [0.01, -0.05]])
    assert found.name == "kl"
    assert found.value == pytest.approx((-0.025 - 0.02) / 2)
    assert found.low < found.value < 0 < found.high


def test_very_many_prompts_are_no_slower_to_resample():
    x = np.random.default_rng(0).random(20_000) < 0.5
    found = share(x, resamples=200)
    assert found.interval == "percentile bootstrap"
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(20_000), rel=0.2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean([]), "expected \\[prompts\\]"),
        (lambda: mean(np.zeros((2, 2, 2))), "values: found shape \\(2, 2, 2\\)"),
        (lambda: mean([1.0, math.nan, math.inf]), "found NaN or infinity for 2 of 3 prompts, first for prompt 1"),
        (lambda: win_rate([1, 2], [1]), "found 2 and 1 prompts"),
        (lambda: mean_difference([1, 2], [1]), "found 2 and 1 prompts"),
        (lambda: win_rate([1], [math.nan]), "theirs: found NaN"),
        (lambda: share([0.5, 1.5]), "found 0.5 to 1.5, expected shares"),
        (lambda: mean([1, 2], level=95), "level: found 95"),
        (lambda: share([0, 1], level=1.0), "level: found 1.0"),
    ],
)
def test_what_cannot_be_estimated_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
