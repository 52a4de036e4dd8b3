"""The keys and values of some prompts and of the responses being written to them, and the attention over both.

A prompt's keys and values are stored once for its k responses: their queries meet them side by side, in one product.
What is weighed is `[prompt, response so far]` under one softmax, so that the two parts need no merging.
"""

from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

QUERIES = 256  # rows of an explicit score matrix at a time, where a prompt's attention cannot be fused


@dataclass(frozen=True)
class Law:
    """How one attention layer turns queries and keys into weights."""

    scale: float = 1.0
    window: int | None = None  # a token sees this many tokens, itself included
    softcap: float | None = None
    sinks: Float[Tensor, " heads"] | None = None  # one more logit per head, which takes weight and gives nothing


class _Layer:
    """What one layer holds: of the responses keys and values `[2, group, head, place, room, D]`, of the prompts once
    per group."""

    def __init__(self, own: Tensor, prompt_keys: Tensor | None, prompt_values: Tensor | None):
        self.own = own
        self.prompt_keys = prompt_keys  # [group x head, D, S], laid out for few queries against many keys
        self.prompt_values = prompt_values  # [group x head, S, D]
        self.keys, self.values = own.flatten(1, 3)  # [group x head x place, room, D]


class Cache:
    """First every prompt is `read`, packed into one row; then each `step` takes one token of every response.

    Rows are responses that still speak, ordered by prompt. Neighbouring prompts of similar length lie in one bucket,
    as wide as its longest: a short prompt beside a long one is not paid for at its length.
    """

    def __init__(
        self, lengths: list[int], k: int, room: int, device: torch.device, *, share: bool, worth: int | None = None
    ):
        """`lengths` of the prompts; `share` their keys among their k responses, or repeat them; `worth` opening a
        bucket, in tokens less of padding (None: never)."""
        self.lengths, self.k, self.reading = lengths, k, True
        begins = [0]
        for i in range(len(lengths)):
            longest, rest = max(lengths[begins[-1] : i + 1]), lengths[i:]
            if worth is not None and 2 * max(rest) <= longest and len(rest) * (longest - max(rest)) > worth:
                begins.append(i)
        parts = [lengths[a:b] for a, b in pairwise([*begins, len(lengths)])]
        self.buckets = [Bucket(part, k, room, device, share=share) for part in parts]
        self._sizes = [sum(part) for part in parts]  # tokens, then rows, of each bucket

    @property
    def laws(self) -> dict[int, Law]:
        """What each layer that came by asked for."""
        return self.buckets[0].laws

    def read(self, layer: int, q: Tensor, k: Tensor, v: Tensor, law: Law) -> Tensor:
        """What the prompts' tokens hear: q `[N, query heads, D]`, k and v `[N, heads, D]` to `[N, query heads, D]`. q
        may be that of each prompt's last token."""
        asking = self._sizes if len(q) == len(k) else [len(bucket.lengths) for bucket in self.buckets]
        parts = zip(self.buckets, q.split(asking), k.split(self._sizes), v.split(self._sizes), strict=True)
        return _joined([bucket.read(layer, q, k, v, law) for bucket, q, k, v in parts])

    def step(self, layer: int, qkv: Tensor, law: Law) -> Tensor:
        """What one token of each row hears: the heads of q, k and v side by side `[rows, all heads, D]` to
        `[rows, query heads, D]`."""
        parts = zip(self.buckets, qkv.split(self._sizes), strict=True)
        return _joined([bucket.step(layer, part, law) for bucket, part in parts])

    def start(self) -> None:
        """The prompts are read; from here each call is one token of every row."""
        self.reading = False
        for bucket in self.buckets:
            bucket.start()
        self._sizes = [bucket.rows for bucket in self.buckets]

    def next(self) -> None:
        """The token is through all layers."""
        for bucket in self.buckets:
            bucket.at += 1

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Forget all rows but these, of which there is at least one; `rows` is in order."""
        ends = list(accumulate(self._sizes))
        mine = [
            rows[(rows >= end - size) & (rows < end)] - (end - size)
            for end, size in zip(ends, self._sizes, strict=True)
        ]
        for bucket, kept in zip(self.buckets, mine, strict=True):
            if 0 < len(kept) < bucket.rows:
                bucket.keep(kept)
        self.buckets = [bucket for bucket, kept in zip(self.buckets, mine, strict=True) if len(kept)]
        self._sizes = [bucket.rows for bucket in self.buckets]


class Bucket:
    """Rows live in `groups x width` slots; `width` is k until rows are dropped. Prompts are right-aligned, so that a
    sliding window cuts all of them at the same place."""

    def __init__(self, lengths: list[int], k: int, room: int, device: torch.device, *, share: bool):
        S, n = max(lengths), len(lengths)
        self.lengths, self.k, self.S, self.room, self.device, self.share = lengths, k, S, room, device, share
        self.groups, self.width = (n, k) if share else (n * k, 1)
        self.layers: dict[int, _Layer] = {}
        self.laws: dict[int, Law] = {}
        self.at = 0
        self.ragged = min(lengths) < S
        self._hidden: Tensor | None = None  # [.., 1, S], minus infinity where the prompt of a group (head) has no token
        self._slots: Tensor | None = None  # row in each slot; None: all slots are taken, in order
        self._home = torch.arange(n * k, device=device)  # slot of each row
        self._runs = self._by_length()
        place = [torch.arange(i * S + S - length, (i + 1) * S) for i, length in enumerate(lengths)]
        self._place = torch.cat(place).to(device)  # of each packed token among [prompt, S]

    @property
    def rows(self) -> int:
        return len(self._home)

    def step(self, layer: int, qkv: Tensor, law: Law) -> Tensor:
        return self._together(layer, qkv, law) if self.share else self._alone(layer, qkv, law)

    def start(self) -> None:
        self.at = 0 if self.share else self.S

    def keep(self, rows: Tensor) -> None:
        home = self._home[rows]
        group, inverse, counts = torch.unique_consecutive(home // self.width, return_inverse=True, return_counts=True)
        width = int(counts.max())
        rank = torch.arange(len(rows), device=self.device) - (counts.cumsum(0) - counts)[inverse]
        self._home = inverse * width + rank
        source = (group * self.width)[:, None].repeat(1, width)  # a slot left free repeats its group's first
        source.view(-1)[self._home] = home
        heads = next(iter(self.layers.values())).own.shape[2]
        ahead = torch.arange(heads, device=self.device)[:, None] * self.width  # of a group's heads
        begin = source // self.width * (heads * self.width) + source % self.width
        places = (begin[:, None] + ahead).flatten()  # of [group x head x place]
        for i, layer in self.layers.items():
            own = layer.own.new_empty(2, len(places), *layer.own.shape[4:])
            for new, x in zip(own[:, :, : self.at], (layer.keys, layer.values), strict=True):
                torch.index_select(x[:, : self.at], 0, places, out=new)
            prompts = [self._of(group, x) for x in (layer.prompt_keys, layer.prompt_values)]
            self.layers[i] = _Layer(own.unflatten(1, (len(group), heads, width)), *prompts)
        self._hidden = self._of(group, self._hidden)
        self.groups, self.width = len(group), width
        self._slots = None
        if len(rows) < len(group) * width:
            self._slots = torch.zeros(len(group) * width, dtype=torch.long, device=self.device)
            self._slots[self._home] = torch.arange(len(rows), device=self.device)

    def _of(self, group: Tensor, x: Tensor | None) -> Tensor | None:
        if x is None or len(group) == self.groups:
            return x
        return x.unflatten(0, (self.groups, -1)).index_select(0, group).flatten(0, 1)

    def _by_length(self) -> list[tuple[int, Tensor | slice, Tensor | slice]]:
        # prompts of one length go through one call, and none is padded; a prompt alone need not be gathered
        if not self.ragged:
            return [(self.S, slice(None), slice(None))]
        found, starts = dict[int, list[int]](), [0, *accumulate(self.lengths)]
        for i, length in enumerate(self.lengths):
            found.setdefault(length, []).append(i)
        runs: list[tuple[int, Tensor | slice, Tensor | slice]] = []
        for length, who in sorted(found.items()):
            if len(who) == 1:
                begin = starts[who[0]]
                runs.append((length, slice(begin, begin + length), slice(who[0], who[0] + 1)))
            else:
                at = torch.cat([torch.arange(starts[i], starts[i] + length) for i in who])
                runs.append((length, at.to(self.device), torch.tensor(who, device=self.device)))
        return runs

    def read(self, layer: int, q: Tensor, k: Tensor, v: Tensor, law: Law) -> Tensor:
        """As `Cache.read`. Prompts of one length go through one call."""
        self.laws[layer] = law
        self._store(layer, k, v)
        out = q.new_empty(*q.shape[:2], v.shape[-1])
        for length, at, who in self._runs:
            keys, values = (x[at].unflatten(0, (-1, length)).transpose(1, 2) for x in (k, v))  # [prompts, H, length, D]
            asks = at if len(q) == len(k) else who
            queries = q[asks].unflatten(0, (len(keys), -1)).transpose(1, 2)
            out[asks] = _causal(queries, keys, values, law).transpose(1, 2).flatten(0, 1)
        return out

    def _store(self, layer: int, k: Tensor, v: Tensor) -> None:
        n, S, heads = len(self.lengths), self.S, k.shape[1]
        if self.ragged:
            k, v = (x.new_zeros(n * S, *x.shape[1:]).index_copy_(0, self._place, x) for x in (k, v))
        k, v = (x.view(n, S, heads, -1) for x in (k, v))
        if self.ragged and self._hidden is None:
            mask = torch.ones(n * S, dtype=torch.bool, device=self.device).index_fill_(0, self._place, False)
            hidden = k.new_zeros(n, 1, S).masked_fill_(mask.view(n, 1, S), float("-inf"))
            self._hidden = hidden.repeat_interleave(heads if self.share else self.k, 0)
        if self.share:
            self.layers[layer] = _Layer(
                k.new_empty(2, n, heads, self.k, self.room, k.shape[-1]),
                k.permute(0, 2, 3, 1).reshape(n * heads, -1, S),
                v.transpose(1, 2).reshape(n * heads, S, -1),
            )
            return
        # every response is a group of its own, with its prompt in front
        own = k.new_empty(2, n, self.k, heads, S + self.room, k.shape[-1])
        for new, x in zip(own, (k, v), strict=True):
            new[:, :, :, :S] = x.transpose(1, 2)[:, None]
        self.layers[layer] = _Layer(own.view(2, n * self.k, heads, 1, S + self.room, -1), None, None)

    def _alone(self, layer: int, qkv: Tensor, law: Law) -> Tensor:
        """Every row has its prompt in front of what it said."""
        held, at, n = self.layers[layer], self.at, len(qkv)
        heads, D = held.own.shape[2], qkv.shape[-1]
        q, kv = qkv.tensor_split((-2 * heads,), 1)
        held.own.select(4, at).select(3, 0).copy_(kv.unflatten(1, (2, heads)).transpose(0, 1))
        first = 0 if law.window is None else max(0, at + 1 - law.window)
        q = q.reshape(n * heads, -1, D)  # the query heads of one key side by side
        if law.scale != 1.0:
            q = q * law.scale
        scores = torch.bmm(q, held.keys[:, first : at + 1].mT)  # [row x head, query heads, seen]
        if law.softcap is not None:
            scores.div_(law.softcap).tanh_().mul_(law.softcap)
        if self._hidden is not None and first < self.S:
            scores.view(n, -1, scores.shape[-1])[:, :, : self.S - first].add_(self._hidden[:, :, first:])
        weights = _weights(scores, law.sinks, heads, 1)
        return torch.bmm(weights, held.values[:, first : at + 1]).view(n, -1, D)

    def _together(self, layer: int, qkv: Tensor, law: Law) -> Tensor:
        """The rows of a group look at their prompt in one product, and each at what it said."""
        held, n, w, at = self.layers[layer], self.groups, self.width, self.at
        assert held.prompt_keys is not None and held.prompt_values is not None
        heads, D = held.own.shape[2], qkv.shape[-1]
        if self._slots is not None:
            qkv = qkv.index_select(0, self._slots)
        q, kv = qkv.view(n, w, -1, D).tensor_split((-2 * heads,), 2)
        held.own.select(4, at).copy_(kv.unflatten(2, (2, heads)).permute(2, 0, 3, 1, 4))
        first, skip = 0, 0  # where the window begins among the response's keys, and the prompt's
        if law.window is not None:
            first, skip = max(0, at + 1 - law.window), min(self.S, max(0, self.S + at + 1 - law.window))
        q = q.unflatten(2, (heads, -1)).transpose(1, 2)  # [group, head, place, query heads, D]
        many = q.shape[3]
        q = q.reshape(n * heads * w, many, D)
        if law.scale != 1.0:
            q = q * law.scale
        prompt, grouped = held.prompt_keys[:, :, skip:], q.view(n * heads, w * many, -1)
        if self._hidden is None or law.softcap is not None:
            seen = torch.bmm(grouped, prompt)
        else:  # hidden in the same go
            seen = torch.baddbmm(self._hidden[:, :, skip:], grouped, prompt)
        said = torch.bmm(q, held.keys[:, first : at + 1].mT).view(n * heads, w * many, -1)
        scores, ahead = torch.cat([seen, said], -1), self.S - skip
        if law.softcap is not None:
            scores.div_(law.softcap).tanh_().mul_(law.softcap)
            if self._hidden is not None:
                scores[:, :, :ahead].add_(self._hidden[:, :, skip:])
        weights = _weights(scores, law.sinks, heads, w)
        mine = weights[:, :, ahead:].unflatten(1, (w, many)).flatten(0, 1)
        out = torch.bmm(mine, held.values[:, first : at + 1]).view(n * heads, w * many, -1)
        out.baddbmm_(weights[:, :, :ahead], held.prompt_values[:, skip:])
        out = out.view(n, heads, w, many, -1).transpose(1, 2).reshape(n * w, heads * many, -1)
        return out if self._slots is None else out.index_select(0, self._home)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _weights(
    scores: Float[Tensor, "nH wG L"], sinks: Tensor | None, heads: int, width: int
) -> Float[Tensor, "nH wG L"]:
    """The softmax over what is seen, in at least float32."""
    if sinks is not None:
        sink = sinks.to(scores.dtype).view(1, heads, 1, -1, 1)
        scores = scores.view(-1, heads, width, sink.shape[3], scores.shape[-1])
        scores = torch.cat([scores, sink.expand(*scores.shape[:-1], 1)], -1).flatten(0, 1).flatten(1, 2)
    weights = scores.softmax(-1)  # torch's kernels add up bfloat16 in float32
    return weights if sinks is None else weights[..., :-1].contiguous()


def _causal(
    q: Float[Tensor, "n Hq Q D"], k: Float[Tensor, "n H S D"], v: Float[Tensor, "n H S E"], law: Law
) -> Float[Tensor, "n Hq Q E"]:
    """Attention within prompts of one length; of their last tokens where these alone ask."""
    Q, S, many = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    if law.softcap is None and law.sinks is None:
        if (law.window is None or law.window >= S) and Q in (1, S):
            return F.scaled_dot_product_attention(q, k, v, is_causal=Q > 1, scale=law.scale, enable_gqa=many > 1)
        sees = torch.ones(S, S, dtype=torch.bool, device=q.device).tril()[S - Q :]
        if law.window is not None:
            sees = sees.triu(S - Q + 1 - law.window)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=sees, scale=law.scale, enable_gqa=many > 1)
    q = (q * law.scale).unflatten(1, (-1, many))  # [n, H, G, S, D]
    parts = []
    for i in range(S - Q, S, QUERIES):
        part = q[:, :, :, i - S + Q : i - S + Q + QUERIES]
        end = i + part.shape[3]
        scores = part @ k[:, :, None, :end].mT  # [n, H, G, rows, end]
        if law.softcap is not None:
            scores = scores.div_(law.softcap).tanh_().mul_(law.softcap)
        back = torch.arange(i, end, device=q.device)[:, None] - torch.arange(end, device=q.device)
        unseen = (back < 0) if law.window is None else (back < 0) | (back >= law.window)
        scores = scores.masked_fill_(unseen, float("-inf"))
        if law.sinks is not None:
            sink = law.sinks.to(scores.dtype).view(1, -1, many, 1, 1).expand(*scores.shape[:-1], 1)
            scores = torch.cat([scores, sink], -1)
        parts.append(scores.softmax(-1)[..., :end] @ v[:, :, None, :end])
    return torch.cat(parts, 3).flatten(1, 2)
