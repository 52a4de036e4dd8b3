"""What is on a GPU stays there: data are moved once, and nothing of the CPU meets it. Proven on a pretended device."""

import copy
from dataclasses import replace

import pytest
import torch

from away import DEVICE, Away, move, pretended
from modeseek.batch import Batch
from modeseek.build import corrected, needs_reference, scores, stage_of
from modeseek.policies.hf import HFPolicy
from modeseek.policies.scratch import small_llama
from modeseek.rewards import Length
from modeseek.sources import Offline
from modeseek.train import Loop
from test_configs import RUNS, Scorer, Speaker, asks_a_reward, reward, source_of


def weights_after(run, *, away: bool):
    """A step of a method, on the CPU or on the pretended device."""
    torch.manual_seed(0)
    run = replace(run, reward=Length() if asks_a_reward(run) else None)
    policy = Scorer() if scores(run) else Speaker()
    reference = copy.deepcopy(policy).requires_grad_(False)
    for x in policy.parameters():
        x.data += 0.1 * torch.randn_like(x)
    if away:
        policy, reference = move(policy), move(reference)
    parts = {"policy": policy, "reference": reference if needs_reference(run) else None, "reward": reward}
    stages, live = ([stage_of(spec, parts) for spec in specs] for specs in (run.stages, corrected(run)))
    source = source_of(run, policy)
    if away:
        drawn = source if isinstance(source, Offline) else getattr(source, "prompts", None) or source.pairs
        drawn.device = DEVICE
    loop = Loop(policy, run.objective, source, stages, run, live)
    loop.advance()
    assert all(isinstance(x, Away) == away for x in policy.parameters())
    return torch.cat([x.detach().cpu().flatten() for x in policy.parameters()])


@pytest.mark.parametrize("name", RUNS)
def test_a_method_trains_on_another_device_as_on_the_cpu(name):
    expected = weights_after(RUNS[name], away=False)
    with pretended():
        found = weights_after(RUNS[name], away=True)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_transformers_policy_scores_and_samples_on_another_device():
    torch.manual_seed(0)
    policy = HFPolicy(
        small_llama(30, width=16, layers=1, heads=2, inner=32, context=32, pad=1, bos=2, eos=0),
        eos=(0,),
        max_new=4,
        fast=False,
    )
    batch = Batch.of([[3, 4], [5]], [[[6, 7], [8]], [[9], [10, 11, 12]]])
    expected = policy.logp(batch)
    drawn = policy.sample(batch.prompt, batch.prompt_mask, 2, torch.Generator().manual_seed(0))
    with pretended():
        move(policy)
        told = batch.to(DEVICE)
        torch.testing.assert_close(policy.logp(told).cpu(), expected)
        again = policy.sample(told.prompt, told.prompt_mask, 2, torch.Generator().manual_seed(0))
        assert again.response.cpu().equal(drawn.response)


def test_the_pretended_device_refuses_what_a_real_one_refuses():
    with pretended():
        x = torch.ones(3, device=DEVICE)
        assert x.sum().item() == 3 and (2 * x).cpu().tolist() == [2, 2, 2]
        with pytest.raises(RuntimeError, match="a CPU tensor of shape"):
            x + torch.ones(3)
        with pytest.raises(TypeError, match="NumPy"):
            x.numpy()
