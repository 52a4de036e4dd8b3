"""Agreement: published worked examples, and published figures from their raw annotations where those lie beside."""

import gzip
import json
import pathlib

import numpy as np
import pytest

from modeseek.evaluate.agreement import agreement, alpha, cohen_kappa, krippendorff_alpha, majority

DATA = pathlib.Path(__file__).parents[3] / "shared" / "data" / "pandalm_test"
_ = None
# Krippendorff 2011, section C: four observers, twelve units, five categories, seven labels missing.
KRIPPENDORFF = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
    [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
]


def test_alpha_is_that_of_krippendorffs_worked_example():
    assert round(krippendorff_alpha(list(zip(*KRIPPENDORFF, strict=True))), 3) == 0.743


def test_alpha_of_two_observers_is_krippendorffs_binary_example():
    # Krippendorff 2011, section A: ten units, two observers; alpha = 0.095.
    a = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    b = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert round(krippendorff_alpha(list(zip(a, b, strict=True))), 3) == 0.095


def test_alpha_by_hand():
    # Units aa, ab, bb: n = 6, n_a = n_b = 3; one unit disagrees with 2 ordered pairs over (2 - 1).
    # Expected: 36 - 18 = 18. alpha = 1 - 5 * 2 / 18.
    assert krippendorff_alpha([["a", "a"], ["a", "b"], ["b", "b"]]) == pytest.approx(1 - 10 / 18)


def test_alpha_ignores_units_that_one_person_labelled_and_is_undefined_without_choice():
    units = [["a", "a"], ["a", "b"], ["b", "b"]]
    assert krippendorff_alpha([*units, ["a", None], ["b"], []]) == krippendorff_alpha(units)
    assert np.isnan(krippendorff_alpha([["a", "a"], ["a", "a"]]))
    assert alpha([["a"], []]) is None


def test_the_interval_of_alpha_holds_the_truth_about_as_often_as_it_says():
    # Two annotators who report a fair coin with probability q each, else toss their own: alpha = q^2.
    rng, q, hits = np.random.default_rng(0), 0.8, 0
    for trial in range(60):
        truth = rng.integers(0, 2, 120)
        said = [np.where(rng.random(120) < q, truth, rng.integers(0, 2, 120)) for _ in range(2)]
        found = alpha([list(u) for u in np.stack(said, 1).tolist()], seed=trial, resamples=200)
        hits += found.low <= q**2 <= found.high
    assert 50 <= hits <= 60


def test_kappa_by_hand():
    # Observed 3/5; shares a: 3/5, 2/5; b: 3/5, 2/5; expected 13/25: kappa = (15 - 13) / (25 - 13).
    assert cohen_kappa("aaabb", "aabab") == pytest.approx(2 / 12)
    assert np.isnan(cohen_kappa("aa", "aa"))


def test_the_majority_needs_more_than_any_other():
    assert majority([1, 1, 2]) == 1
    assert majority([1, 2], otherwise=0) == 0
    assert majority([2]) == 2


def test_macro_scores_by_hand():
    # gold a a b c, said a b b a. a: P 1/2 R 1/2; b: P 1/2 R 1; c: P 0 R 0. F1: 1/2, 2/3, 0.
    found = agreement(list("abba"), list("aabc"))
    assert (found.accuracy, found.n, found.agreed) == (0.5, 4, 2)
    assert (found.precision, found.recall) == pytest.approx((1 / 3, 0.5))
    assert found.f1 == pytest.approx((1 / 2 + 2 / 3) / 3)
    assert found.confusion["c", "a"] == 1
    with pytest.raises(ValueError, match="found 1 and 2 labels"):
        agreement([1], [1, 2])


@pytest.mark.skipif(not DATA.is_dir(), reason="the PandaLM test set does not lie beside the checkout")
def test_pandalms_published_figures_come_out_of_its_raw_annotations():
    read = lambda name: json.loads(gzip.decompress((DATA / f"{name}testset-v1.json.gz").read_bytes()))
    rows = read("")
    people = [[row[f"annotator{i}"] for row in rows] for i in (1, 2, 3)]
    kappas = [cohen_kappa(people[i], people[k]) for i, k in ((0, 1), (0, 2), (1, 2))]
    assert sorted(round(x, 2) for x in kappas) == [0.85, 0.86, 0.88]
    gold = [majority(labels) for labels in zip(*people, strict=True)]
    assert [gold.count(label) for label in (0, 1, 2)] == [105, 422, 472]
    codes = {"1": 1, "2": 2, "Tie": 0, "0": 0, "garbage": 0}
    for name, key, published in (
        ("gpt-3.5-turbo-", "gpt_result", (0.7107, 0.5879, 0.5736, 0.5755)),
        ("pandalm-7b-", "pandalm_result", (0.6677, 0.5738, 0.5750, 0.5743)),
    ):
        found = agreement([codes[str(row[key])] for row in read(name)], gold)
        assert (found.accuracy, found.precision, found.recall, found.f1) == pytest.approx(published, abs=6e-5)
