"""The output layer, a tile of tokens at a time: no `[tokens, vocabulary]` tensor beyond a tile is ever kept.

Two ways through it, both with hand-written gradients. `Head.__call__` gives log-probabilities to whoever asks; its
backward computes each tile's logits again (four matrix products a tile). `Head.apply` is given what turns a whole
prompt's log-probabilities into its loss, and forms the gradient while the tile is live (three). A head that is more
than one linear layer (LoRA on it, 4-bit weights) is called as it is, tile by tile, under checkpointing.

Beside `logp` a tile may say `entropy` and, where there is a reference, `kl`: both exact, at each token. The
log-sum-exp is at least float32, and so is the sum of the weight's gradient over tiles.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Said = dict[str, Tensor]  # what is known of some tokens, by name: each [n]

# A stretch of prompts [first, stop) and what is said of their tokens
# -> each prompt's loss [p] and the gradients of those losses' sum, by the same names.
Applied = Callable[[int, int, Said], tuple[Tensor, Said]]

# Tokens' log-probabilities [n, V] under the reference.
Against = Callable[[slice], Tensor]


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
        self,
        h: Float[Tensor, "N D"],
        target: Int[Tensor, " N"],
        names: tuple[str, ...] = ("logp",),
        against: Against | None = None,
    ) -> Said:
        """What is asked for by name: `logp` of each target, `entropy` and `kl` of the distribution it is drawn from."""
        if not self.fused:
            return self._called(h, target, names, against)
        weight, bias = self.module.weight, self.module.bias
        said = _Tokens.apply(h, weight, bias, target, self.form, self.tile, names, against)
        return dict(zip(names, said, strict=True))

    def apply(
        self,
        h: Float[Tensor, "N D"],
        target: Int[Tensor, " N"],
        counts: Sequence[int],
        weight: Float[Tensor, " P"],
        names: tuple[str, ...],
        against: Against | None,
        applied: Applied,
    ) -> Float[Tensor, " P"]:
        """Each prompt's loss. The backward expects a gradient proportional to `weight`, as the loop's is, and then
        has only to scale what the forward left; for any other it computes the tiles again."""
        assert self.fused
        own, learns = (self.module.weight, self.module.bias), torch.is_grad_enabled()
        given = (target, self.form, self.tile, names, against, tuple(counts), weight, applied, learns)
        loss = _Groups.apply(h, *own, *given)
        assert isinstance(loss, Tensor)
        return loss

    def log_softmax(self, h: Float[Tensor, "n D"]) -> Float[Tensor, "n V"]:
        """Of one tile, plainly."""
        return self.form.of(_wide(self.module(h))).log_softmax(-1)

    def _called(self, h: Tensor, target: Tensor, names: tuple[str, ...], against: Against | None) -> Said:
        def some(at: slice) -> tuple[Tensor, ...]:
            every = self.log_softmax(h[at])
            say = {
                "logp": lambda: every.gather(-1, target[at, None]).squeeze(-1),
                "entropy": lambda: -(every.exp() * every).sum(-1),
                "kl": lambda: (every.exp() * (every - _known(against)(at))).sum(-1),
            }
            return tuple(say[name]() for name in names)

        spans = list(_spans(0, len(h), self.tile)) or [slice(0, 0)]
        parts: list[Any] = [checkpoint(some, at, use_reentrant=False) for at in spans]
        return {name: torch.cat(said) for name, said in zip(names, zip(*parts, strict=True), strict=True)}


def computed_in(x: Tensor) -> torch.dtype:
    """The dtype in which a matrix product of `x` runs here: its own, or autocast's."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _known(against: Against | None) -> Against:
    assert against is not None, "kl was asked for without a reference"
    return against


@dataclass
class _Live:
    """A tile between its forward and its backward."""

    exps: Tensor  # [n, V] exp(logits - their largest)
    total: Tensor  # [n, 1] their sums
    slope: Tensor | None  # [n, V] of the soft-cap
    gap: Tensor | None  # [n, V] log-probability less the reference's
    said: Said


class _Tiles:
    """One pass over the tiles of one weight: the products, and the gradients gathered so far."""

    def __init__(
        self,
        h: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        form: Form,
        tile: int,
        names: tuple[str, ...],
        against: Against | None,
        dtype: torch.dtype,
    ):
        self.h, self.weight, self.bias = h.to(dtype), weight.to(dtype), None if bias is None else _wide(bias)
        self.target, self.form, self.tile, self.names, self.against = target, form, tile, names, against
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.room = h.new_empty(min(tile, len(h)), len(weight), dtype=wide)
        self.kinds = tuple(None if x is None else x.dtype for x in (h, weight, bias))
        self.grad_h: Tensor | None = None
        self.grad_weight: Tensor | None = None
        self.grad_bias: Tensor | None = None

    def collect(self, h: bool, weight: bool, bias: bool) -> None:
        """Make room for the gradients that are wanted."""
        wide = self.room.dtype
        self.grad_h = torch.zeros_like(self.h) if h else None
        self.grad_weight = torch.zeros_like(self.weight, dtype=wide) if weight else None
        self.grad_bias = torch.zeros_like(self.bias, dtype=wide) if bias and self.bias is not None else None

    def collected(self) -> tuple[Tensor | None, ...]:
        """The gradients, in their tensors' own dtypes."""
        pairs = zip((self.grad_h, self.grad_weight, self.grad_bias), self.kinds, strict=True)
        return tuple(None if g is None or kind is None else g.to(kind) for g, kind in pairs)

    def soft(self, at: slice) -> _Live:
        """A tile's distributions and what is said of them. It stays live until the next."""
        h, form = self.h[at], self.form
        z = self.room[: len(h)]
        if h.dtype == z.dtype:
            torch.mm(h, self.weight.t(), out=z)
        else:
            z.copy_(h @ self.weight.t())
        if self.bias is not None:
            z += self.bias
        slope = gap = None
        if form.softcap is not None:
            z.mul_(form.scale / form.softcap).tanh_()
            slope = 1 - z.square()
            z.mul_(form.softcap / form.temperature)
        elif form.scale != form.temperature:
            z.mul_(form.scale / form.temperature)
        top = z.amax(1, keepdim=True)
        chosen = z.gather(1, self.target[at, None])
        z.sub_(top)
        if "kl" in self.names:
            gap = z - _known(self.against)(at)
        z.exp_()
        total = z.sum(1, keepdim=True)
        said = {"logp": (chosen - top - total.log()).squeeze(1)}
        if "entropy" in self.names:
            said["entropy"] = (total.log() - torch.xlogy(z, z).sum(1, keepdim=True) / total).squeeze(1)
        if gap is not None:
            gap -= total.log()
            said["kl"] = ((z * gap).sum(1, keepdim=True) / total).squeeze(1)
        return _Live(z, total, slope, gap, {name: said[name] for name in self.names})

    def pull(self, live: _Live, at: slice, by: Said) -> None:
        """Add a live tile's gradients, given those of what it said. The tile is used up."""
        z, total = live.exps, live.total
        part = {name: grad[:, None].to(z.dtype) for name, grad in by.items()}  # [n, 1]
        slant = None
        if "entropy" in part:  # d entropy / d z_j = -p_j (log p_j + entropy)
            spread = live.said["entropy"][:, None]
            slant = torch.xlogy(z, z).add_(z * (spread - total.log())).mul_(-part["entropy"] / total)
        if "kl" in part and live.gap is not None:  # d kl / d z_j = p_j (log p_j - log q_j - kl)
            drawn = live.gap.sub_(live.said["kl"][:, None]).mul_(z).mul_(part["kl"] / total)
            slant = drawn if slant is None else slant.add_(drawn)
        if "logp" in part:  # d log p_y / d z_j = [j = y] - p_j
            z.mul_(-part["logp"] / total)
            z.scatter_add_(1, self.target[at, None], part["logp"])
        else:
            z.zero_()
        if slant is not None:
            z += slant
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

    def say(self, whole: slice) -> Said:
        """What is said of any number of tokens."""
        parts = [self.soft(at).said for at in _spans(whole.start, whole.stop, self.tile)]
        empty = self.room.new_empty(0)
        return {name: torch.cat([empty, *(said[name] for said in parts)]) for name in self.names}

    def again(self, whole: slice, by: Said) -> None:
        """Compute tiles once more, for their gradients only. `by` begins where `whole` does."""
        for at in _spans(whole.start, whole.stop, self.tile):
            own = slice(at.start - whole.start, at.stop - whole.start)
            self.pull(self.soft(at), at, {name: grad[own] for name, grad in by.items()})


class _Tokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *given: Any) -> Any:
        given = (*given, computed_in(h))
        ctx.save_for_backward(h, weight, bias, target)
        ctx.given = given
        return tuple(_Tiles(h, weight, bias, target, *given).say(slice(0, len(h))).values())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tiles = _Tiles(*ctx.saved_tensors, *ctx.given)
        tiles.collect(*ctx.needs_input_grad[:3])
        tiles.again(slice(0, len(tiles.h)), dict(zip(tiles.names, grads, strict=True)))
        return *tiles.collected(), *([None] * len(ctx.given))


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
        names: tuple[str, ...],
        against: Against | None,
        counts: tuple[int, ...],
        share: Tensor,
        applied: Applied,
        learns: bool,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[:3] if learns else (False, False, False)
        given = (form, tile, names, against, computed_in(h))
        tiles = _Tiles(h, weight, bias, target, *given)
        tiles.collect(*wanted)
        each = torch.tensor(counts, device=h.device)  # [P]
        slopes = {name: tiles.room.new_zeros(len(h)) for name in names}  # of each prompt's own loss
        losses, place = [], 0
        for first, stop in _whole(counts, tile):
            n = sum(counts[first:stop])
            at, place = slice(place, place + n), place + n
            live = tiles.soft(at) if n <= tile else None
            loss, by = applied(first, stop, tiles.say(at) if live is None else live.said)
            losses.append(loss)
            worth = share[first:stop].to(tiles.room.dtype).repeat_interleave(each[first:stop], output_size=n)  # [n]
            for name, grad in by.items():
                slopes[name][at] = grad
            by = {name: grad * worth for name, grad in by.items()}
            if any(wanted) and live is not None:
                tiles.pull(live, at, by)
            elif any(wanted):
                tiles.again(at, by)
        ctx.save_for_backward(h, weight, bias, target, share, each, *slopes.values(), *tiles.collected())
        ctx.given = given
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        h, weight, bias, target, share, each, *rest = ctx.saved_tensors
        slopes, ready = rest[:-3], rest[-3:]
        factor = _proportion(grad, share)
        if factor is not None:
            done = [g if g is None or factor == 1.0 else g * factor for g in ready]
        else:
            tiles = _Tiles(h, weight, bias, target, *ctx.given)
            tiles.collect(*ctx.needs_input_grad[:3])
            worth = grad.to(tiles.room.dtype).repeat_interleave(each, output_size=len(h))
            tiles.again(slice(0, len(h)), {n: slope * worth for n, slope in zip(tiles.names, slopes, strict=True)})
            done = tiles.collected()
        return *done, *([None] * 9)


def _spans(start: int, stop: int, tile: int) -> Iterator[slice]:
    for i in range(start, stop, tile):
        yield slice(i, min(i + tile, stop))


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


def _proportion(grad: Tensor, share: Tensor) -> float | None:
    """The number by which `grad` is `share`, or None where there is no such number."""
    share, grad = share.double(), grad.double()
    norm = share.square().sum()
    factor = (grad * share).sum() / torch.where(norm > 0, norm, torch.ones_like(norm))
    near = (grad - factor * share).abs().max() <= 1e-6 * grad.abs().max()
    return float(factor) if bool(near) else None
