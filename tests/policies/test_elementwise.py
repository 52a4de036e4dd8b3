"""Norms and rotations written by hand against transformers' own modules and autograd."""

from functools import partial

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.models.cohere import modeling_cohere
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2 import modeling_olmo2
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from modeseek.policies import elementwise


def both_ways(module: nn.Module, x: torch.Tensor, grad: torch.Tensor) -> list[list[torch.Tensor]]:
    """Output and gradients of x and the weight: as the module is, and by hand."""
    found = []
    for hand in (False, True):
        x = x.detach().requires_grad_()
        with elementwise.by_hand(module if hand else nn.Identity()):
            y = module(x)
        found.append([y, *torch.autograd.grad(y, [x, module.weight], grad)])
    return found


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen3RMSNorm])
@pytest.mark.parametrize("shape", [(1, 7, 16), (1, 5, 4, 16), (0, 16)])
def test_values_and_gradients_are_the_module_s(kind, shape):
    rng = torch.Generator().manual_seed(0)
    module, x, grad = kind(16, eps=1e-3), torch.randn(shape, generator=rng), torch.randn(shape, generator=rng)
    module.weight.data = 1 + torch.randn(16, generator=rng) / 3
    own, hand = both_ways(module, x, grad)
    assert torch.equal(own[0], hand[0])
    for a, b in zip(own[1:], hand[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_by_hand_in_numbers():
    """x = (3, 4), weight (1, 2), no eps: y = x / sqrt(12.5), and d y_1 / d x = (16, -12) / 12.5^1.5 / 2."""
    module = LlamaRMSNorm(2, eps=0.0)
    module.weight.data = torch.tensor([1.0, 2.0])
    _, (y, dx, dweight) = both_ways(module, torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(y, torch.tensor([[3.0, 8.0]]) / 12.5**0.5)
    torch.testing.assert_close(dx, torch.tensor([[16.0, -12.0]]) / 12.5**1.5 / 2)
    torch.testing.assert_close(dweight, torch.tensor([3.0, 0.0]) / 12.5**0.5)


def test_a_frozen_weight_has_no_gradient_and_others_are_left_alone():
    module = LlamaRMSNorm(4)
    module.weight.requires_grad_(False)
    x = torch.randn(2, 4, requires_grad=True)
    with elementwise.by_hand(module):
        module(x).sum().backward()
    assert module.weight.grad is None and x.grad is not None
    assert "forward" not in vars(module)


@pytest.mark.parametrize("module", [LlamaRMSNorm(8).double(), LlamaRMSNorm(8).bfloat16(), Gemma2RMSNorm(8)])
def test_other_numbers_and_other_norms_go_the_module_s_own_way(module, monkeypatch):
    monkeypatch.setattr(elementwise._Rms, "apply", None)
    monkeypatch.setitem(elementwise._found, LlamaRMSNorm, True)
    x = torch.randn(3, 8, dtype=module.weight.dtype)
    with elementwise.by_hand(module):
        assert torch.equal(module(x), type(module).forward(module, x))


def test_a_norm_that_only_looks_like_it_is_left_alone():
    class Shifted(LlamaRMSNorm):
        def forward(self, hidden_states):
            return super().forward(hidden_states) + hidden_states * 1e-3

    module = Shifted(8)
    with elementwise.by_hand(module):
        assert "forward" not in vars(module)
    taken = LlamaRMSNorm(8)
    with elementwise.by_hand(taken):
        assert "forward" in vars(taken)


def test_a_backward_under_autocast_is_in_float32():
    module, x, grad = LlamaRMSNorm(64), torch.randn(5, 64), torch.randn(5, 64)
    found = []
    for autocast in (False, True):
        x = x.detach().requires_grad_()
        with elementwise.by_hand(module):
            y = module(x)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found.append(torch.autograd.grad(y, x, grad)[0])
    assert torch.equal(*found)


@pytest.mark.parametrize("within", [FakeTensorMode(), torch.device("meta"), torch.autocast("cpu", torch.bfloat16)])
def test_a_class_is_tried_with_real_numbers_whatever_surrounds_it(within, monkeypatch):
    """A plan fakes its tensors, and what it finds is asked again when the run is trained."""
    monkeypatch.setattr(elementwise, "_found", {})
    module = LlamaRMSNorm(4)
    with within, elementwise.by_hand(module):
        assert "forward" in vars(module)


def rotated(file, q, k, cos, sin, grads, *, hand):
    """Outputs and gradients of the queries and keys, by the function that models of that file call."""
    model = type("Model", (nn.Module,), {"__module__": file.__name__})() if hand else nn.Identity()
    q, k = (x.detach().requires_grad_() for x in (q, k))
    with elementwise.by_hand(model):
        assert isinstance(file.apply_rotary_pos_emb, partial) == (hand and file is not modeling_cohere)
        out = file.apply_rotary_pos_emb(q, k, cos, sin)
    return [*out, *torch.autograd.grad(out, [q, k], grads)]


@pytest.mark.parametrize("file", [modeling_llama, modeling_olmo2, modeling_cohere])
def test_rotations_are_the_model_s(file):
    """No two of the angles' numbers are equal, so that a half taken for the other shows."""
    rng = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 5, 4, 8, generator=rng).transpose(1, 2), torch.randn(2, 2, 5, 8, generator=rng)
    cos, sin = torch.randn(2, 2, 5, 8, generator=rng)
    grads = [torch.randn(x.shape, generator=rng) for x in (q, k)]
    own, hand = (rotated(file, q, k, cos, sin, grads, hand=hand) for hand in (False, True))
    for a, b in zip(own, hand, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert not isinstance(file.apply_rotary_pos_emb, partial)


def test_a_quarter_turn_in_numbers():
    """(1, 2) turned by a quarter is (-2, 1); a gradient of the first place alone came from the second."""
    x, one = torch.tensor([[[[1.0, 2.0]]]]), torch.ones(1, 1, 2)
    q, k, dq, dk = rotated(modeling_llama, x, x, 0 * one, one, [torch.tensor([[[[1.0, 0.0]]]])] * 2, hand=True)
    assert q.tolist() == k.tolist() == [[[[-2.0, 1.0]]]]
    assert dq.tolist() == dk.tolist() == [[[[0.0, -1.0]]]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_numbers_are_rotated_the_model_s_own_way(dtype, monkeypatch):
    monkeypatch.setattr(elementwise._Turn, "apply", None)
    monkeypatch.setitem(elementwise._found, modeling_llama.apply_rotary_pos_emb, True)
    x, angle = torch.randn(1, 2, 3, 8, dtype=dtype), torch.randn(1, 3, 8, dtype=dtype)
    own = modeling_llama.apply_rotary_pos_emb(x, x, angle, angle)
    with elementwise.by_hand(modeling_llama.LlamaRMSNorm(8)):
        hand = modeling_llama.apply_rotary_pos_emb(x, x, angle, angle)
    assert all(torch.equal(a, b) for a, b in zip(own, hand, strict=True))


def test_within_another_s_context_and_after_an_error_the_function_is_put_back():
    own, model = modeling_llama.apply_rotary_pos_emb, LlamaRMSNorm(8)
    with pytest.raises(RuntimeError), elementwise.by_hand(model):
        with elementwise.by_hand(model):
            ours = modeling_llama.apply_rotary_pos_emb
        assert modeling_llama.apply_rotary_pos_emb is ours is not own
        raise RuntimeError
    assert modeling_llama.apply_rotary_pos_emb is own


def test_a_class_whose_file_is_not_known_is_passed_over():
    model = type("Model", (nn.Module,), {"__module__": "written.in.no.file"})()
    with elementwise.by_hand(model):
        assert not isinstance(modeling_llama.apply_rotary_pos_emb, partial)
