"""Best-of-N by enumeration of every draw, its KL, and the place where a proxy stops being gold."""

import itertools
import math

import numpy as np
import pytest

from modeseek.estimate import mean
from modeseek.evaluate.frontier import (
    Point,
    best_of_n,
    best_of_weights,
    frontier,
    kl_of_best,
    overoptimisation,
)

RNG = np.random.default_rng(0)
PROXY = RNG.integers(0, 4, (6, 7)).astype(float)  # four values for seven samples: ties
GOLD = RNG.normal(size=(6, 7))


def enumerated(proxy, gold, n):
    """The mean over all draws of n of the gold of their best, ties shared."""
    worth = []
    for draw in itertools.combinations(range(len(proxy)), n):
        top = max(proxy[i] for i in draw)
        worth.append(np.mean([gold[i] for i in draw if proxy[i] == top]))
    return float(np.mean(worth))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
def test_the_estimate_is_the_mean_over_every_draw(n):
    weights = best_of_weights(PROXY, n)
    assert weights.sum(1) == pytest.approx(np.ones(6))
    for p in range(6):
        assert weights[p] @ PROXY[p] == pytest.approx(enumerated(PROXY[p], PROXY[p], n))
        assert weights[p] @ GOLD[p] == pytest.approx(enumerated(PROXY[p], GOLD[p], n))


def test_the_curve_is_unbiased_for_samples_of_a_known_law():
    # The best of n uniform numbers is n / (n + 1) on average.
    curve = best_of_n(np.random.default_rng(1).random((3000, 8)), ns=(1, 2, 4, 8))
    for point in curve:
        assert abs(point.proxy.value - point.n / (point.n + 1)) < 4 * point.proxy.standard_error
    assert [point.kl for point in curve] == [kl_of_best(n) for n in (1, 2, 4, 8)]


def test_the_win_rate_of_the_best_of_n_against_one_is_n_over_n_plus_one():
    rng = np.random.default_rng(2)
    curve = best_of_n(rng.random((3000, 4)), reference=rng.random(3000), ns=(1, 4))
    for point in curve:
        assert abs(point.win_rate.value - point.n / (point.n + 1)) < 4 * point.win_rate.standard_error


def test_the_kl_of_the_best_of_n_is_exact_without_ties():
    assert kl_of_best(1) == 0
    assert kl_of_best(4) == pytest.approx(math.log(4) - 3 / 4)
    # The law of the best of n of m equally likely ranks: (i/m)^n - ((i-1)/m)^n; its KL tends to the formula as m grows.
    m, n = 20000, 4
    p = (np.arange(1, m + 1) / m) ** n - (np.arange(m) / m) ** n
    assert float((p * np.log(p * m)).sum()) == pytest.approx(kl_of_best(n), abs=1e-3)


def test_powers_of_two_and_all_samples_are_shown():
    assert [point.n for point in best_of_n(PROXY)] == [1, 2, 4, 7]
    with pytest.raises(ValueError, match="best of 8"):
        best_of_n(PROXY, ns=(8,))


def point(name, kl, reward):
    return Point(name=name, kl=mean([kl, kl]), reward=mean([reward, reward]))


def test_the_frontier_is_what_nothing_beats_for_less():
    found = frontier([point("d", 4, 2), point("b", 1, 1), point("c", 2, 0.5), point("a", 0, 0)])
    assert [(p.name, p.on_frontier) for p in found] == [("a", True), ("b", True), ("c", False), ("d", True)]


def test_overoptimisation_is_seen_where_gold_falls_while_the_proxy_rises():
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.1, (4, 100))
    proxy = np.array([0, 1, 2, 3])[:, None] + noise
    found = overoptimisation("abcd", proxy, np.array([0, 1, 0.5, 0.2])[:, None] + noise[::-1])
    assert (found.peak, found.last, found.happened) == ("b", "d", True)
    assert found.drop.value == pytest.approx(0.8, abs=0.06)
    fine = overoptimisation("abcd", proxy, proxy)
    assert not fine.happened and fine.drop.value == 0
