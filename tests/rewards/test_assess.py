import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from modeseek.rewards.assess import assess


def sure(p):
    return math.log(p / (1 - p))


def test_accuracy_by_source_by_hand():
    score = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [3.0, 3.0]])
    found = assess(score, np.ones((4, 2)), ["a", "a", "b", "b"])
    assert found.accuracy.value == (1 + 0 + 1 + 0.5) / 4
    assert {name: (one.value, one.n) for name, one in found.by_source.items()} == {"a": (0.5, 2), "b": (0.75, 2)}
    assert found.accuracy.low < found.accuracy.value < found.accuracy.high


def test_the_calibration_error_by_hand():
    # four pairs at 0.72, three of them right; six at 0.93, three of them right
    margin = [sure(0.72)] * 3 + [-sure(0.72)] + [sure(0.93)] * 3 + [-sure(0.93)] * 3
    score = np.array([[m, 0.0] for m in margin])
    found = assess(score, np.ones((10, 2)))
    assert found.ece == pytest.approx(0.4 * (0.75 - 0.72) + 0.6 * (0.93 - 0.5))
    for bin, wanted in zip(found.calibration, [(0.72, 0.75, 4), (0.93, 0.5, 6)], strict=True):
        assert bin == pytest.approx(wanted)


def test_a_calibrated_model_has_no_calibration_error():
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 2, 4_000)
    won = rng.random(4_000) < 1 / (1 + np.exp(-margin))
    first = np.where(won, margin, -margin)  # the winner first
    found = assess(np.stack([first, np.zeros_like(first)], 1), np.ones((4_000, 2)))
    assert found.ece < 0.03
    boasting = assess(np.stack([3 * first, np.zeros_like(first)], 1), np.ones((4_000, 2)))
    assert boasting.ece > 0.1 and boasting.accuracy.value == found.accuracy.value


def test_the_pull_of_length_is_measured():
    rng = np.random.default_rng(0)
    length = rng.integers(1, 50, (300, 2))
    by_length = assess(length.astype(float), length)
    assert by_length.length_correlation == pytest.approx(1)
    assert by_length.margin_length_correlation == pytest.approx(1)
    assert by_length.longer_preferred == 1
    assert by_length.longer_chosen == pytest.approx(by_length.accuracy.value, abs=0.02)  # they differ in ties
    noise = rng.normal(size=(300, 2))
    found = assess(noise, length)
    assert found.length_correlation == pytest.approx(spearmanr(noise.ravel(), length.ravel()).statistic)


def test_what_is_constant_correlates_with_nothing():
    found = assess(np.zeros((3, 2)), np.ones((3, 2)))
    assert math.isnan(found.length_correlation) and math.isnan(found.longer_preferred)
    assert found.accuracy.value == 0.5 and found.ece == 0


def test_numbers_that_are_none_and_pairs_that_are_missing_are_refused():
    with pytest.raises(ValueError, match="the score of pair 1 is not finite"):
        assess(np.array([[1.0, 0.0], [math.nan, 0.0]]), np.ones((2, 2)))
    with pytest.raises(ValueError, match="found no pairs"):
        assess(np.zeros((0, 2)), np.ones((0, 2)))
    with pytest.raises(ValueError, match="1 sources for 2 pairs"):
        assess(np.zeros((2, 2)), np.ones((2, 2)), ["a"])
