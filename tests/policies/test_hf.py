import pytest
import torch

from modeseek.batch import Batch
from modeseek.policies.adapter import Lora
from modeseek.policies.hf import HFPolicy, load_model


def batch():
    return Batch.of([[1, 5, 6], [1, 7]], [[[8, 9, 2], [10, 2]], [[11, 2], [12, 13, 2]]])


def gradient(policy, b):
    policy.zero_grad()
    policy.logp(b).sum().backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


@pytest.mark.parametrize("fast", [True, False])
def test_checkpointing_recomputes_activations_and_changes_no_gradient(fast, tiny):
    def policy(**options):
        made = HFPolicy(load_model(str(tiny), **options), eos=[2], max_new=5, fast=fast)
        calls = []
        made.model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
        return made, calls

    plain, once = policy()
    want = gradient(plain, batch())
    assert len(once) == 1
    checkpointed, twice = policy(gradient_checkpointing=True)
    torch.testing.assert_close(gradient(checkpointed, batch()), want)
    assert len(twice) == 2
    own = checkpointed.sample(batch().prompt, batch().prompt_mask, 2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(checkpointed.logp(own), own["old_logp"], rtol=1e-4, atol=1e-5)


def test_the_fast_paths_say_what_the_plain_ones_say(tiny):
    fast = HFPolicy(load_model(str(tiny), dtype="float64"), eos=[2], max_new=5)
    plain = HFPolicy(load_model(str(tiny), dtype="float64"), eos=[2], max_new=5, fast=False)
    assert "packed" in fast.paths["logp"] and "not asked for" in plain.paths["logp"]
    torch.testing.assert_close(fast.logp(batch()), plain.logp(batch()), rtol=1e-9, atol=1e-9)


def test_the_exact_kl_to_an_adapters_base_is_zero_before_training(tiny):
    torch.manual_seed(0)
    policy = HFPolicy(load_model(str(tiny), lora=Lora(r=4)), eos=[2], max_new=5)
    assert policy.kl(batch()).abs().max() < 1e-6
    full = HFPolicy(load_model(str(tiny)), eos=[2], max_new=5)
    with pytest.raises(ValueError, match="lora"):
        full.kl(batch())


def test_a_batch_without_prompts_has_no_log_probabilities(tiny):
    policy = HFPolicy(load_model(str(tiny)), eos=[2], max_new=5)
    assert policy.logp(batch().prompts(torch.zeros(2, dtype=torch.bool))).shape == (0, 2, 3)
