"""What a transformers model computes number by number, with its gradient written by hand: norms and rotations.

Transformers spells out a root-mean-square norm in seven operations and a rotation of queries or keys in five, whose
gradients autograd takes one by one. By hand they take half the time on a CPU or less.
"""

import contextlib
import sys
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

ROTATION = "apply_rotary_pos_emb"  # what transformers' models call it, each in its own module


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


class _Turn(torch.autograd.Function):
    """(a, b), the halves of each head, become (a cos_a - b sin_a, b cos_b + a sin_b)."""

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "B H N D"], cos: Float[Tensor, "B 1 N D"], sin: Float[Tensor, "B 1 N D"]
    ) -> Float[Tensor, "B H N D"]:
        ctx.save_for_backward(cos, sin)
        sin_a, sin_b = sin.chunk(2, -1)
        return _turned(x, cos, -sin_a, sin_b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        cos, sin = ctx.saved_tensors
        sin_a, sin_b = sin.chunk(2, -1)
        return _turned(grad, cos, sin_b, -sin_a), None, None


def _turned(x: Tensor, cos: Tensor, to_a: Tensor, to_b: Tensor) -> Tensor:
    """(a, b) as (a cos_a + b to_a, b cos_b + a to_b)."""
    out = x * cos
    (a, b), (out_a, out_b) = x.chunk(2, -1), out.chunk(2, -1)
    out_a.addcmul_(b, to_a)
    out_b.addcmul_(a, to_b)
    return out


@contextlib.contextmanager
def by_hand(model: nn.Module) -> Iterator[None]:
    """Within, the model's norms and rotations of that kind are these, where they compute in float32."""
    norms = [m for m in model.modules() if _is_rms(m)]
    files = {sys.modules.get(type(m).__module__) for m in model.modules()} - {None}
    rotations = {f: vars(f)[ROTATION] for f in files if _is_turn(vars(f).get(ROTATION))}
    try:
        for m in norms:
            m.forward = partial(_norm, m)
        for file, own in rotations.items():
            setattr(file, ROTATION, partial(_rotate, own))
        yield
    finally:
        for m in norms:
            vars(m).pop("forward", None)
        for file, own in rotations.items():
            setattr(file, ROTATION, own)


def _norm(module: nn.Module, x: Tensor) -> Tensor:
    weight: Any = module.weight
    if x.dtype == weight.dtype == torch.float32:
        out = _Rms.apply(x, weight, module.variance_epsilon)
        assert isinstance(out, Tensor)
        return out
    return type(module).forward(module, x)


def _rotate(own: Callable[..., Any], q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *others: Any, **named: Any) -> Any:
    plain = not others and not named and not cos.requires_grad and cos.shape == sin.shape and cos.ndim == 3
    if plain and all(x.dtype == torch.float32 and x.shape[-1] == cos.shape[-1] for x in (q, k, cos, sin)):
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return _Turn.apply(q, cos, sin), _Turn.apply(k, cos, sin)
    return own(q, k, cos, sin, *others, **named)


_found: dict[Hashable, bool] = {}  # whether a class of modules is this norm, or a function this rotation


def _is_rms(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    alone = len(module._parameters) == 1 and "forward" not in vars(module)
    if weight is None or weight.ndim != 1 or not alone or "variance_epsilon" not in vars(module):
        return False
    return _tried(type(module), _same_norm)


def _is_turn(rotation: Any) -> bool:
    return rotation is not None and not isinstance(rotation, partial) and _tried(rotation, _same_rotation)


def _tried(what: Any, same: Callable[[Any], bool]) -> bool:
    """Asked by trying it: another may look alike, and add one to its weight or rotate neighbours.

    In a thread of its own, where no mode of the caller's holds: a tensor may be faked, and autocast on."""
    if what not in _found:
        with ThreadPoolExecutor(1) as thread:
            _found[what] = thread.submit(_surely, same, what).result()
    return _found[what]


def _surely(same: Callable[[Any], bool], what: Any) -> bool:
    with torch.random.fork_rng(devices=()), torch.no_grad():
        try:
            return same(what)
        except Exception:  # whatever a foreign one wants, it is not this
            return False


def _same_norm(kind: type[nn.Module]) -> bool:
    made: Any = kind(8)
    x = torch.linspace(-1.0, 2.0, 16).view(2, 8)
    made.weight.copy_(torch.linspace(0.5, 1.5, 8))
    return torch.allclose(made(x), _Rms.apply(x, made.weight, made.variance_epsilon), rtol=1e-6, atol=0)


def _same_rotation(rotation: Callable[..., Any]) -> bool:
    q, k = torch.linspace(-1.0, 2.0, 48).view(1, 2, 3, 8), torch.linspace(1.0, -3.0, 24).view(1, 1, 3, 8)
    cos, sin = torch.linspace(0.2, 1.0, 24).view(1, 3, 8), torch.linspace(-1.0, 0.5, 24).view(1, 3, 8)
    own, ours = rotation(q, k, cos, sin), _rotate(rotation, q, k, cos, sin)
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(own, ours, strict=True))
