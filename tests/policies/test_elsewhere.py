"""Packed rows and cached rollouts on a pretended device: nothing of the CPU meets what is there."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from away import DEVICE, Away, move, pretended
from modeseek.batch import Batch
from modeseek.objectives import DPO
from modeseek.policies.decode import sample
from modeseek.policies.packed import Packed
from modeseek.train import evaluate


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """torch refuses to say whether it is on for a device of this name."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *device: False)


class Fast(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.packed = model, Packed(model)
        self.evaluate = self.packed.evaluate


def model():
    torch.manual_seed(0)
    small = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**small, num_attention_heads=2, initializer_range=0.1)).double().eval()


def gradient(net, batch):
    loss = evaluate(DPO(), Fast(net), batch).per_prompt
    loss.mean().backward()
    return loss.detach().cpu(), torch.cat([p.grad.cpu().flatten() for p in net.parameters()])


def test_the_packed_step_computes_elsewhere_what_it_computes_here():
    net = model()
    batch = Batch.of([[3, 4, 5], [5]], [[[6, 7, 0], [8, 0]], [[9, 0], [10, 11, 12, 0]]])
    batch = batch.fill(ref_logp=torch.full(batch.response.shape, -3.0, dtype=torch.float64))
    expected = gradient(copy.deepcopy(net), batch)
    with pretended():
        away = move(net)
        found = gradient(away, batch.to(DEVICE))
        assert all(isinstance(p.grad, Away) for p in away.parameters())
    for ours, known in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, known, rtol=1e-9, atol=1e-12)


def test_rollouts_elsewhere_write_what_they_write_here():
    net = model()
    batch = Batch.of([[3, 4, 5, 6], [5], [7, 8]], [[], [], []])
    roll = lambda m, b: sample(
        m, b.prompt, b.prompt_mask, 3, torch.Generator().manual_seed(0), eos=(0, 9), max_new=6, token_budget=60
    )
    expected = roll(net, batch)
    with pretended():
        found = roll(move(net), batch.to(DEVICE))
        assert isinstance(found.response, Away)
        assert found.response.cpu().equal(expected.response)
        torch.testing.assert_close(found["old_logp"].cpu(), expected["old_logp"])
