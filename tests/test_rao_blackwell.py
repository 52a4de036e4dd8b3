"""The Rao-Blackwell gradient of the KL against the enumerated one, and against the sampled one's spread."""

import pytest
import torch

from conftest import POLICIES, VOCAB, every
from modeseek.batch import Batch
from modeseek.objectives.fresh_kl import rao_blackwell
from modeseek.policies.bandit import Bandit
from wide import WithValue, all_logp


def alone(group):
    """One group's responses as prompts with one response each."""
    whole = every(*group)
    K = whole.response.shape[1]
    return Batch.of([group[2]] * K, whole.response[0][:, None].tolist())


@pytest.mark.parametrize("kind", ["bandit", "gpt"])
def test_it_averages_to_the_exact_gradient(kind):
    """The expectation over responses is taken by enumeration, so nothing but rounding is left."""
    torch.manual_seed(0)
    make = (lambda: Bandit(torch.randn(4, 5))) if kind == "bandit" else POLICIES["gpt"]
    reference = make().double()
    policy = WithValue(make().double(), prompts=1, reference=reference)
    batch = alone((5, 1, [3]) if kind == "bandit" else (11, 2, [3, 4]))
    logp = policy.logp(batch)
    p = logp.detach().sum(-1).exp()[:, 0]
    pull, estimate = rao_blackwell(logp, policy.kl(batch), batch.mask, batch.present, "none")
    parameters = list(policy.policy.parameters())
    got = torch.autograd.grad((p * pull).sum(), parameters, retain_graph=True)
    total, ref = logp.sum(-1)[:, 0], reference.logp(batch).sum(-1)[:, 0].detach()
    exact = (total.exp() * (total - ref)).sum()
    want = torch.autograd.grad(exact, parameters)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close((p * estimate).sum(), exact.detach())  # and the estimate to the KL


def test_without_what_comes_after_a_token_it_is_biased():
    """The part that is easily forgotten: the sum of exact token KLs alone has another gradient."""
    torch.manual_seed(0)
    reference = POLICIES["gpt"]().double()
    policy = WithValue(POLICIES["gpt"]().double(), prompts=1, reference=reference)
    batch = alone((11, 2, [3, 4]))
    p = policy.logp(batch).detach().sum(-1).exp()[:, 0]
    parameters = list(policy.policy.parameters())
    short = torch.autograd.grad((p * policy.kl(batch).sum((1, 2))).sum(), parameters)
    pull, _ = rao_blackwell(policy.logp(batch), policy.kl(batch), batch.mask, batch.present, "none")
    full = torch.autograd.grad((p * pull).sum(), parameters)
    gap = torch.cat([(a - b).flatten() for a, b in zip(short, full, strict=True)]).norm()
    assert gap > 0.01 * torch.cat([b.flatten() for b in full]).norm()


def test_with_a_baseline_each_it_spreads_least():
    """Gradients with respect to the first token's logits, of 200 samples, by estimator and baseline.

    The finding that put leave_one_out beside rao_blackwell: without a baseline it may well be the worse one.
    """
    torch.manual_seed(0)
    policy, reference = POLICIES["gpt"]().double(), POLICIES["gpt"]().double()
    with torch.no_grad():
        policy.model.head.weight.mul_(3)
    prompt = torch.tensor([[3, 4]])
    own = policy.sample(prompt, torch.ones_like(prompt, dtype=torch.bool), 200, torch.Generator().manual_seed(0))
    with torch.no_grad():
        now, told = all_logp(policy, own)[0], all_logp(reference, own)[0]  # [K, T, V]
    mask, token = own.mask[0], own.response[0]
    kl = (now.exp() * (now - told)).sum(-1) * mask
    ratio = (now - told).gather(-1, token[..., None]).squeeze(-1) * mask
    score = torch.nn.functional.one_hot(token[:, 0], VOCAB) - now[:, 0].exp()

    def spread(cost, centred):
        return ((cost - cost.mean() if centred else cost)[:, None] * score).var(0).sum()

    sampled, later = ratio.sum(-1), kl.sum(-1) - kl[:, 0]  # the exact part is the same in all samples
    assert spread(later, True) < 0.5 * spread(sampled, True) < 0.5 * spread(sampled, False)
    assert spread(later, True) < 0.5 * spread(later, False)
    assert spread(later, False) > spread(sampled, True)


def test_leave_one_out_leaves_the_mean_of_the_gradient():
    """Two responses to a prompt, all pairs of them, weighed by their probability: the sum is the same."""
    torch.manual_seed(0)
    reference = POLICIES["gpt"]().double()
    policy = WithValue(POLICIES["gpt"]().double(), prompts=1, reference=reference)
    whole = every(3, 2, [3, 4])
    with torch.no_grad():
        logp, kl = policy.logp(whole)[0], policy.kl(whole)[0]  # [K, T]
    p = logp.sum(-1).exp()
    p = p / p.sum()  # of nine responses alone, which for this identity is distribution enough
    i, j = torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij")
    both = lambda x: torch.stack([x[i.flatten()], x[j.flatten()]], 1)  # [81, 2, T]
    mask, own = torch.ones(81, 2, 2, dtype=torch.bool), torch.ones(81, 2, dtype=torch.bool)
    weight = (p[i] * p[j]).flatten()

    def gradient(kind):
        seen = both(logp).requires_grad_()
        pull, _ = rao_blackwell(seen, both(kl), mask, own, kind)
        (weight * pull).sum().backward()
        # what is left over is a constant times the sum of probabilities, whose gradient is zero
        first = torch.zeros(3).double().index_add(0, whole.response[0, i.flatten(), 0], seen.grad[:, 0, 0])
        first = first.index_add(0, whole.response[0, j.flatten(), 0], seen.grad[:, 1, 0])
        marginal = torch.zeros(3).double().index_add(0, whole.response[0, :, 0], p)
        return first / marginal - (first.sum() / marginal.sum())

    torch.testing.assert_close(gradient("leave_one_out"), gradient("none"))
