"""False alarms and power of the on-policy verdict."""

import numpy as np
import pytest
import torch

from conftest import EOS, VOCAB
from modeseek.batch import Batch
from modeseek.diagnostics import on_policyness
from modeseek.diagnostics.look import look
from modeseek.diagnostics.verdicts import ALARM, on_policy
from modeseek.policies.bandit import Bandit
from modeseek.policies.gpt import gpt_policy

DRAWS = 100


def test_a_models_own_data_raise_an_alarm_in_at_most_five_draws_of_a_hundred():
    """Pairs of own samples, the likelier one called chosen: selection is no reason for an alarm. Alarm at p < .01."""
    p = [_bandit_p(seed, flat=False) for seed in range(DRAWS)]
    assert np.mean(np.array(p) < ALARM) <= 0.05
    assert 0.25 < np.mean(np.array(p) < 0.5) < 0.7  # p-values spread, so that the test has not gone deaf


def test_data_of_a_flatter_model_raise_one():
    """The writer takes all thirty actions alike; the model's logits have a standard deviation of one."""
    assert np.mean([_bandit_p(seed, flat=True) < ALARM for seed in range(20)]) >= 0.95


def _bandit_p(seed, flat, P=128, K=8):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(4, 30))
    other = np.zeros_like(logits) if flat else logits
    x = rng.integers(4, size=P)
    logp = lambda z: z - np.log(np.exp(z).sum(1, keepdims=True))
    pick = lambda z, k: (rng.random((P, k))[..., None] > np.exp(logp(z))[x].cumsum(1)[:, None]).sum(-1).clip(max=29)
    table = logp(logits)
    own, told = table[x[:, None], pick(logits, K)], np.sort(table[x[:, None], pick(other, 2)], 1)[:, ::-1]
    return on_policyness.permutation(own, told, rng)


@pytest.mark.parametrize("kind", ["bandit", "gpt"])
def test_a_look_at_own_samples_is_called_on_policy(kind):
    torch.manual_seed(0)
    policy = Bandit(torch.randn(4, 12)) if kind == "bandit" else gpt_policy(VOCAB, eos=EOS, max_new=6, context=16)
    calls = [_answer(policy, kind, seed) for seed in range(4)]
    assert sum(level == "good" for level in calls) >= 3


def _answer(policy, kind, seed, P=48):
    rng = torch.Generator().manual_seed(100 + seed)
    prompt = torch.randint(1, 4, (P, 1 if kind == "bandit" else 3), generator=rng)
    told = policy.sample(prompt, torch.ones_like(prompt, dtype=torch.bool), 2, rng)
    seen = look(policy, told, samples=4, seed=seed)
    known = {f.name: f.value for f in on_policyness.on_policyness(seen) if hasattr(f, "value")}
    return on_policy(known, on_policyness.p_value(seen)).level


def test_another_models_texts_are_called_far_off_policy():
    torch.manual_seed(0)
    policy = gpt_policy(VOCAB, eos=EOS, max_new=6, context=16)
    prompts = [[1, 2, 3]] * 48
    told = Batch.of(prompts, [[[9] * 6, [8] * 5]] * 48)
    seen = look(policy, told, samples=4)
    known = {f.name: f.value for f in on_policyness.on_policyness(seen) if hasattr(f, "value")}
    assert on_policy(known, on_policyness.p_value(seen)).level == "bad"


def test_ranks_of_own_samples_are_even_whatever_ties_there_are():
    """Two values only, so nearly all ranks tie; spread, they are uniform: mean 1/2, variance 1/12."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(2, size=(20_000, 5)).astype(float)
    u = on_policyness.rank(drawn[:, 1:], drawn[:, 0], rng)
    assert u.mean() == pytest.approx(0.5, abs=0.01) and u.var() == pytest.approx(1 / 12, abs=0.003)


def test_a_rank_by_hand():
    """Two of three own below, no tie: between 2/4 and 3/4."""
    u = on_policyness.rank(np.array([[1.0, 2.0, 9.0]]), np.array([5.0]), np.random.default_rng(0))
    assert 0.5 <= u[0] < 0.75


def test_a_source_that_the_model_did_not_write_like_stands_out():
    rng = np.random.default_rng(0)
    own, told = rng.normal(size=(60, 8)), rng.normal(size=(60, 2))
    told[:, 1] -= 5
    found = on_policyness._by_source(own, told, [["ours", "theirs"]] * 60, rng)
    means = {f.name: f.value for f in found}
    assert means["pit/source=ours"] == pytest.approx(0.5, abs=0.1) and means["pit/source=theirs"] < 0.1


def test_a_classifier_has_nothing_to_tell_own_samples_by_and_everything_to_tell_others_by():
    rng = np.random.default_rng(0)
    own, told = rng.normal(size=(64, 8, 5)), rng.normal(size=(64, 2, 5))
    assert on_policyness.auc(own, told, name="auc").value == pytest.approx(0.5, abs=0.07)
    assert on_policyness.auc(own, told + 3, name="auc").value > 0.95
