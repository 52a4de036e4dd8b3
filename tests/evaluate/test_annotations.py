"""Raw annotations in other people's codes, and the figures that leaderboards print of them."""

import math

import numpy as np
import pytest

from modeseek.evaluate.annotations import LETTERS, PANDALM, alpaca_eval, both_orders, coded, tally


def test_alpaca_evals_codes_are_preferences_for_the_second_output():
    found = alpaca_eval([1, 2, 1.5, 0, 1.25, None, float("nan"), "2"])
    assert found.values.tolist()[:5] == [0, 1, 0.5, 0.5, 0.25]
    assert found.dropped == 2 and np.isnan(found.values[5:7]).all() and found.values[7] == 1


def test_a_tally_by_hand():
    # 1, 0, 1/2, 1/4, 1: mean 2.75/5 = 0.55; squared deviations 0.2025 + 0.3025 + 0.0025 + 0.09 + 0.2025 = 0.8.
    found = tally([1, 0, 0.5, 0.25, 1, math.nan])
    assert found.win_rate == pytest.approx(0.55)
    assert found.standard_error == pytest.approx(math.sqrt(0.8 / 4 / 5))
    assert found.discrete_win_rate == pytest.approx((2 + 0.5) / 5)
    assert (found.wins, found.losses, found.ties, found.n, found.dropped) == (2, 2, 1, 5, 1)


def test_a_table_of_codes_reads_every_spelling_of_a_tie():
    assert coded([0, "0", "Tie", 1, "2"], PANDALM).values.tolist() == [0.5, 0.5, 0.5, 1, 0]
    assert coded(["A", "B", "C"], LETTERS).values.tolist() == [1, 0, 0.5]


def test_unknown_codes_are_refused_or_counted_as_asked():
    with pytest.raises(ValueError, match="annotation 1: found 'garbage', expected one of 0, 1, 2, Tie"):
        coded(["1", "garbage"], PANDALM)
    assert coded(["1", "garbage"], PANDALM, unknown="drop").dropped == 1
    assert coded(["1", "garbage"], PANDALM, unknown="tie").values.tolist() == [1, 0.5]
    with pytest.raises(ValueError, match="preference 0: found 3"):
        alpaca_eval([3])


def test_a_win_must_hold_in_both_orders():
    assert both_orders([1, 1, 0, 0, 0.5], [1, 0, 1, 0, 1]).tolist() == [1, 0.5, 0.5, 0, 0.5]
    assert np.isnan(both_orders([1, math.nan], [math.nan, 0])).all()
