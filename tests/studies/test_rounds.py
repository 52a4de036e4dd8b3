"""Rounds of labels: the design that asks most, and the fit that DPO's loss is minimised by."""

import pytest
import torch

from modeseek.objectives import DPO
from modeseek.studies.worlds import rounds
from modeseek.studies.worlds.linear import LogLinear, pairs_of, referred, told
from modeseek.studies.worlds.table import streams, uniform
from modeseek.train import evaluate


def test_the_largest_leverage_of_the_design_tends_to_the_dimension():
    """Kiefer and Wolfowitz: it cannot be less than d = 8, and uniform pairs are far from it."""
    _, features = rounds.anti_correlated([0])
    weight, places = rounds.g_optimal(features, steps=1500)
    gaps = features[:, places[0]] - features[:, places[1]]
    assert weight.sum().item() == pytest.approx(1) and (weight >= 0).all()
    largest = rounds.leverage(gaps, weight).max().item()
    assert 8 - 1e-9 <= largest < 8.08
    alike = rounds.leverage(gaps, torch.full_like(weight, 1 / weight.shape[1]))
    assert alike.max().item() > 16
    assert (rounds.leverage(gaps, weight) * weight).sum().item() == pytest.approx(8)  # the mean is d for any design


def test_the_fit_is_where_the_gradient_of_dpo_vanishes():
    problem, features = rounds.anti_correlated([1, 2])
    policy = LogLinear(problem.ref.log(), features)
    u = uniform(streams([1, 2], "test"), 300, 3)
    chosen, rejected = told(problem.reward, *rounds._two(problem.ref, u), u[..., 2])
    rounds.fit(policy, problem, [(chosen, rejected)])
    pairs = referred(pairs_of(chosen, rejected), policy.ref_logp)
    loss = evaluate(DPO(beta=rounds.BETA), policy, pairs).per_prompt
    (gradient,) = torch.autograd.grad(loss.sum() / 300, policy.theta)
    assert gradient.norm(dim=-1).max() < 1e-3 * rounds.BETA


def test_the_two_responses_of_a_pair_differ_and_follow_the_writer():
    p = torch.tensor([[0.9, 0.1, 0.0]], dtype=torch.float64)
    first, second = rounds._two(p, uniform(streams([0], "test"), 2000, 3))
    assert (first + second == 1).all()  # 0 and 1 in some order: the third has no mass
    assert (first == 0).double().mean().item() == pytest.approx(0.9, abs=0.03)


def test_the_first_round_is_the_same_on_policy_and_off():
    offline, own = (rounds.Rounds().run(method, [0, 1], rounds=1) for method in ("offline", "on_policy"))
    assert offline == own


def test_more_labels_leave_less_gap():
    rows = rounds.Rounds().run("offline", range(20), rounds=3)
    mean = [sum(row["log_gap"] for row in rows if row["step"] == k) / 20 for k in range(4)]
    assert mean == sorted(mean, reverse=True)
