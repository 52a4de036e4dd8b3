"""Attention over a packed row: each response sees its prompt and itself, and nothing else is computed.

On a CPU every segment is a few calls of torch's flash kernel within one autograd function, so that no gradient of a
slice is padded with zeros to the length of the row; short responses to one prompt share a call. A soft-cap or
attention sinks, which that kernel does not know, are computed by hand, a call at a time. On CUDA FlexAttention skips
the blocks that the mask leaves empty. Transformers reaches all of them through its attention interface.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from modeseek.policies import elementwise, last
from modeseek.policies.flex import flex
from modeseek.policies.layout import Layout
from modeseek.policies.pack import Segment

NAME = "modeseek_packed"
SPARED = 8192  # scores between tokens that do not see each other, computed all the same, which another call would cost

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class _Call:
    """Some responses side by side: positions `queries` of the row look at `prompt` and each response at itself."""

    queries: slice
    prompt: slice | None  # None: one row, which begins with its prompt
    responses: tuple[int, ...]  # tokens of each

    def bias(self, layout: Layout, window: int | None, like: Tensor) -> Tensor:
        return layout.bias(0 if self.prompt is None else _length(self.prompt), self.responses, window, like)


def _calls(segments: tuple[Segment, ...], *, read: bool = False) -> Iterator[_Call]:
    # The first response is a plain causal row with its prompt in front; the others look back at a copy of it. Where
    # only states that predict a token are `read`, it begins with the prompt's last token and looks back at the rest.
    for s in segments:
        first = s.start + s.prompt + (s.responses[0] if s.responses else 0)
        after = s.start + s.prompt - 1
        begin = after if read and 2 * (first - after) < first - s.start else s.start  # a causal row is half as dear
        yield _Call(slice(begin, first), slice(s.start, begin) if begin > s.start else None, (first - begin,))
        for some in _stacked(s.responses[1:]):
            yield _Call(slice(first, first + sum(some)), slice(s.start, s.start + s.prompt), some)
            first += sum(some)


def _stacked(responses: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Neighbours while what they do not see of each other costs less than another call."""
    some: tuple[int, ...] = ()
    for n in responses:
        if some and 2 * sum(some) * n > SPARED:
            yield some
            some = ()
        some = (*some, n)
    if some:
        yield some


def _length(at: slice) -> int:
    return at.stop - at.start


def _seen(x: Tensor, call: _Call) -> Tensor:
    """Keys or values that a call's queries look at."""
    own = x[:, :, call.queries]
    return own if call.prompt is None else torch.cat([x[:, :, call.prompt], own], 2)


def _rule(layout: Layout, call: _Call, window: int | None, like: Tensor) -> tuple[bool, Tensor | None]:
    """How the flash kernel is told what a call's queries may see: by being causal, or by a bias."""
    if call.prompt is None and (window is None or window >= _length(call.queries)):
        return True, None
    return False, call.bias(layout, window, like)


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float, window: int | None, read: bool
    ) -> Tensor:
        out, kept = _like(q, zero=read), []
        for call in _calls(layout.segments, read=read):
            causal, bias = _rule(layout, call, window, q)
            y, total = _flash(
                q[:, :, call.queries], _seen(k, call), _seen(v, call), 0.0, causal, attn_mask=bias, scale=scale
            )
            out[:, :, call.queries] = y
            kept.append(total)
        ctx.save_for_backward(q, k, v, out, *kept)
        ctx.layout, ctx.scale, ctx.window, ctx.read = layout, scale, window, read
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        q, k, v, out, *kept = ctx.saved_tensors
        gq, gk, gv = (_like(x, zero=ctx.read) for x in (q, k, v))
        for call, total in zip(_calls(ctx.layout.segments, read=ctx.read), kept, strict=True):
            causal, bias = _rule(ctx.layout, call, ctx.window, q)
            own = call.queries
            dq, dk, dv = _flash_backward(
                grad[:, :, own],
                q[:, :, own],
                _seen(k, call),
                _seen(v, call),
                out[:, :, own],
                total,
                0.0,
                causal,
                attn_mask=bias,
                scale=ctx.scale,
            )
            gq[:, :, own] = dq
            for whole, part in ((gk, dk), (gv, dv)):
                if call.prompt is None:
                    whole[:, :, own] = part
                else:  # the prompt's gradient is a sum over its responses
                    ahead = _length(call.prompt)
                    whole[:, :, call.prompt] += part[:, :, :ahead]
                    whole[:, :, own] = part[:, :, ahead:]
        return gq, gk, gv, None, None, None, None


def _like(x: Tensor, *, zero: bool) -> Tensor:
    """Room for [1, H, L, D] laid out as [1, L, H, D], which is how the model goes on to read it."""
    room = torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
    return room.zero_() if zero else room


def _by_hand(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    many = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(many, 1), v.repeat_interleave(many, 1)
    parts = []
    for call in _calls(layout.segments):
        keys, values = _seen(k, call), _seen(v, call)
        scores = q[:, :, call.queries] @ keys.mT * scale  # [1, H, queries, keys]
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = scores + call.bias(layout, window, scores)
        scores = scores if scores.dtype == torch.float64 else scores.float()
        if sinks is not None:  # one more logit a head, which takes weight and gives nothing
            sink = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
            weights = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
        else:
            weights = scores.softmax(-1)
        parts.append(weights.to(values.dtype) @ values)
    return torch.cat(parts, 2)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    packed: Layout | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in place of its own attention: [1, H, L, D] in, [1, L, H, D] out."""
    assert packed is not None and attention_mask is None, "a packed row was not announced"
    unknown = [n for n, x in others.items() if isinstance(x, Tensor) and n not in ("position_ids", "cache_position")]
    if unknown:
        raise ValueError(f"its attention reads {', '.join(unknown)}, which a packed row does not know")
    if dropout:
        raise ValueError(f"attention_dropout: {dropout}; a packed row has none: set it to 0")
    device = query.device.type
    if torch.is_autocast_enabled(device) and query.dtype != torch.float64:
        query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
    packed.windows.append(sliding_window)
    window = None if sliding_window is None or sliding_window >= packed.longest else sliding_window
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    if query.is_cuda and s_aux is None:
        out = flex(query, key, value, packed, scale, window, softcap)
    elif softcap is None and s_aux is None and device == "cpu":
        read = packed.last is not None and packed.last == getattr(module, "layer_idx", None)
        out = _Flash.apply(query, key, value, packed, scale, window, read)
    else:
        out = _by_hand(query, key, value, packed, scale, window, softcap, s_aux)
    assert isinstance(out, Tensor)
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, attend)


@contextlib.contextmanager
def packed_attention(model: nn.Module, read: Tensor | None = None) -> Iterator[None]:
    """Within, the model's attention layers are ours; a checkpointed layer recomputes with ours in the backward too.
    `read` are the tokens whose last state is read, where those are not all: see `last`."""
    layers = [m for m in model.modules() if "_gradient_checkpointing_func" in vars(m)]
    ways: list[Callable[..., Any]] = [m._gradient_checkpointing_func for m in layers]  # type: ignore[misc]
    with _routed(model, read):
        try:
            for layer, way in zip(layers, ways, strict=True):
                layer._gradient_checkpointing_func = partial(_checkpoint, model, read, way)  # type: ignore[assignment]
            yield
        finally:
            for layer, way in zip(layers, ways, strict=True):
                layer._gradient_checkpointing_func = way  # type: ignore[assignment]


def _checkpoint(model: nn.Module, read: Tensor | None, way: Callable[..., Any], run: Any, *inputs: Any) -> Any:
    again = False

    def routed(*given: Any) -> Any:
        nonlocal again
        if not again:  # the forward, which is routed already
            again = True
            return run(*given)
        with _routed(model, read):
            return run(*given)

    return way(routed, *inputs)


@contextlib.contextmanager
def _routed(model: nn.Module, read: Tensor | None) -> Iterator[None]:
    found: list[Any] = [getattr(m, "config", None) for m in model.modules()]
    configs = {id(c): c for c in found if hasattr(c, "_attn_implementation")}
    before = {i: c._attn_implementation for i, c in configs.items()}
    with last.read_only_at(model, read), elementwise.by_hand(model):
        try:
            for c in configs.values():
                c._attn_implementation = NAME
            yield
        finally:
            for i, c in configs.items():
                c._attn_implementation = before[i]
