"""The keys and values of some prompts and of the responses being written to them, and the attention over both.

A prompt's keys and values are stored once for its k responses: their queries meet them side by side, in one product.
What is weighed is `[prompt, response so far]` under one softmax, so that the two parts need no merging.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

WORTH = 500_000  # bytes that sharing must spare each layer and step to pay for what it costs
QUERIES = 256  # rows of an explicit score matrix at a time, where a prompt's attention cannot be fused


@dataclass(frozen=True)
class Law:
    """How one attention layer turns queries and keys into weights."""

    scale: float = 1.0
    window: int | None = None  # a token sees this many tokens, itself included
    softcap: float | None = None
    sinks: Float[Tensor, " heads"] | None = None  # one more logit per head, which takes weight and gives nothing


@dataclass
class _Layer:
    keys: Tensor  # [group, head, place, room, D], what the responses said
    values: Tensor  # [group, head, place, room, D]
    prompt_keys: Tensor | None = None  # [group x head, D, S], laid out for few queries against many keys
    prompt_values: Tensor | None = None  # [group x head, S, D]


class Cache:
    """First every prompt is read, packed into one row; then each call takes one token of every response.

    Rows are responses that still speak, ordered by prompt. They live in `groups x width` slots; `width` is k until
    rows are dropped. Prompts are right-aligned, so that a sliding window cuts all of them at the same place.
    """

    def __init__(self, lengths: list[int], k: int, room: int, device: torch.device, *, share: bool | None = None):
        S, n = max(lengths), len(lengths)
        self.lengths, self.k, self.S, self.room, self.device = lengths, k, S, room, device
        self.share = share
        self.groups, self.width = n, k
        self.layers: dict[int, _Layer] = {}
        self.laws: dict[int, Law] = {}
        self.reading, self.at = True, 0
        self.ragged = min(lengths) < S
        self._hidden: Tensor | None = None  # [groups, 1, S], minus infinity where a prompt has no token
        self._slots: Tensor | None = None  # row in each slot; None: all slots are taken, in order
        self._home = torch.arange(n * k, device=device)  # slot of each row
        self._runs = self._by_length()
        place = [torch.arange(i * S + S - length, (i + 1) * S) for i, length in enumerate(lengths)]
        self._place = torch.cat(place).to(device)  # of each packed token among [prompt, S]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, law: Law) -> Tensor:
        """What the tokens hear: q `[N, query heads, D]`, k and v `[N, heads, D]` to `[N, query heads, D]`."""
        return self._read(layer, q, k, v, law) if self.reading else self._step(layer, q, k, v, law)

    def start(self) -> None:
        """The prompts are read; from here each call is one token of every row."""
        self.reading = False
        self.at = 0 if self.share else self.S

    def next(self) -> None:
        """The token is through all layers."""
        self.at += 1

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Forget all rows but these."""
        home = self._home[rows]
        group, inverse, counts = torch.unique_consecutive(home // self.width, return_inverse=True, return_counts=True)
        width = int(counts.max())
        rank = torch.arange(len(rows), device=self.device) - (counts.cumsum(0) - counts)[inverse]
        self._home = inverse * width + rank
        source = (group * self.width)[:, None].repeat(1, width)  # a slot left free repeats its group's first
        source.view(-1)[self._home] = home
        heads = torch.arange(next(iter(self.layers.values())).keys.shape[1], device=self.device)[:, None]
        at = ((source // self.width)[:, None], heads, (source % self.width)[:, None])
        for layer in self.layers.values():
            layer.keys, layer.values = (self._moved(x, at) for x in (layer.keys, layer.values))
            if layer.prompt_keys is not None and len(group) < self.groups:
                layer.prompt_keys = _groups(layer.prompt_keys, group, self.groups)
                layer.prompt_values = _groups(layer.prompt_values, group, self.groups)
        if self._hidden is not None:
            self._hidden = self._hidden[group]
        self.groups, self.width = len(group), width
        self._slots = None
        if len(rows) < len(group) * width:
            self._slots = torch.zeros(len(group) * width, dtype=torch.long, device=self.device)
            self._slots[self._home] = torch.arange(len(rows), device=self.device)

    def _moved(self, x: Tensor, at: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        part = x[:, :, :, : self.at][at]
        new = x.new_empty(*part.shape[:3], *x.shape[3:])
        new[:, :, :, : self.at] = part
        return new

    def _by_length(self) -> list[tuple[int, Tensor | slice]]:
        # prompts of one length go through one call, and none is padded
        if not self.ragged:
            return [(self.S, slice(None))]
        begin, found = 0, dict[int, list[Tensor]]()
        for length in self.lengths:
            found.setdefault(length, []).append(torch.arange(begin, begin + length))
            begin += length
        return [(length, torch.cat(at).to(self.device)) for length, at in sorted(found.items())]

    def _read(self, layer: int, q: Tensor, k: Tensor, v: Tensor, law: Law) -> Tensor:
        self.laws[layer] = law
        self._store(layer, k, v)
        out = q.new_empty(*q.shape[:2], v.shape[-1])
        for length, at in self._runs:
            own = [x[at].unflatten(0, (-1, length)).transpose(1, 2) for x in (q, k, v)]  # [prompts, heads, length, D]
            out[at] = _causal(own[0], own[1], own[2], law).transpose(1, 2).flatten(0, 1)
        return out

    def _store(self, layer: int, k: Tensor, v: Tensor) -> None:
        n, S, heads = len(self.lengths), self.S, k.shape[1]
        if self.share is None:
            spared = n * (self.k - 1) * S * heads * (k.shape[-1] + v.shape[-1]) * k.element_size()
            self.share = self.k > 1 and spared > WORTH
        if self.ragged:
            k, v = (x.new_zeros(n * S, *x.shape[1:]).index_copy_(0, self._place, x) for x in (k, v))
        k, v = (x.view(n, S, heads, -1) for x in (k, v))
        if self.ragged and self._hidden is None:
            mask = torch.ones(n * S, dtype=torch.bool, device=self.device).index_fill_(0, self._place, False)
            self._hidden = k.new_zeros(n, 1, S).masked_fill_(mask.view(n, 1, S), float("-inf"))
        if self.share:
            self.layers[layer] = _Layer(
                k.new_empty(n, heads, self.k, self.room, k.shape[-1]),
                v.new_empty(n, heads, self.k, self.room, v.shape[-1]),
                k.permute(0, 2, 3, 1).reshape(n * heads, -1, S),
                v.transpose(1, 2).reshape(n * heads, S, -1),
            )
            return
        # every response is a group of its own, with its prompt in front
        own = [x.new_empty(n, self.k, heads, S + self.room, x.shape[-1]) for x in (k, v)]
        for new, x in zip(own, (k, v), strict=True):
            new[:, :, :, :S] = x.transpose(1, 2)[:, None]
        self.layers[layer] = _Layer(*(x.view(n * self.k, heads, 1, S + self.room, -1) for x in own))
        if self.groups == n and self.k > 1:
            self.groups, self.width = n * self.k, 1
            self._hidden = None if self._hidden is None else self._hidden.repeat_interleave(self.k, 0)

    def _step(self, layer: int, q: Tensor, k: Tensor, v: Tensor, law: Law) -> Tensor:
        own, n, w, at, heads = self.layers[layer], self.groups, self.width, self.at, k.shape[1]
        if self._slots is not None:
            q, k, v = (x.index_select(0, self._slots) for x in (q, k, v))
        own.keys[:, :, :, at] = k.view(n, w, heads, -1).transpose(1, 2)
        own.values[:, :, :, at] = v.view(n, w, heads, -1).transpose(1, 2)
        q = q.view(n, w, heads, -1, q.shape[-1]).transpose(1, 2)  # [group, head, place, queries per head, D]
        many = q.shape[3]
        q = q.reshape(n * heads * w, many, -1)
        if law.scale != 1.0:
            q = q * law.scale
        first = 0 if law.window is None else max(0, at + 1 - law.window)
        keys = own.keys.view(n * heads * w, own.keys.shape[3], -1)[:, first : at + 1]
        scores = torch.bmm(q, keys.transpose(1, 2)).view(n * heads, w * many, -1)
        ahead, skip = 0, 0  # keys of the prompt that are seen, and those before the window
        if own.prompt_keys is not None:
            skip = 0 if law.window is None else min(self.S, max(0, self.S + at + 1 - law.window))
            ahead = self.S - skip
            if ahead:
                seen = torch.bmm(q.view(n * heads, w * many, -1), own.prompt_keys[:, :, skip:])
                scores = torch.cat([seen, scores], -1)
        elif first < self.S:
            skip, ahead = first, self.S - first
        if law.softcap is not None:
            scores = scores.div_(law.softcap).tanh_().mul_(law.softcap)
        if self._hidden is not None and ahead:
            scores.view(n, -1, scores.shape[-1])[:, :, :ahead] += self._hidden[:, :, skip:]
        weights = _weights(scores.view(n, heads, w, many, -1), law.sinks).view_as(scores)
        values = own.values.view(n * heads * w, own.values.shape[3], -1)[:, first : at + 1]
        if own.prompt_values is None or not ahead:
            out = torch.bmm(weights.view(n * heads * w, many, -1), values)
        else:
            mine = weights[:, :, ahead:].unflatten(1, (w, many)).flatten(0, 1)
            out = torch.bmm(mine, values).view(n * heads, w * many, -1)
            out.baddbmm_(weights[:, :, :ahead], own.prompt_values[:, skip:])
        out = out.view(n, heads, w, many, -1).transpose(1, 2).reshape(n * w, heads * many, -1)
        return out if self._slots is None else out.index_select(0, self._home)


def _groups(x: Tensor | None, group: Tensor, groups: int) -> Tensor:
    assert x is not None
    return x.unflatten(0, (groups, -1))[group].flatten(0, 1)


def _weights(scores: Float[Tensor, "n H w G L"], sinks: Tensor | None) -> Float[Tensor, "n H w G L"]:
    """The softmax over what is seen, in at least float32."""
    wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
    if sinks is None:
        return scores.softmax(-1, dtype=wide).to(scores.dtype)
    sink = sinks.view(1, scores.shape[1], 1, -1, 1).expand(*scores.shape[:-1], 1)
    weights = torch.cat([scores, sink.to(scores.dtype)], -1).softmax(-1, dtype=wide)
    return weights[..., :-1].to(scores.dtype).contiguous()


def _causal(
    q: Float[Tensor, "n Hq S D"], k: Float[Tensor, "n H S D"], v: Float[Tensor, "n H S E"], law: Law
) -> Float[Tensor, "n Hq S E"]:
    """Attention within prompts of one length."""
    S, many = q.shape[2], q.shape[1] // k.shape[1]
    if law.softcap is None and law.sinks is None:
        if law.window is None or law.window >= S:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=law.scale, enable_gqa=many > 1)
        sees = torch.ones(S, S, dtype=torch.bool, device=q.device).tril().triu(1 - law.window)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=sees, scale=law.scale, enable_gqa=many > 1)
    q = (q * law.scale).unflatten(1, (-1, many))  # [n, H, G, S, D]
    parts = []
    for i in range(0, S, QUERIES):
        part = q[:, :, :, i : i + QUERIES]
        end = i + part.shape[3]
        scores = part @ k[:, :, None, :end].mT  # [n, H, G, rows, end]
        if law.softcap is not None:
            scores = scores.div_(law.softcap).tanh_().mul_(law.softcap)
        back = torch.arange(i, end, device=q.device)[:, None] - torch.arange(end, device=q.device)
        unseen = (back < 0) if law.window is None else (back < 0) | (back >= law.window)
        scores = scores.masked_fill_(unseen, float("-inf"))
        weights = _weights(scores.transpose(2, 3), law.sinks).transpose(2, 3)
        parts.append(weights @ v[:, :, None, :end])
    return torch.cat(parts, 3).flatten(1, 2)
