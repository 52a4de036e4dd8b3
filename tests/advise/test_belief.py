"""The belief about the reward, against closed forms, enumeration and worlds of known truth."""

import dataclasses

import pytest
import torch

from modeseek.advise import belief
from modeseek.advise.belief import Belief, Setting, fit, linear_kernel, tangents
from modeseek.advise.generate import generate
from modeseek.advise.ranges import FIRST

PLAIN = Setting(scale=2.0, own=0.3, flips=0.1, trust=0.0)


def one(mean: list[float], covariance: list[list[float]]) -> Belief:
    return Belief(torch.tensor([mean], dtype=torch.float64), torch.tensor([covariance], dtype=torch.float64))


def test_a_reading_moves_the_mean_by_its_share_of_the_variance():
    held = one([0.0, 0.0], [[4.0, 2.0], [2.0, 4.0]])
    now = held.told(torch.tensor([[0]]), torch.tensor([[10.0]], dtype=torch.float64), 2.0)
    # 4 / (4 + 2^2) of 10 for the response itself, 2 / 8 of 10 for the one it goes with
    assert now.mean[0].tolist() == pytest.approx([5.0, 2.5])
    assert now.covariance[0].flatten().tolist() == pytest.approx([2.0, 1.0, 1.0, 3.5])


def test_hearing_of_single_responses_is_being_told():
    held = one([0.3, -0.2, 0.0], [[2.0, 0.5, 0.1], [0.5, 1.0, 0.2], [0.1, 0.2, 3.0]])
    place, reading = torch.tensor([[2, 0]]), torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    weights = torch.nn.functional.one_hot(place, 3).double()
    a, b = held.told(place, reading, 0.7), held.heard(weights, reading, 0.7)
    assert torch.allclose(a.mean, b.mean) and torch.allclose(a.covariance, b.covariance)


def test_an_arms_gain_is_the_weighted_sum():
    mean, covariance = one([1.0, 2.0], [[1.0, 0.0], [0.0, 4.0]]).of(torch.tensor([[[-0.5, 0.5]]], dtype=torch.float64))
    assert float(mean) == pytest.approx(0.5) and float(covariance) == pytest.approx(0.25 + 1.0)


def test_the_belief_after_pairs_is_the_posterior_by_enumeration():
    """Two responses, one gap: the posterior mean of a one-dimensional integral."""
    kernel = torch.eye(2, dtype=torch.float64)[None]
    setting = Setting(scale=1.5, own=0.0, flips=0.1, trust=0.0)
    pairs = torch.tensor([[[0, 1]] * 5 + [[1, 0]]])
    found = fit(kernel, pairs, torch.tensor([6]), torch.zeros(1, 2).double(), torch.tensor([False]), [setting])
    gap = torch.linspace(-15, 15, 20001, dtype=torch.float64)
    chance = 0.1 + 0.8 * gap.sigmoid()
    weight = (-(gap**2) / (2 * 2 * 1.5**2)).exp() * chance**5 * (1 - chance)  # the gap's variance is twice 1.5^2
    weight = weight / weight.sum()
    mean = float((weight * gap).sum())
    sd = float((weight * (gap - mean) ** 2).sum().sqrt())
    apart = torch.tensor([[[1.0, -1.0]]], dtype=torch.float64)
    got, variance = Belief(found.mean[:, 0], found.covariance[0]).of(apart)
    assert float(got) == pytest.approx(mean, rel=0.06)
    assert float(variance) ** 0.5 == pytest.approx(sd, rel=0.12)  # the variational Gaussian errs on the narrow side


def test_more_certain_labels_are_more_evidence():
    kernel = torch.eye(2, dtype=torch.float64)[None]
    settings = [Setting(scale=2.0, own=0.0, flips=f, trust=0.0) for f in (0.02, 0.4)]
    agreeing = torch.tensor([[[0, 1]] * 20])
    nothing, no = torch.zeros(1, 2).double(), torch.tensor([False])
    said = fit(kernel, agreeing, torch.tensor([20]), nothing, no, settings).evidence[0]
    assert said[0] > said[1]  # twenty labels that agree are unlikely to be half flipped
    mixed = torch.tensor([[[0, 1]] * 10 + [[1, 0]] * 10])
    assert fit(kernel, mixed, torch.tensor([20]), nothing, no, settings).evidence[0].diff() > said.diff()


def test_the_belief_is_calibrated_where_the_setting_is_right():
    """Truths within 80% intervals, over 40 worlds whose scale, noise and misspecification are the setting's."""
    ranges = dataclasses.replace(
        FIRST,
        actions=40,
        hidden=(0.0, 0.0),
        flips=(0.1, 0.1),
        misspecification=(0.3, 0.3),
        scale=(2.0, 2.0),
        given=0.0,
        narrow=0.0,
        pairs=(150, 150),
    )
    worlds = generate(40, ranges, 5)
    found = fit(
        linear_kernel(worlds.seen.flatten(1, 2)), worlds.pairs, worlds.count, worlds.proxy, worlds.given, [PLAIN]
    )
    rng = torch.Generator().manual_seed(0)
    arms = (2 * torch.randn(40, 20, 40, generator=rng, dtype=torch.float64)).softmax(-1) - 1 / 40
    mean, covariance = Belief(found.mean[:, 0], found.covariance[0]).of(arms)
    truth = torch.einsum("wcm,wm->wc", arms, worlds.reward)
    z = (truth - mean) / covariance.diagonal(dim1=1, dim2=2).sqrt()
    assert 0.74 < float((z.abs() < 1.2816).double().mean()) < 0.86
    assert 0.9 < float((truth * mean).sum() / mean.square().sum()) < 1.15  # Laplace's approximation gives 1.3


def test_a_reward_that_was_fitted_on_the_pairs_is_not_trusted():
    worlds = generate(2, dataclasses.replace(FIRST, actions=15, pairs=(30, 30), given=0.0), 1)
    kernel = linear_kernel(worlds.seen.flatten(1, 2))
    trusting = dataclasses.replace(PLAIN, trust=0.9)
    found = fit(kernel, worlds.pairs, worlds.count, worlds.proxy, worlds.given, [PLAIN, trusting])
    one, weights = torch.ones(len(found.mean), dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    mixed = found.mixed(weights, 0.5, 1.0, one, 0.0)
    assert torch.isinf(found.evidence[:, 1]).all()
    assert torch.allclose(mixed.mean, found.mean[:, 0])
    wider = found.mixed(weights, 0.5, 2.0, 3 * one, 0.5)  # every variance plus 0.5^2, then times 3^2
    eye = torch.eye(mixed.covariance.shape[-1], dtype=torch.float64)
    assert torch.allclose(wider.mean, 2 * mixed.mean)
    assert torch.allclose(wider.covariance, 9 * (mixed.covariance + 0.25 * eye))


def test_a_given_reward_is_believed_as_far_as_the_pairs_bear_it_out():
    base = dataclasses.replace(FIRST, actions=25, pairs=(150, 150), flips=(0.0, 0.0), given=1.0)
    trusting = dataclasses.replace(PLAIN, trust=0.85)
    said = []
    for quality in (0.0, 0.95):
        worlds = generate(10, dataclasses.replace(base, quality=(quality, quality)), 2)
        kernel = linear_kernel(worlds.seen.flatten(1, 2))
        found = fit(kernel, worlds.pairs, worlds.count, worlds.proxy, worlds.given, [PLAIN, trusting])
        said.append(float((found.evidence[:, 1] - found.evidence[:, 0]).mean()))
    assert said[0] < 0 < said[1]


def test_tangents_span_the_directions_that_candidates_moved_in():
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(1, 30, 3, generator=rng, dtype=torch.float64)
    log_ratio = torch.randn(1, 8, 3, generator=rng, dtype=torch.float64) @ features.mT
    found = tangents(log_ratio)
    strong = found[0][:, found[0].norm(dim=0) > 1e-6]
    assert strong.shape[1] == 3  # eight candidates, three directions
    centred = features[0] - features[0].mean(0)
    left = centred - strong @ torch.linalg.lstsq(strong, centred).solution
    assert float(left.norm()) < 1e-8


def test_flips_of_one_half_would_say_nothing():
    gap, sd = torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([[0.5]], dtype=torch.float64)
    _, pull, weight = belief._averaged(gap, sd, 0.5)
    assert float(pull) == 0 and float(weight) == 0
