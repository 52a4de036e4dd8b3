"""Micro-batches by tokens: groups stay whole, the budget holds, and no result changes."""

import copy
from dataclasses import replace

import pytest
import torch

from modeseek.batch import Batch
from modeseek.config import load
from modeseek.distributed import Team
from modeseek.distributed.team import cuts
from modeseek.objectives import DPO, reads
from modeseek.policies.hf import HFPolicy
from modeseek.policies.load import load_model
from modeseek.policies.pack import tokens
from modeseek.sources import offline
from modeseek.stages import refer
from modeseek.train import Loop, NotFinite, Steps


def pairs():
    """Packed sizes 8, 4, 11, 5, 3 tokens, an absent place and an empty response among them."""
    groups = [[[8, 9, 2], [10, 2]], [[10, 2], []], [[3, 4, 5, 6, 2], [7, 2]], [[3, 4, 2]], [[8], [9]]]
    return Batch.of([[1, 5, 6], [1, 7], [1, 7, 8, 9], [4, 4], [6]], groups, weight=[1, 2, 0.5, 1, 3])


def test_parts_hold_as_many_whole_groups_as_the_budget_allows():
    assert tokens(pairs()).tolist() == [8, 4, 11, 5, 3]
    sizes = lambda budget: [tokens(part).tolist() for part in cuts(pairs(), None, budget)]
    assert sizes(12) == [[8, 4], [11], [5, 3]]
    assert sizes(11) == [[8], [4], [11], [5, 3]]
    assert sizes(1) == [[8], [4], [11], [5], [3]]  # a group is never split, so one may be larger
    assert sizes(99) == [[8, 4, 11, 5, 3]] and cuts(pairs().prompts(slice(0, 0)), None, 12) == []


@pytest.mark.parametrize("budget", [1, 7, 40])
def test_no_budget_changes_a_gradient(policy, objective, batch, budget):
    """Every objective, on groups of five; the loop's own passes."""
    if not reads(objective) <= batch.columns.keys() | {"logp", "mask", "present", "fresh", "entropy", "value", "kl"}:
        pytest.skip("reads what these policies do not say")
    same = lambda params, lr, betas, weight_decay: torch.optim.SGD(params, lr=lr)
    whole, part = ({"max_steps": 1, "max_grad_norm": 1e9, **more} for more in ({}, {"microbatch_tokens": budget}))
    own = replace(batch, fresh=torch.ones_like(batch.fresh)) if objective.axes.on_policy else batch
    moved = []
    for steps in (whole, part):
        model = copy.deepcopy(policy)
        loop = Loop(model, objective, lambda rng: own, [], Steps(**steps), (), same)
        try:
            row = loop.advance()
        except NotFinite:  # an on-policy objective may not read these pairs
            pytest.skip("nothing finite to compare")
        found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        moved.append((found, row["loss"], row["grad_norm"]))
    assert moved[0][0].abs().max() > 0
    torch.testing.assert_close(moved[1], moved[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fast", [True, False])
def test_a_transformers_model_takes_the_same_steps_within_the_budget(tiny, fast, monkeypatch):
    def weights(**steps):
        policy = HFPolicy(load_model(str(tiny), dtype="float64"), eos=[2], max_new=4, fast=fast)
        evaluated = []
        inner = policy.evaluate
        monkeypatch.setattr(
            policy, "evaluate", lambda b, *more: evaluated.append(int(tokens(b).sum())) or inner(b, *more)
        )
        stages = [refer(policy.reference())]
        loop = Loop(policy, DPO(), offline(pairs(), 5), stages, Steps(learning_rate=1e-2, **steps))
        for _ in range(3):
            loop.advance()
        return torch.cat([p.detach().flatten() for p in policy.parameters()]), evaluated

    want, once = weights()
    got, several = weights(microbatch_tokens=12)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)
    assert len(once) == 3 and len(several) > 6 and max(several) <= 12 < max(once)


@pytest.mark.parametrize("budget", [None, 1, 6, 12])
def test_sharded_ranks_make_equally_many_passes_whatever_their_prompts_weigh(budget):
    for size in (2, 3, 8):
        found = [Team(rank, size, sharded=True).portions(pairs(), None, budget) for rank in range(size)]
        assert len({len(parts) + idle for parts, idle in found}) == 1 and min(idle for _, idle in found) == 0
        assert sum(len(part) for parts, _ in found for part in parts) == 5


def test_what_is_not_finite_is_found_in_its_own_part():
    from modeseek.policies.gpt import gpt_policy

    torch.manual_seed(0)
    model = gpt_policy(11, eos=0, max_new=4).double()
    batch = pairs()
    batch = batch.fill(ref_logp=torch.zeros(batch.response.shape).double(), row=torch.arange(5) + 50)
    batch["ref_logp"][3, 0, 0] = float("nan")
    with pytest.raises(NotFinite, match=r"ref_logp is not finite at step 0 in rows \[53\]|rows \[3\]"):
        Loop(model, DPO(), lambda rng: batch, [], Steps(microbatch_tokens=12)).advance()


def test_prompts_and_tokens_are_not_both_a_bound():
    with pytest.raises(ValueError, match="microbatch, microbatch_tokens: both given"):
        Steps(microbatch=2, microbatch_tokens=2048)
    with pytest.raises(ValueError, match="microbatch_tokens: 0"):
        Steps(microbatch_tokens=0)
    assert load("dpo", ["--microbatch-tokens", "2048"]).microbatch_tokens == 2048
