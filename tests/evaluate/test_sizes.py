"""Sample sizes against textbook numbers and simulation; seeds combined against a variance that can be written down."""

import numpy as np
import pytest

from modeseek.evaluate.seeds import over_seeds
from modeseek.evaluate.sizes import power, prompts_needed, smallest_difference, win_deviation


def test_the_size_is_the_textbooks():
    # (1.959964 + 0.841621)^2 * 0.25 / 0.05^2 = 784.9
    assert prompts_needed(0.05) == 785
    assert prompts_needed(-0.05) == 785
    assert prompts_needed(0.5, deviation=1.0) == 32  # 7.8489 / 0.25 = 31.4
    assert smallest_difference(785) == pytest.approx(0.05, rel=1e-3)
    assert power(785, 0.05) == pytest.approx(0.8, abs=1e-3)
    assert power(100, 0.0) == pytest.approx(0.05)


def test_ties_make_wins_steadier():
    # p = 0.6 with 0.2 ties: values 1, 1/2, 0 with chances 0.5, 0.2, 0.3: variance 0.5 + 0.05 - 0.36.
    assert win_deviation(0.6, 0.2) == pytest.approx(0.19**0.5)
    assert win_deviation() == 0.5
    assert win_deviation(0.5, 1.0) == 0.0
    with pytest.raises(ValueError, match="at most twice its smaller side"):
        win_deviation(0.9, 0.5)


def test_the_promised_power_is_found_by_simulation():
    rng, p = np.random.default_rng(0), 0.6
    n = prompts_needed(p - 0.5, deviation=win_deviation(p))
    means = rng.binomial(n, p, 4000) / n
    reach = 1.959964 * np.sqrt(means * (1 - means) / n)
    assert np.mean(means - reach > 0.5) == pytest.approx(0.8, abs=0.03)


def test_seeds_by_hand():
    # [[1, 0], [1, 1]]: mean 3/4; seeds 1/2, 1; prompts 1, 1/2. MS_seed = 2 * 1/8 = 1/4; MS_prompt = 1/4;
    # residuals all +-1/4: MS_noise = 4/16 / 1 = 1/4. The sum 1/4 equals each: error = sqrt(1/4 / 4) = 1/4.
    found = over_seeds([[1.0, 0.0], [1.0, 1.0]])
    assert found.estimate.value == 0.75
    assert found.estimate.standard_error == pytest.approx(0.25)
    assert found.seed_deviation == found.prompt_deviation == 0
    assert found.noise == pytest.approx(0.5)


def draw(rng, seeds, prompts, a, b, e):
    return 0.5 + rng.normal(0, a, (seeds, 1)) + rng.normal(0, b, (1, prompts)) + rng.normal(0, e, (seeds, prompts))


@pytest.mark.parametrize(("a", "b", "e"), [(0.3, 0.1, 0.5), (0.02, 0.4, 0.5), (0.1, 0.35, 0.1), (0.0, 0.0, 0.5)])
def test_the_error_over_seeds_and_prompts_is_that_of_the_mean(a, b, e):
    rng, S, P = np.random.default_rng(1), 5, 60
    found = [over_seeds(draw(rng, S, P, a, b, e)) for _ in range(400)]
    truth = (a**2 / S + b**2 / P + e**2 / (S * P)) ** 0.5
    assert np.std([f.estimate.value for f in found]) == pytest.approx(truth, rel=0.12)
    mean_square = np.mean([f.estimate.standard_error**2 for f in found]) ** 0.5
    # Where one source rules, the error is unbiased; where none does, taking the larger errs on the wide side.
    assert 0.9 * truth < mean_square < (1.15 if a or b > 0.1 else 1.35) * truth
    assert np.mean([f.estimate.low <= 0.5 <= f.estimate.high for f in found]) >= 0.93


def test_pooling_as_if_independent_would_be_far_too_sure():
    x = draw(np.random.default_rng(2), 3, 500, 0.2, 0.1, 0.3)
    naive = x.std(ddof=1) / x.size**0.5
    assert over_seeds(x).estimate.standard_error > 5 * naive


def test_one_seed_is_no_spread():
    with pytest.raises(ValueError, match=r"found shape \(1, 3\), expected \[seeds, prompts\] of 2 or more"):
        over_seeds([[1.0, 0.0, 1.0]])
