"""Length control: the published prediction step, a fit to data whose coefficients are known, and what it is for."""

import math

import numpy as np
import pytest

from modeseek.evaluate.annotations import tally
from modeseek.evaluate.length_control import (
    Coefficients,
    difficulty,
    fit,
    is_extreme,
    predict,
    preference,
    win_rate,
)

# Published coefficients (tatsu-lab/alpaca_eval, weighted_alpaca_eval_gpt4_turbo/length_controlled_v1): theta, psi.
GPT4 = Coefficients(theta=-0.5280788018374943, phi=1.6932957655004517, psi=0.9437877797808294)
OPUS = Coefficients(theta=-0.3896212886452050, phi=1.8843310811133909, psi=0.8954346955719651)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def world(n: int, c: Coefficients, seed: int = 0, soft: bool = True):
    """Wins drawn from the model itself, with lengths far apart and difficulties of AlpacaEval's spread."""
    rng = np.random.default_rng(seed)
    ours, theirs = rng.normal(900, 300, n), rng.normal(600, 200, n)
    gamma = rng.normal(0, 1, n)
    p = preference(c, gamma, (ours - theirs) / (ours - theirs).std(ddof=1))
    return p if soft else (rng.random(n) < p).astype(float), ours, theirs, gamma


def test_the_prediction_step_is_the_published_formula():
    gamma = [0.5, -1.25, 2.0]
    expected = sum(sigma(-0.5280788018374943 + 0.9437877797808294 * g) for g in gamma) / 3
    assert predict(GPT4, gamma) == pytest.approx(expected, abs=1e-12)


def test_two_models_are_compared_by_the_difference_of_their_coefficients():
    gamma = [0.5, -1.25, 2.0]
    theta, psi = -0.3896212886452050 + 0.5280788018374943, 0.8954346955719651 - 0.9437877797808294
    expected = sum(sigma(theta + psi * g) for g in gamma) / 3
    assert predict(OPUS, gamma, baseline=GPT4) == pytest.approx(expected, abs=1e-12)
    assert predict(GPT4, gamma, baseline=OPUS) == pytest.approx(1 - expected, abs=1e-12)
    assert predict(GPT4, gamma, baseline=GPT4) == 0.5


def test_a_row_of_their_weights_is_read_with_the_length_s_sign_turned_and_their_error_is_that_of_the_predictions():
    """By hand: sigma(-1) = .268941, sigma(1) = .731059, mean .5, deviation (n - 1) .326766, over sqrt(2) .231059."""
    row = {"not_gamed_baseline.astype(float)": "0.0", "np.tanh(std_delta_len)": "-1.5", "instruction_difficulty": "2.0"}
    found = Coefficients.of_alpaca_eval(row)
    assert found == Coefficients(theta=0.0, phi=1.5, psi=2.0)
    said = tally(preference(found, [-0.5, 0.5]))
    assert said.win_rate == pytest.approx(0.5, abs=1e-12)
    assert said.standard_error == pytest.approx(0.2310586, abs=1e-7)
    with pytest.raises(ValueError, match="found no instruction_difficulty"):
        Coefficients.of_alpaca_eval({k: v for k, v in row.items() if k != "instruction_difficulty"})


def test_the_length_enters_through_a_tanh_and_not_at_zero():
    assert preference(GPT4, [0.0], [2.0])[0] == pytest.approx(sigma(GPT4.theta + GPT4.phi * math.tanh(2)))
    assert predict(GPT4, [0.0]) == pytest.approx(sigma(GPT4.theta))


def test_the_fit_finds_the_coefficients_that_made_the_data():
    truth = Coefficients(theta=-0.8, phi=1.5, psi=0.9)
    y, a, b, gamma = world(800, truth)
    found = fit(y, a, b, gamma)
    for name in ("theta", "phi", "psi"):
        assert getattr(found.coefficients, name) == pytest.approx(getattr(truth, name), abs=0.02), name
    assert found.deviation == pytest.approx((a - b).std(ddof=1))


def test_the_fit_minimises_the_penalised_loss():
    y, a, b, gamma = world(60, Coefficients(theta=0.4, phi=1.0, psi=0.5), soft=False)
    found = fit(y, a, b, gamma)
    c = found.coefficients
    d = np.tanh((a - b) / found.deviation)

    def loss(w):
        eta = w[0] + w[1] * d + w[2] * gamma
        return np.abs(w).sum() + found.strength * (np.log1p(np.exp(eta)) - y * eta).sum()

    best, w = loss(np.array([c.theta, c.phi, c.psi])), np.array([c.theta, c.phi, c.psi])
    for step in np.concatenate([np.eye(3), -np.eye(3)]) * 1e-3:
        assert loss(w + step) >= best - 1e-9


def test_a_judge_who_loves_length_is_seen_through():
    # Equal policies, ours half as long again: the raw win rate is the judge's love of length, the controlled one 1/2.
    y, a, b, _ = world(400, Coefficients(theta=0.0, phi=2.0), soft=False, seed=4)
    found = win_rate(y, a, b, resamples=100)
    assert found.raw > 0.65
    assert found.estimate.low < 0.5 < found.estimate.high
    assert abs(found.estimate.value - 0.5) < abs(found.raw - 0.5) / 2


@pytest.mark.slow
def test_intervals_cover_and_errors_are_those_over_repetitions():
    truth = Coefficients(theta=0.5, phi=1.0)
    found = [win_rate(*world(200, truth, seed=s, soft=False)[:3], resamples=60, seed=s) for s in range(40)]
    assert sum(f.estimate.low <= sigma(0.5) <= f.estimate.high for f in found) >= 33
    spread = np.std([f.estimate.value for f in found], ddof=1)
    assert np.mean([f.estimate.standard_error for f in found]) == pytest.approx(spread, rel=0.35)


def test_missing_annotations_are_left_out_and_swapping_sides_mirrors_the_result():
    y, a, b, gamma = world(200, Coefficients(theta=0.6, phi=1.0, psi=0.4))
    holes = y.copy()
    holes[::7] = np.nan
    assert fit(holes, a, b, gamma).n == 200 - len(holes[::7])
    one, other = fit(y, a, b, gamma).coefficients, fit(1 - y, b, a, -gamma).coefficients
    assert one.theta == pytest.approx(-other.theta, abs=1e-3)
    assert one.phi == pytest.approx(other.phi, abs=1e-3)


def test_anchors_move_the_length_and_not_the_model():
    y, a, b, gamma = world(400, Coefficients(theta=0.6, phi=1.0, psi=0.4))
    length = np.linspace(-2, 2, 400)
    steep = preference(Coefficients(theta=0, phi=4.0, psi=0.4), gamma, length)
    pulled = fit(y, a, b, gamma, anchors=(steep, length, gamma), anchor_weight=2).coefficients
    assert pulled.phi > 1.5
    assert fit(y, a, b, gamma, anchors=(steep, length, gamma), anchor_weight=1e-9).coefficients.phi == pytest.approx(
        1.0, abs=0.02
    )


def test_what_cannot_be_controlled_is_refused():
    y, a, b, _ = world(100, Coefficients(theta=0.0))
    with pytest.raises(ValueError, match="found 10 annotated prompts, expected 20"):
        fit(y[:10], a[:10], b[:10])
    with pytest.raises(ValueError, match="differences in length are the same"):
        fit(y, a, a)
    with pytest.raises(ValueError, match="found shapes"):
        fit(y, a[:5], b)


def test_extreme_changes_are_alpaca_evals():
    assert is_extreme(0.5, 0.36) and not is_extreme(0.5, 0.38)  # below min(50 - 12.5, 40) = 37.5
    assert is_extreme(0.2, 0.41) and not is_extreme(0.2, 0.39)  # above max(20 + 20, 30) = 40


def test_difficulty_is_found_from_other_models_wins():
    rng = np.random.default_rng(1)
    gamma = rng.normal(0, 1.5, 60)
    theta = rng.normal(-1, 0.5, 40)
    wins = (rng.random((40, 60)) < 1 / (1 + np.exp(-(theta[:, None] + gamma)))).astype(float)
    assert np.corrcoef(difficulty(wins), gamma)[0, 1] > 0.92
