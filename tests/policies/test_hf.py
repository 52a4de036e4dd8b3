import pytest
import torch

from modeseek.batch import Batch
from modeseek.policies import packed
from modeseek.policies.adapter import Lora
from modeseek.policies.hf import HFPolicy
from modeseek.policies.load import load_model
from modeseek.rewards.model import RewardModel


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


def test_the_exact_kl_of_a_full_fine_tune_is_to_what_it_is_measured_against(tiny):
    policy = HFPolicy(load_model(str(tiny), dtype="float64"), eos=[2], max_new=5)
    with pytest.raises(ValueError, match="reference"):
        policy.kl(batch())
    policy.measure_against(policy.reference())
    assert policy.kl(batch()).abs().max() < 1e-12
    before = everywhere(policy)
    with torch.no_grad():
        for p in policy.parameters():
            p.mul_(1.1)
    after = everywhere(policy)
    want = (after.exp() * (after - before)).sum(-1).masked_fill(~batch().mask, 0.0)
    torch.testing.assert_close(policy.kl(batch()), want, rtol=1e-6, atol=1e-9)


@torch.no_grad()
def everywhere(policy):
    """log-probabilities of the whole vocabulary at each place of each response. [P, K, T, V]"""
    b = batch()
    out = torch.zeros(*b.response.shape, policy.model.config.vocab_size, dtype=torch.float64)
    for p, k in b.present.nonzero().tolist():
        prompt, response = b.prompt[p][b.prompt_mask[p]], b.response[p, k][b.mask[p, k]]
        logits = policy.model(torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
        out[p, k, : len(response)] = logits.log_softmax(-1)
    return out


def test_a_critic_values_the_state_before_each_token(tiny):
    critic = RewardModel.load(str(tiny)).double()
    torch.nn.init.normal_(critic.model.score.weight)
    policy = HFPolicy(load_model(str(tiny), dtype="float64"), eos=[2], max_new=5, critic=critic)
    b = batch()
    said = policy.value(b)
    for p, k in b.present.nonzero().tolist():
        prompt, response = b.prompt[p][b.prompt_mask[p]], b.response[p, k][b.mask[p, k]]
        for t in range(len(response)):  # the row as it stood before token t was written
            row = torch.cat([prompt, response[:t]])[None]
            alone = critic.model.score(critic.model.base_model(row).last_hidden_state[0, -1])
            torch.testing.assert_close(said[p, k, t], alone[0], rtol=1e-6, atol=1e-9)
    assert (said[~b.mask] == 0).all()
    with pytest.raises(ValueError, match="critic"):
        HFPolicy(load_model(str(tiny)), eos=[2], max_new=5).value(b)


def test_a_batch_without_prompts_has_no_log_probabilities(tiny):
    policy = HFPolicy(load_model(str(tiny)), eos=[2], max_new=5)
    assert policy.logp(batch().prompts(torch.zeros(2, dtype=torch.bool))).shape == (0, 2, 3)


def test_collision_is_the_chance_that_two_draws_agree(tiny):
    policy = HFPolicy(load_model(str(tiny), dtype="float64"), eos=[2], max_new=5)
    want = everywhere(policy).exp().square().sum(-1).log().masked_fill(~batch().mask, 0.0)
    torch.testing.assert_close(policy.collision(batch()), want, rtol=1e-9, atol=1e-9)


def test_packed_rows_on_a_device_where_no_one_has_run_them_are_asked_for_and_called_unverified(tiny, monkeypatch):
    monkeypatch.setattr(packed, "VERIFIED", ("elsewhere",))
    known = HFPolicy(load_model(str(tiny)), eos=[2], max_new=5)
    assert "plain: packed rows have not been verified on cpu" in known.paths["logp"]
    asked = HFPolicy(load_model(str(tiny)), eos=[2], max_new=5, unverified=True)
    for policy in (asked, asked.reference().module):
        assert policy.paths["logp"].startswith("packed rows") and "unverified on CPU" in policy.paths["logp"]
        assert "unverified on CPU" in policy.paths["sample"]
    torch.testing.assert_close(asked.logp(batch()), known.logp(batch()), rtol=1e-5, atol=1e-5)
