"""A mixture says and samples what the enumeration of its two policies gives."""

import itertools
import math

import pytest
import torch

from conftest import EOS, VOCAB, every
from modeseek.batch import Batch
from modeseek.policies.adapter import Lora
from modeseek.policies.bandit import Bandit
from modeseek.policies.gpt import gpt_policy
from modeseek.policies.hf import HFPolicy
from modeseek.policies.load import load_model
from modeseek.policies.mixture import Mixture
from modeseek.policies.scratch import small_llama
from modeseek.stages import challenge_mixture


def ones(prompt):
    return torch.ones_like(prompt, dtype=torch.bool)


def sampled(policy, prompt, n, seed=0):
    return policy.sample(prompt, ones(prompt), n, torch.Generator().manual_seed(seed))


def gpts():
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made.append(gpt_policy(VOCAB, eos=EOS, max_new=2, width=8, layers=1, context=8).double())
        with torch.no_grad():
            for x in made[-1].parameters():
                x.mul_(3)  # two policies that differ
    return made


def test_a_bandits_mixture_by_hand():
    """Odds 4 to 1 and 1 to 9, an eighth of the second: 4^(7/8) (1/9)^(1/8) = 2.5557 to 1."""
    mine = Mixture(Bandit(torch.tensor([[4.0, 1]]).log()), Bandit(torch.tensor([[1.0, 9]]).log()), 0.125)
    odds = 4 ** (7 / 8) * 9 ** (-1 / 8)
    assert odds == pytest.approx(2.5557, abs=1e-4)
    batch = sampled(mine, torch.tensor([[0]]), 20_000)
    assert float((batch.response == 0).double().mean()) == pytest.approx(odds / (1 + odds), abs=0.012)  # 3.5 deviations
    want = torch.where(batch.response == 0, math.log(odds / (1 + odds)), -math.log(1 + odds))
    torch.testing.assert_close(batch["old_logp"], want)
    assert batch["finished"].all() and batch.fresh.all()


def test_each_token_is_of_the_mixture_of_both_next_tokens():
    """All responses of two tokens: 0.7 of ours and 0.3 of theirs, normalised after every prefix by enumeration."""
    ours, theirs = gpts()
    batch = every(VOCAB, 2, [3, 4])
    a, b = (p.logp(batch)[0].view(VOCAB, VOCAB, 2) for p in (ours, theirs))
    blend = 0.7 * a + 0.3 * b
    first, second = blend[:, 0, 0].log_softmax(0), blend[..., 1].log_softmax(1)
    said = Mixture(ours, theirs, 0.3).logp(batch)[0].view(VOCAB, VOCAB, 2)
    torch.testing.assert_close(said[..., 0], first[:, None].expand(VOCAB, VOCAB))
    torch.testing.assert_close(said[..., 1], second)


def test_it_samples_what_it_says():
    """A chi-square of 20,000 responses against the enumeration; those expected fewer than five times together."""
    ours, theirs = gpts()
    mine = Mixture(ours, theirs, 0.4)
    batch = sampled(mine, torch.tensor([[3, 4]]), 20_000)
    torch.testing.assert_close(batch["old_logp"], mine.logp(batch))
    tokens = [tuple(r[m].tolist()) for r, m in zip(batch.response[0], batch.mask[0], strict=True)]
    possible = [(EOS,), *(pair for pair in itertools.product(range(VOCAB), repeat=2) if pair[0] != EOS)]
    p = mine.logp(Batch.of([[3, 4]], [possible]))[0].sum(-1).exp()
    assert float(p.sum()) == pytest.approx(1)
    seen = torch.tensor([tokens.count(one) for one in possible], dtype=torch.float64)
    rare = 20_000 * p < 5
    seen, p = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (seen, p))
    chi, free = float(((seen - 20_000 * p).square() / (20_000 * p)).sum()), len(p) - 1
    assert chi < free + 4 * math.sqrt(2 * free)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_at_the_ends_it_is_one_of_the_two(share):
    pair = gpts()
    batch = sampled(Mixture(*pair, share), torch.tensor([[3, 4]]), 50)
    torch.testing.assert_close(batch["old_logp"], pair[int(share)].logp(batch))


@pytest.fixture(params=["full", "lora"])
def pretrained(request, tmp_path):
    """A transformers policy a little away from its reference, and that reference."""
    torch.manual_seed(0)
    small_llama(40, width=16, layers=2, heads=2, inner=24, context=32, pad=0, bos=1, eos=2).save_pretrained(tmp_path)
    lora = Lora(r=2, alpha=8) if request.param == "lora" else None
    policy = HFPolicy(load_model(str(tmp_path), lora=lora), eos=[2], max_new=6)
    reference = policy.reference()
    with torch.no_grad():
        for x in policy.parameters():
            if x.requires_grad:
                x.add_(0.3 * torch.randn_like(x))
    return policy, reference


def test_cached_and_plain_mixtures_are_the_same(pretrained):
    policy, reference = pretrained
    prompt = torch.tensor([[0, 5, 7], [3, 4, 5]])
    mask = torch.tensor([[False, True, True], [True, True, True]])
    mine = Mixture(policy, reference, 0.4)
    batch = mine.sample(prompt, mask, 4, torch.Generator().manual_seed(0))
    assert policy.paths["sample"] == "shared prefill, cached"
    torch.testing.assert_close(batch["old_logp"], mine.logp(batch), rtol=1e-4, atol=1e-5)
    assert (batch["old_logp"] - policy.logp(batch).detach()).abs().max() > 0.05
    assert (batch["old_logp"] - reference.logp(batch)).abs().max() > 0.05


def test_the_rivals_of_nash_md_are_the_mixtures_and_not_fresh(pretrained):
    policy, reference = pretrained
    prompt = torch.tensor([[3, 4, 5]])
    own = sampled(policy, prompt, 2)
    both = challenge_mixture(policy, reference, share=0.4)(own)
    assert both.fresh.tolist() == [[True, True, False]]
    rival = both.take(torch.tensor([[2]]))
    torch.testing.assert_close(rival["old_logp"], Mixture(policy, reference, 0.4).logp(rival), rtol=1e-4, atol=1e-5)


def test_a_share_outside_its_range_is_refused():
    table = Bandit(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="share: 1.5, expected from 0"):
        Mixture(table, table, 1.5)
    with pytest.raises(ValueError, match="does not predict tokens"):
        Mixture(object(), table, 0.5)
