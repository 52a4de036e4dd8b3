"""HyPO's score-function term against the enumerated gradient of KL(pi || pi_ref)."""

import dataclasses

import pytest
import torch

from conftest import POLICIES, every
from modeseek.objectives import HyPO
from modeseek.policies.bandit import Bandit
from modeseek.train import evaluate


def weighted_by_probability(policy, group):
    """One prompt whose group is an indifferent pair and all responses: prompts of one fresh sample, weighted by pi."""
    everything = every(*group)
    K = everything.response.shape[1]
    pair = everything.take(torch.zeros(1, 2, dtype=torch.long))
    parts = [pair.beside(everything.take(torch.tensor([[k]]))) for k in range(K)]
    with torch.no_grad():
        p = policy.logp(everything)[0].sum(-1).exp()  # [K]
    fresh = torch.tensor([[False, False, True]])
    return [dataclasses.replace(x, fresh=fresh) for x in parts], p


@pytest.mark.parametrize("kind", ["bandit", "gpt"])
def test_the_kl_term_averages_to_the_exact_gradient(kind):
    """The expectation over a fresh sample is taken by enumeration, so nothing but rounding is left."""
    torch.manual_seed(0)
    make = (lambda: Bandit(torch.randn(4, 5))) if kind == "bandit" else POLICIES["gpt"]
    policy, reference = make().double(), make().double()
    parts, p = weighted_by_probability(policy, (5, 1, [3]) if kind == "bandit" else (11, 2, [3, 4]))
    for weight, part in zip(p, parts, strict=True):
        with torch.no_grad():
            part = part.fill(ref_logp=reference.logp(part))
        (weight * evaluate(HyPO(kl=1.0), policy, part).per_prompt).sum().backward()
    got = torch.cat([x.grad.flatten() for x in policy.parameters()])
    policy.zero_grad()
    whole = every(5, 1, [3]) if kind == "bandit" else every(11, 2, [3, 4])
    logp, ref = policy.logp(whole).sum(-1), reference.logp(whole).sum(-1).detach()
    (logp.exp() * (logp - ref)).sum().backward()
    want = torch.cat([x.grad.flatten() for x in policy.parameters()])
    assert want.norm() > 0.1
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


def test_a_baseline_leaves_the_mean_of_the_gradient_and_shrinks_its_spread():
    """The reference sits on an action that the policy has left, so the log-ratio is large and nearly constant.

    4,000 draws of four samples: the same mean within 4 standard errors, less variance.
    """
    torch.manual_seed(0)
    logits = torch.randn(1, 6)
    away = torch.tensor([[0.0, 0, 0, 0, 0, 6]])
    policy, reference = Bandit(logits - away), Bandit(logits + away + 0.3 * torch.randn(1, 6))
    rng = torch.Generator().manual_seed(0)
    prompt = torch.zeros(4000, 1, dtype=torch.long)
    own = policy.sample(prompt, torch.ones_like(prompt, dtype=torch.bool), 4, rng)
    pair = own.take(torch.zeros(4000, 2, dtype=torch.long))
    pair = dataclasses.replace(pair, fresh=torch.zeros_like(pair.fresh))
    batch = pair.beside(own)
    with torch.no_grad():
        batch = batch.fill(ref_logp=reference.logp(batch))

    def gradients(objective, batch):
        logp = policy.logp(batch)
        seen = logp.detach().requires_grad_()
        columns = {"ref_logp": batch["ref_logp"], "mask": batch.mask, "fresh": batch.fresh, "present": batch.present}
        objective(logp=seen, **columns, baseline=batch["baseline"]).per_prompt.sum().backward()
        pi = policy.logits.softmax(-1)[0].detach()
        one_hot = torch.nn.functional.one_hot(batch.response[..., 0], 6)
        return (seen.grad * (one_hot - pi)).sum(1)  # [P, A]: the chain through the softmax

    kl = (policy.logits.softmax(-1) * (policy.logits.log_softmax(-1) - reference.logits.log_softmax(-1))).sum()
    batch = batch.fill(baseline=kl.detach().expand(4000))
    plain = gradients(HyPO(kl=1.0), batch)
    for name in ("leave_one_out", "running_mean"):
        less = gradients(HyPO(kl=1.0, kl_baseline=name), batch)
        error = ((plain - less).var(0) / 4000).sqrt()
        assert ((plain.mean(0) - less.mean(0)).abs() < 4 * error + 1e-3).all()
        assert less.var(0).sum() < 0.8 * plain.var(0).sum()


def test_what_hypo_cannot_do_is_refused():
    policy = Bandit(torch.zeros(1, 3))
    prompt = torch.zeros(2, 1, dtype=torch.long)
    own = policy.sample(prompt, torch.ones_like(prompt, dtype=torch.bool), 3, torch.Generator())
    batch = own.fill(ref_logp=policy.logp(own).detach())
    with pytest.raises(ValueError, match="num_generations"):
        fresh = torch.tensor([[False, False, True]] * 2)
        evaluate(HyPO(kl_baseline="leave_one_out"), policy, dataclasses.replace(batch, fresh=fresh))
    with pytest.raises(ValueError, match="running_kl"):
        evaluate(HyPO(kl_baseline="running_mean"), policy, batch)
    with pytest.raises(ValueError, match="hybrid source"):
        evaluate(HyPO(), policy, dataclasses.replace(batch, fresh=torch.zeros_like(batch.fresh)))
