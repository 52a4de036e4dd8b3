"""Verdicts against arithmetic by hand, and against truths that are known because the numbers were drawn from them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from modeseek.estimate import bca, holm, mean, p_above, p_below, tost
from modeseek.studies.base import Cell, Claim, Part, Study, read
from modeseek.studies.differences import differences
from modeseek.studies.store import Trace
from modeseek.studies.verdict import judge, per_seed, pull

A, B = Cell.of("w", "a"), Cell.of("w", "b")


def rows(**cells):
    """What each cell's seeds ended with: `a=[1, 2]` are seeds 0 and 1."""
    told = {
        Cell.of("w", name): {"reward": {s: Trace(np.array([0, 1]), np.array([0.0, x])) for s, x in enumerate(values)}}
        for name, values in cells.items()
    }
    return lambda cell: told.get(cell, {})


def verdict_of(values, relation="greater", margin=0.0, planned=None, beside=()):
    """The one tested part of a claim about cell a; `beside` are the values of further parts, which are not."""
    cells = {"a": values, **{f"x{i}": x for i, x in enumerate(beside)}}
    parts = (Part("a", read(A, "reward"), relation, margin),)
    others = tuple(
        Claim(f"x{i}", "", "", (Part("", read(Cell.of("w", f"x{i}"), "reward"), "greater"),))
        for i in range(len(beside))
    )
    study = Study("s", (), (Claim("A", "", "", parts), *others))
    return judge(study, rows(**cells), lambda cell: range(planned or len(values)))[0].parts[0]


def test_the_p_value_of_1_2_3_is_students():
    """Mean 2, standard error 1 / sqrt 3: t = 3.4641 with 2 degrees. sf(t) = 1/2 - t / (2 sqrt(2 + t^2)) = 0.03709."""
    t = 2 * math.sqrt(3)
    by_hand = 0.5 - t / (2 * math.sqrt(2 + t * t))
    assert p_above([1, 2, 3], 0) == pytest.approx(by_hand, rel=1e-9) == pytest.approx(0.03709, abs=1e-5)
    assert p_below([1, 2, 3], 0) == pytest.approx(1 - by_hand)
    assert p_above([1, 2, 3], 2) == pytest.approx(0.5)
    assert p_below([-1, -2, -3], 0) == pytest.approx(by_hand)


def test_values_that_all_agree_are_as_likely_as_so_many_equal_coins_and_one_value_decides_nothing():
    """Three diverged runs of three are no proof: heads three times, 1/8."""
    assert (p_above([2, 2, 2], 1), p_above([2, 2, 2], 2), p_below([2, 2], 3)) == (1 / 8, 1, 1 / 4)
    assert tost([0.1] * 5, 0.5) == 1 / 32
    assert p_above([5.0], 0) == 1


def test_equivalence_is_the_worse_of_two_one_sided_tests():
    """0.1, 0.2, 0.3 within 1: mean 0.2, standard error 0.1 / sqrt 3. The nearer bound is 1: t = 0.8 sqrt(3) / 0.1."""
    t = 8 * math.sqrt(3)
    assert tost([0.1, 0.2, 0.3], 1) == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)))
    assert tost([-1, 0, 1], 0.5) > 0.2  # not significant either way, and not shown equal
    with pytest.raises(ValueError, match="margin"):
        tost([0, 1], 0)


def test_holm_by_hand():
    """0.01 x 4, 0.02 x 3, 0.03 x 2, 0.5 x 1, each at least the one before; in the order given."""
    assert holm([0.03, 0.5, 0.01, 0.02]).tolist() == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.6, 0.9]).tolist() == [1, 1]
    assert holm([]).tolist() == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(0, 7))
def test_a_part_that_was_left_out_never_helps_another(p, at):
    """A p-value set to 1 leaves every other adjusted value as large as it was, or larger."""
    at %= len(p)
    whole, less = holm(p), holm([1.0 if i == at else x for i, x in enumerate(p)])
    assert all(less[i] >= whole[i] - 1e-12 for i in range(len(p)) if i != at)


def test_the_intervals_cover_what_they_say():
    """Of 400 samples of 10 normals, 95 % of the t intervals hold the mean; of BCa's fewer: it is not shown alone."""
    rng = np.random.default_rng(0)
    samples = rng.normal(3, 2, size=(400, 10))
    hits = lambda found: np.mean([e.low <= 3 <= e.high for e in found])
    assert 0.925 <= hits([mean(x) for x in samples]) <= 0.975
    assert 0.86 <= hits([bca(x, resamples=400) for x in samples[:150]]) <= 0.97


def test_the_bands_of_a_plot_are_the_same_intervals():
    from modeseek.studies.summary import band

    x = np.random.default_rng(1).normal(size=(7, 3))
    x[2, 1], x[:, 2] = np.inf, np.nan
    middle, low, high = band(x)
    for at, kept in ((0, x[:, 0]), (1, np.delete(x[:, 1], 2))):
        found = mean(kept)
        assert (middle[at], low[at], high[at]) == pytest.approx((found.value, found.low, found.high))
    assert np.isnan([middle[2], low[2], high[2]]).all()


def test_the_tests_err_as_often_as_they_say():
    """Where the mean is on the bound, 5 % of the one-sided p-values are below 0.05; of TOST's no more."""
    rng = np.random.default_rng(1)
    samples = rng.normal(0.5, 1, size=(1000, 8))
    assert 0.033 <= np.mean([p_above(x, 0.5) <= 0.05 for x in samples]) <= 0.068
    assert np.mean([tost(x, 0.5) <= 0.05 for x in samples]) <= 0.068


def test_each_statistic_of_a_trace_is_what_it_says():
    """Steps 0, 1, 3, 4: trapezoids (0+2)/2 x 1, (2+4)/2 x 2, (4+1)/2 x 1 = 9.5 over 4. Slope between steps 3 and 4."""
    trace = Trace(np.array([0, 1, 3, 4]), np.array([0.0, 2.0, 4.0, 1.0]))
    found = {at: pull(trace, at) for at in ("end", "start", "highest", "lowest", "area", "slope")}
    assert found == {"end": 1, "start": 0, "highest": 4, "lowest": 0, "area": 9.5 / 4, "slope": -3}
    assert pull(Trace(np.arange(7), np.arange(7) ** 2.0), "slope") == 10  # 16, 25, 36 at 4, 5, 6
    with pytest.raises(ValueError, match="single checkpoint"):
        pull(Trace(np.array([0, 5, 30]), np.zeros(3)), "slope")


def test_a_contrast_is_read_seed_by_seed():
    """2 (a - b) + a of seeds 0 and 1: 2 (5 - 1) + 5 = 13, 2 (7 - 4) + 7 = 13."""
    contrast = read(A, "reward") - read(B, "reward")
    doubled = contrast + contrast + read(A, "reward")
    assert per_seed(doubled, rows(a=[5, 7], b=[1, 4]), [0, 1]) == {0: 13, 1: 13}


def test_what_differs_by_rounding_does_not_differ():
    """0.1 + 0.2 and 0.3 are 5.6e-17 apart, always the same way: no reason to call one larger."""
    found = verdict_of([1.0] * 8)
    assert (found.status, found.p) == ("holds", 2**-8)
    contrast = read(A, "reward") - read(B, "reward")
    ends = rows(a=[s + 0.1 + 0.2 for s in range(3)], b=[s + 0.3 for s in range(3)])
    assert per_seed(contrast, ends, range(3)) == {0: 0, 1: 0, 2: 0}
    assert bca([8, 8 + 2e-15, 8, 8, 8]).low == pytest.approx(8)


def test_a_part_holds_is_refuted_or_stays_undecided():
    clear, faint = [1.0, 1.1, 0.9, 1.0, 1.05], [1.0, -1.0, 0.5, -0.4, 0.1]
    assert verdict_of(clear).status == "holds"
    assert verdict_of([-x for x in clear]).status == "refuted"
    assert verdict_of(faint).status == "undecided"
    assert verdict_of(clear, "greater", 2.0).status == "refuted"  # it is 1, and is not above 2
    assert verdict_of(clear, "less", 0.5).status == "refuted"
    assert verdict_of([-x for x in clear], "less", 0.5).status == "holds"
    assert verdict_of(clear, "equal", 2.0).status == "holds"
    assert verdict_of(clear, "equal", 0.5).status == "refuted"
    assert verdict_of(faint, "equal", 0.5).status == "undecided"  # a difference that is not significant is not a tie


def test_the_whole_set_is_one_family():
    """p of 1, 2, 3 is 0.0371: alone it holds at 0.05, beside three clear negatives it is multiplied by 4."""
    assert verdict_of([1, 2, 3]).adjusted == pytest.approx(0.03709, abs=1e-5)
    beside = verdict_of([1, 2, 3], beside=[[-1, -2, -3]] * 3)
    assert beside.adjusted == pytest.approx(4 * 0.03709, abs=1e-4)
    assert beside.status == "undecided"


def test_a_seed_that_diverged_is_counted_and_leaves_its_part_undecided():
    for lost in (math.nan, math.inf):
        found = verdict_of([1.0, 1.1, 0.9, lost])
        assert (found.status, found.n, found.wanted, found.lost) == ("undecided", 3, 4, 1)
        assert found.reason == "1 of 4 seeds are not finite"
        assert found.estimate.value == pytest.approx(1.0)


def test_a_seed_without_rows_is_counted_too():
    found = verdict_of([1.0, 1.1, 0.9], planned=5)
    assert (found.status, found.n, found.wanted, found.reason) == ("undecided", 3, 5, "2 of 5 seeds have no rows")
    nothing = judge(
        Study("s", (), (Claim("A", "", "", (Part("", read(B, "reward"), "less"),)),)), rows(), lambda c: [0]
    )
    assert (nothing[0].parts[0].estimate, nothing[0].verdict) == (None, "undecided")


def test_a_metric_that_is_not_there_says_so():
    claim = Claim("A", "", "", (Part("", read(A, "rewad"), "greater"),))
    found = judge(Study("s", (), (claim,)), rows(a=[1, 2]), lambda c: [0, 1])[0].parts[0]
    assert found.reason == "w/a has no metric 'rewad'; it has reward"


@pytest.mark.parametrize(
    "ends, verdict",
    [
        (([1, 1.1, 0.9], [2, 2.1, 2.2]), "replicated"),
        (([1, 1.1, 0.9], [-2, -2.1, -2.2]), "mixed"),
        (([1, 1.1, 0.9], [-5, 5, 0]), "mixed"),
        (([-5, 5, 1], [-2, -2.1, -2.2]), "not replicated"),
        (([-5, 5, 1], [-9, 5, 1]), "undecided"),
    ],
)
def test_a_claim_is_what_its_parts_are(ends, verdict):
    claim = Claim("A", "", "", (Part("", read(A, "reward"), "greater"), Part("", read(B, "reward"), "greater")))
    found = judge(Study("s", (), (claim,)), rows(a=ends[0], b=ends[1]), lambda cell: range(3))
    assert found[0].verdict == verdict


def test_methods_are_compared_in_pairs_over_the_same_seeds():
    """a - b is 1, 2, 3: two-sided p 2 x 0.03709; the two others, 9, 11, 10 and -8, -9, -7, have smaller ones."""
    cells = [A, B, Cell.of("w", "c")]
    found = differences(cells, ["reward"], rows(a=[1, 3, 5], b=[0, 1, 2], c=[-8, -8, -5]), [0, 1, 2])
    first = found[0]
    assert (str(first.ours), str(first.theirs), first.estimate.value, first.n) == ("w/a", "w/b", 2, 3)
    p = [2 * float(stats.ttest_1samp(x, 0, alternative="greater").pvalue) for x in ([1, 2, 3], [9, 11, 10], [8, 9, 7])]
    assert [d.adjusted for d in found] == pytest.approx(holm(p).tolist())
