"""Each thing that the self-test is for, broken on purpose."""

import contextlib
import copy
import dataclasses

import pytest
import torch

from modeseek.batch import Batch
from modeseek.objectives import DPO
from modeseek.policies.gpt import gpt_policy
from modeseek.selftest import SelfTestFailed, self_test
from modeseek.sources import offline
from modeseek.stages import refer
from modeseek.train import Loop, Steps


def told():
    batch = Batch.of([[1, 2], [3]], [[[4, 0], [5, 6, 0]], [[7, 0], [8, 0]]])
    return batch.fill(finished=torch.ones(2, 2, dtype=torch.bool), row=torch.tensor([10, 11]))


def parts():
    torch.manual_seed(0)
    policy = gpt_policy(11, eos=0, max_new=4, width=16)
    reference = copy.deepcopy(policy).requires_grad_(False)
    loop = Loop(policy, DPO(), offline(told(), 2), [refer(reference)], Steps())
    return loop, policy, reference


def proven(loop, policy, reference, batch=None, **options):
    return self_test(loop, policy, reference, batch or told(), **{"ends": [0], "samples": True, **options})


def test_a_sound_run_passes_and_says_what_it_measured():
    found = proven(*parts())
    assert found["reference_gap"] == 0 and found["sampler_gap"] < 1e-4


def test_another_reference_is_noticed():
    loop, policy, reference = parts()
    reference.model.head.weight += 0.01 * torch.randn(11, 16)
    with pytest.raises(SelfTestFailed, match="not the initial policy"):
        proven(loop, policy, reference)


def test_a_parameter_that_the_optimiser_lacks_is_named():
    loop, policy, reference = parts()
    loop.optimiser.param_groups[0]["params"].pop()
    with pytest.raises(SelfTestFailed, match=r"model\.head\.weight requires a gradient but is not in the optimiser"):
        proven(loop, policy, reference)


@pytest.mark.parametrize("response, ends", [([4], 0), ([4, 0, 0], 2), ([0, 4], 1)])
def test_a_response_must_end_once_and_last(response, ends):
    batch = Batch.of([[1, 2]], [[response, [5, 0]]]).fill(
        finished=torch.ones(1, 2, dtype=torch.bool), row=torch.tensor([7])
    )
    with pytest.raises(SelfTestFailed, match=f"response 0 of prompt 7 holds {ends} end tokens"):
        proven(*parts(), batch)


def test_a_cut_response_must_not_end():
    batch = told().fill(finished=torch.tensor([[False, True], [True, True]]))
    with pytest.raises(SelfTestFailed, match="response 0 of prompt 10 holds 1"):
        proven(*parts(), batch)


def test_a_sampler_that_draws_from_something_else_is_noticed():
    loop, policy, reference = parts()
    honest = policy.sample

    def hot(*args, **kwargs):
        return honest(*args, **{**kwargs, "temperature": 0.7})

    policy.sample = hot
    with pytest.raises(SelfTestFailed, match="sampler and the trainer disagree"):
        proven(loop, policy, reference)


def test_half_precision_is_allowed_its_rounding_and_no_more():
    """16 x 2^-7 = 0.125 nats between sampler and trainer where weights have seven bits behind the point."""
    for shift, passes in ((0.1, True), (0.2, False)):
        loop, policy, reference = parts()
        policy.bfloat16(), reference.bfloat16()
        honest = policy.sample

        def off(*args, shift=shift, honest=honest, **kwargs):
            own = honest(*args, **kwargs)
            return own.fill(old_logp=own["old_logp"] + shift * own.mask)

        policy.sample = off
        with contextlib.nullcontext() if passes else pytest.raises(SelfTestFailed, match="disagree"):
            proven(loop, policy, reference)


def test_an_objective_that_does_not_begin_at_ln_2_is_noticed(monkeypatch):
    """A reference whose log-probabilities depend on who asks: equal on their own, not under the objective."""
    loop, policy, reference = parts()
    real, calls = policy.logp, []

    def drifting(batch):
        calls.append(1)
        return real(batch) * (1.0 if len(calls) < 4 else 1.5)

    monkeypatch.setattr(policy, "logp", drifting)
    with pytest.raises(SelfTestFailed, match="ln 2"):
        proven(loop, policy, reference, samples=False)


def test_the_generator_and_the_source_are_left_alone():
    loop, policy, reference = parts()
    before = copy.deepcopy(loop.state())
    proven(loop, policy, reference)
    assert torch.equal(before["rng"], loop.state()["rng"]) and dataclasses.is_dataclass(loop.source)
    assert torch.equal(before["source"]["order"], loop.state()["source"]["order"])
