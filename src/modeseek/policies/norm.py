"""Root-mean-square norms with a gradient written by hand.

Transformers spells the norm out in seven operations, whose gradients autograd takes one by one: by hand
they take half the time on a CPU, and a small model's training step 5% less. The forward is the same operations.
"""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class _Rms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "... D"], weight: Float[Tensor, " D"], eps: float) -> Float[Tensor, "... D"]:
        shrink = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
        h = x * shrink
        ctx.save_for_backward(h, shrink, weight)
        return weight * h

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        h, shrink, weight = ctx.saved_tensors
        both = grad * h
        dweight = both.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        # what of the gradient only changes x's length; a matrix product would be autocast's
        along = (both * weight).mean(-1, keepdim=True)
        return (grad * weight).addcmul_(h, along, value=-1).mul_(shrink), dweight, None


@contextlib.contextmanager
def by_hand(model: nn.Module) -> Iterator[None]:
    """Within, the model's norms of that kind are these, where they compute in float32."""
    found = [m for m in model.modules() if _is_rms(m)]
    try:
        for m in found:
            m.forward = partial(_forward, m)
        yield
    finally:
        for m in found:
            vars(m).pop("forward", None)


def _forward(module: nn.Module, x: Tensor) -> Tensor:
    weight: Any = module.weight
    if x.dtype == weight.dtype == torch.float32:
        return _Rms.apply(x, weight, module.variance_epsilon)  # type: ignore[return-value]
    return type(module).forward(module, x)


_kinds: dict[type[nn.Module], bool] = {}  # whether a class of modules is this norm


def _is_rms(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    alone = len(module._parameters) == 1 and "forward" not in vars(module)
    if weight is None or weight.ndim != 1 or not alone or "variance_epsilon" not in vars(module):
        return False
    if type(module) not in _kinds:
        # in a thread of its own, where no mode of the caller's holds: a tensor may be faked, and autocast on
        with ThreadPoolExecutor(1) as thread:
            _kinds[type(module)] = thread.submit(_tried, type(module)).result()
    return _kinds[type(module)]


def _tried(kind: type[nn.Module]) -> bool:
    """Asked of the class by trying it: another may have the same fields, and add one to its weight."""
    with torch.random.fork_rng(devices=()):
        try:
            made: Any = kind(8)
            x = torch.linspace(-1.0, 2.0, 16).view(2, 8)
            with torch.no_grad():
                made.weight.copy_(torch.linspace(0.5, 1.5, 8))
                return torch.allclose(made(x), _Rms.apply(x, made.weight, made.variance_epsilon), rtol=1e-6, atol=0)
        except Exception:  # whatever a foreign class wants, it is not this norm
            return False
