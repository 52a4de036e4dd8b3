"""The output layer, a tile of tokens at a time: no `[tokens, vocabulary]` tensor beyond one tile is ever kept.

Two ways through it, both with hand-written gradients. `Head.__call__` gives log-probabilities to whoever asks; its
backward computes each tile's logits again (four matrix products a tile). `Head.apply` is given what turns a whole
prompt's log-probabilities into its loss, and forms the gradient while the tile is live (three). A head that is more
than one linear layer (LoRA on it, 4-bit weights) is called as it is, tile by tile, under checkpointing.

The log-sum-exp is at least float32, and so is the sum of the weight's gradient over tiles.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# A stretch of prompts [first, stop), their tokens' log-probabilities [n] and (where asked for) entropies [n]
# -> each prompt's loss [p] and its gradient with respect to both.
Applied = Callable[[int, int, Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor | None]]


@dataclass(frozen=True)
class Form:
    """What is done to the linear layer's output: scaled, capped, divided by the temperature, in this order."""

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    def of(self, z: Tensor) -> Tensor:
        """Logits of which the distribution is the softmax."""
        z = z * self.scale
        if self.softcap is not None:
            z = torch.tanh(z / self.softcap) * self.softcap
        return z / self.temperature


@dataclass(frozen=True)
class Head:
    module: nn.Module  # hidden states -> raw logits
    form: Form = Form()
    tile: int = 512  # tokens

    @property
    def fused(self) -> bool:
        """Is it one linear layer, so that its gradient can be written by hand?"""
        own = self.module
        hooks = own._forward_hooks or own._forward_pre_hooks or own._backward_hooks  # they would not be called
        return type(own) is nn.Linear and not hooks

    def __call__(
        self, h: Float[Tensor, "N D"], target: Int[Tensor, " N"], entropy: bool = False
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"] | None]:
        """log-probability of each target and, where asked for, the entropy of the distribution it was drawn from."""
        if not self.fused:
            return self._called(h, target, entropy)
        logp, spread = _Tokens.apply(h, self.module.weight, self.module.bias, target, self.form, self.tile, entropy)
        return logp, spread if entropy else None

    def apply(
        self,
        h: Float[Tensor, "N D"],
        target: Int[Tensor, " N"],
        counts: Sequence[int],
        weight: Float[Tensor, " P"],
        entropy: bool,
        applied: Applied,
    ) -> Float[Tensor, " P"]:
        """Each prompt's loss. The backward expects a gradient proportional to `weight`, as the loop's is, and then
        has only to scale what the forward left; for any other it computes the tiles again."""
        assert self.fused
        loss = _Groups.apply(
            h,
            self.module.weight,
            self.module.bias,
            target,
            self.form,
            self.tile,
            tuple(counts),
            weight,
            entropy,
            applied,
            torch.is_grad_enabled(),
        )
        assert isinstance(loss, Tensor)
        return loss

    def _called(self, h: Tensor, target: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
        def some(h: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
            logp = self.form.of(_wide(self.module(h))).log_softmax(-1)
            spread = -(logp.exp() * logp).sum(-1) if entropy else None
            return logp.gather(-1, target[:, None]).squeeze(-1), spread

        starts = range(0, max(len(h), 1), self.tile)
        tiles = [(h[i : i + self.tile], target[i : i + self.tile]) for i in starts]
        parts = [checkpoint(some, *tile, use_reentrant=False) for tile in tiles]
        return torch.cat([p for p, _ in parts]), torch.cat([s for _, s in parts]) if entropy else None


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def computed_in(x: Tensor) -> torch.dtype:
    """The dtype in which a matrix product of `x` runs here: its own, or autocast's."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


@dataclass
class _Live:
    """A tile between its forward and its backward: exp(logits - max), their sums, the slope of the soft-cap."""

    exps: Tensor  # [n, V]
    total: Tensor  # [n, 1]
    slope: Tensor | None  # [n, V]


class _Tiles:
    """The products with one weight, and the gradients gathered so far."""

    def __init__(self, h: Tensor, weight: Tensor, bias: Tensor | None, form: Form, tile: int, dtype: torch.dtype):
        self.h, self.weight, self.form = h.to(dtype), weight.to(dtype), form
        self.bias = None if bias is None else _wide(bias)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.room = h.new_empty(min(tile, len(h)), len(weight), dtype=wide)
        self.grad_h: Tensor | None = None
        self.grad_weight: Tensor | None = None
        self.grad_bias: Tensor | None = None

    def collect(self, h: bool, weight: bool, bias: bool) -> None:
        """Make room for the gradients that are wanted."""
        wide = self.room.dtype
        self.grad_h = torch.zeros_like(self.h) if h else None
        self.grad_weight = torch.zeros_like(self.weight, dtype=wide) if weight else None
        self.grad_bias = torch.zeros_like(self.bias, dtype=wide) if bias and self.bias is not None else None

    def soft(self, at: slice, target: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None, _Live]:
        """log-probability and entropy of a tile's tokens; the tile stays live until the next."""
        h, form = self.h[at], self.form
        z = self.room[: len(h)]
        if h.dtype == z.dtype:
            torch.mm(h, self.weight.t(), out=z)
        else:
            z.copy_(h @ self.weight.t())
        if self.bias is not None:
            z += self.bias
        slope = None
        if form.softcap is not None:
            z.mul_(form.scale / form.softcap).tanh_()
            slope = 1 - z.square()
            z.mul_(form.softcap / form.temperature)
        elif form.scale != form.temperature:
            z.mul_(form.scale / form.temperature)
        top = z.amax(1, keepdim=True)
        said = z.gather(1, target[at, None])
        z.sub_(top).exp_()
        total = z.sum(1, keepdim=True)
        logp = (said - top - total.log()).squeeze(1)
        spread = (total.log() - torch.xlogy(z, z).sum(1, keepdim=True) / total).squeeze(1) if entropy else None
        return logp, spread, _Live(z, total, slope)

    def pull(
        self, live: _Live, at: slice, target: Tensor, by_logp: Tensor, by_entropy: Tensor | None, spread: Tensor | None
    ) -> None:
        """Add a live tile's gradients, given those of its log-probabilities and entropies. The tile is used up."""
        z, total = live.exps, live.total
        if by_entropy is not None and spread is not None:
            # d entropy / d z_j = -p_j (log p_j + entropy)
            slant = torch.xlogy(z, z).add_(z * (spread[:, None] - total.log())).mul_(-by_entropy[:, None] / total)
            z.mul_(-by_logp[:, None] / total).add_(slant)
        else:
            z.mul_(-by_logp[:, None] / total)  # d log p_y / d z_j = [j = y] - p_j
        z.scatter_add_(1, target[at, None], by_logp[:, None].to(z.dtype))
        if live.slope is not None:
            z.mul_(live.slope)
        if self.form.scale != self.form.temperature:
            z.mul_(self.form.scale / self.form.temperature)
        back = z.to(self.h.dtype)
        if self.grad_h is not None:
            torch.mm(back, self.weight, out=self.grad_h[at])
        if self.grad_weight is not None and self.grad_weight.dtype == back.dtype:
            self.grad_weight.addmm_(back.t(), self.h[at])
        elif self.grad_weight is not None:
            self.grad_weight += back.t() @ self.h[at]
        if self.grad_bias is not None:
            self.grad_bias += z.sum(0)


def _spans(start: int, stop: int, tile: int) -> Iterator[slice]:
    for i in range(start, stop, tile):
        yield slice(i, min(i + tile, stop))


class _Tokens(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, form: Form, tile: int, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        dtype = computed_in(h)
        tiles = _Tiles(h, weight, bias, form, tile, dtype)
        logp = tiles.room.new_empty(len(h))
        spread = tiles.room.new_empty(len(h) if entropy else 0)
        for at in _spans(0, len(h), tile):
            logp[at], s, _ = tiles.soft(at, target, entropy)
            if s is not None:
                spread[at] = s
        ctx.save_for_backward(h, weight, bias, target)
        ctx.form, ctx.tile, ctx.entropy, ctx.dtype = form, tile, entropy, dtype
        return logp, spread

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        by_logp, by_entropy = grads
        h, weight, bias, target = ctx.saved_tensors
        tiles = _Tiles(h, weight, bias, ctx.form, ctx.tile, ctx.dtype)
        tiles.collect(*ctx.needs_input_grad[:3])
        _again(tiles, slice(0, len(h)), target, by_logp, by_entropy if ctx.entropy else None, ctx.tile)
        return *_as(tiles, h, weight, bias), None, None, None, None


class _Groups(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        form: Form,
        tile: int,
        counts: tuple[int, ...],
        share: Tensor,
        entropy: bool,
        applied: Applied,
        learns: bool,
    ) -> Tensor:
        dtype = computed_in(h)
        collected = ctx.needs_input_grad[:3] if learns else (False, False, False)
        tiles = _Tiles(h, weight, bias, form, tile, dtype)
        tiles.collect(*collected)
        each = torch.tensor(counts, device=h.device)  # [P]
        slopes, slants, losses = tiles.room.new_zeros(len(h)), tiles.room.new_zeros(len(h) if entropy else 0), []
        place = 0
        for first, stop in _whole(counts, tile):
            n = sum(counts[first:stop])
            at, place = slice(place, place + n), place + n
            live = None
            if n <= tile:
                logp, spread, live = tiles.soft(at, target, entropy)
            else:
                parts = [tiles.soft(some, target, entropy)[:2] for some in _spans(at.start, at.stop, tile)]
                logp = torch.cat([p for p, _ in parts])
                spread = torch.cat([s for _, s in parts if s is not None]) if entropy else None
            loss, by_logp, by_entropy = applied(first, stop, logp, spread)
            losses.append(loss)
            slopes[at] = by_logp
            if by_entropy is not None:
                slants[at] = by_entropy
            if not any(collected):
                continue
            worth = share[first:stop].to(slopes.dtype).repeat_interleave(each[first:stop], output_size=n)  # [n]
            by_logp, by_entropy = slopes[at] * worth, slants[at] * worth if entropy else None
            if live is not None:
                tiles.pull(live, at, target, by_logp, by_entropy, spread)
            else:
                _again(tiles, at, target, by_logp, by_entropy, tile)
        ctx.save_for_backward(h, weight, bias, target, share, each, slopes, slants, *_as(tiles, h, weight, bias))
        ctx.form, ctx.tile, ctx.entropy, ctx.dtype = form, tile, entropy, dtype
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        h, weight, bias, target, share, each, slopes, slants, *ready = ctx.saved_tensors
        factor = _proportion(grad, share)
        if factor is not None:
            done = [g if g is None or factor == 1.0 else g * factor for g in ready]
        else:
            tiles = _Tiles(h, weight, bias, ctx.form, ctx.tile, ctx.dtype)
            tiles.collect(*ctx.needs_input_grad[:3])
            worth = grad.to(slopes.dtype).repeat_interleave(each, output_size=len(h))
            slant = slants * worth if ctx.entropy else None
            _again(tiles, slice(0, len(h)), target, slopes * worth, slant, ctx.tile)
            done = _as(tiles, h, weight, bias)
        return *done, *([None] * 8)


def _again(tiles: _Tiles, whole: slice, target: Tensor, by_logp: Tensor, by_entropy: Tensor | None, tile: int) -> None:
    """Compute tiles once more, for their gradients only. `by_*` begin where `whole` does."""
    for at in _spans(whole.start, whole.stop, tile):
        own = slice(at.start - whole.start, at.stop - whole.start)
        _, spread, live = tiles.soft(at, target, by_entropy is not None)
        tiles.pull(live, at, target, by_logp[own], None if by_entropy is None else by_entropy[own], spread)


def _whole(counts: Sequence[int], tile: int) -> Iterator[tuple[int, int]]:
    """Stretches of whole prompts with at most a tile of tokens each, or of one prompt with more."""
    first, full = 0, 0
    for p, n in enumerate(counts):
        if p > first and full + n > tile:
            yield first, p
            first, full = p, 0
        full += n
    if counts:
        yield first, len(counts)


def _as(tiles: _Tiles, h: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor | None, ...]:
    pairs = ((tiles.grad_h, h), (tiles.grad_weight, weight), (tiles.grad_bias, bias))
    return tuple(None if g is None or x is None else g.to(x.dtype) for g, x in pairs)


def _proportion(grad: Tensor, share: Tensor) -> float | None:
    """The number by which `grad` is `share`, or None where there is no such number."""
    share, grad = share.double(), grad.double()
    norm = share.square().sum()
    factor = (grad * share).sum() / torch.where(norm > 0, norm, torch.ones_like(norm))
    near = (grad - factor * share).abs().max() <= 1e-6 * grad.abs().max()
    return float(factor) if bool(near) else None
