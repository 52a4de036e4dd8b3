"""The predicted drift against what DPO does, in worlds of two kinds where both are known."""

import numpy as np
import pytest
import scipy.stats

from diagnostics.drift_worlds import linear_world, table_world
from modeseek.diagnostics import drift


@pytest.mark.parametrize(("world", "beta"), [(linear_world, 0.1), (table_world, 1.0)])
def test_the_predicted_drift_ranks_what_dpo_does(world, beta):
    """Spearman over 50 worlds, 256 pairs and 16 samples of each prompt."""
    looks = [world(seed, pairs=256, samples=16) for seed in range(1000, 1050)]
    after = [realised for _, realised, _ in looks]
    said = [drift.predicted(look, beta=beta).value for look, _, _ in looks]
    rank = scipy.stats.spearmanr(after, said).statistic
    assert rank >= 0.7, rank
    before = scipy.stats.spearmanr(after, [mass for _, _, mass in looks]).statistic
    assert rank > before + 0.2, "today's mass outside would do as well"


def test_own_responses_lie_outside_their_own_data_as_often_as_the_threshold_says():
    """QUANTILE leaves 5% of the data's responses outside, so 5% of more of the same."""
    rng = np.random.default_rng(0)
    found = [drift.outliers(rng.normal(size=(64, 4, 6)), rng.normal(size=(64, 2, 6))).mean() for _ in range(60)]
    assert np.mean(found) == pytest.approx(0.05, abs=0.012)


def test_what_is_elsewhere_lies_outside():
    rng = np.random.default_rng(0)
    assert drift.outliers(rng.normal(size=(64, 4, 6)) + 8, rng.normal(size=(64, 2, 6))).all()


def test_the_tilt_is_the_log_odds_of_a_choice():
    """One feature, chosen 3 times of 4: sigma(v) = 3/4, v = ln 3 = 1.0986, a little less for the ridge."""
    gaps = np.array([[1.0], [1.0], [1.0], [-1.0]])
    assert drift.tilt(gaps)[0] == pytest.approx(np.log(3), rel=0.02)
    assert drift.tilt(gaps)[0] < np.log(3)


def test_the_index_is_half_the_mass_by_which_rejected_exceed_chosen():
    """sigma(0) = 1/2: (.3 - .1) / 2 = .1 and (.2 - .4) / 2 = -.1, mean 0; with (.5 - .1) / 2 = .2 twice, .2."""
    assert drift.index(np.array([0.1, 0.4]), np.array([0.3, 0.2])).value == pytest.approx(0)
    assert drift.index(np.array([0.1, 0.1]), np.array([0.5, 0.5])).value == pytest.approx(0.2)


def test_the_first_step_of_a_table_moves_log_mass_outside_by_the_index():
    """Softmax, one pair (0 over 1), step eta: d log pi(2) = eta (pi(1) - pi(0)) / 2, to first order (beta 1)."""
    p, eta = np.array([0.1, 0.3, 0.6]), 1e-4
    logits = np.log(p) + eta * 0.5 * np.array([1, -1, 0])
    after = np.exp(logits) / np.exp(logits).sum()
    expected = eta * drift.index(p[:1].repeat(2), p[1:2].repeat(2)).value
    assert np.log(after[2] / p[2]) == pytest.approx(expected, rel=1e-3)
