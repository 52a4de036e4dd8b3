"""FlexAttention over a packed row: the path on CUDA, which no one has run there yet.

What it is told is a block mask: which blocks of queries by keys are empty (skipped), which are full (no rule is
asked), and a rule for the rest. Blocks are found from the stretches of the row, so no mask of the packed length exists.
On a CPU torch's reference implementation obeys the rule alone, without a backward; the blocks are tested by
themselves.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from modeseek.policies.layout import Layout

BLOCK = 128  # tokens: FlexAttention's own

_Cut = tuple[int, int, int, bool]


def flex(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """Compiled on a GPU; elsewhere its reference implementation, for tests."""
    cap = lambda score, b, h, i, j: torch.tanh(score / softcap) * softcap  # type: ignore[operator]
    run = _compiled() if q.is_cuda else flex_attention
    out = run(
        q,
        k,
        v,
        score_mod=None if softcap is None else cap,
        block_mask=block_mask(layout, window),
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(out, Tensor)
    return out


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)


def block_mask(layout: Layout, window: int | None) -> BlockMask:
    """The layout's rule, made once for all layers with this window."""
    return layout.once(("blocks", window), lambda: _made(layout, window))


def _made(layout: Layout, window: int | None) -> BlockMask:
    device, at = layout.positions.device, layout.positions
    number, branch, _, tokens = (torch.tensor(x) for x in zip(*layout.stretches(), strict=True))
    owner, of = (x.repeat_interleave(tokens).to(device) for x in (number, branch))

    # FlexAttention traces these two and counts their parameters: plain lambdas, which no type checker wraps.
    shared = lambda b, h, q, k: (owner[q] == owner[k]) & ((of[k] == 0) | (of[k] == of[q])) & (k <= q)
    near = lambda b, h, q, k: shared(b, h, q, k) & (at[q] - at[k] < window)  # type: ignore[operator]
    some, every = blocks(layout, window)
    return BlockMask.from_kv_blocks(
        *_listed(some & ~every, device),
        *_listed(every, device),
        BLOCK_SIZE=BLOCK,
        mask_mod=shared if window is None else near,
        seq_lengths=(len(at), len(at)),
    )


def _listed(there: Bool[Tensor, "n n"], device: torch.device) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and their numbers in front of all others'."""
    count, order = there.sum(1), torch.argsort(there.int(), dim=1, descending=True, stable=True)
    return tuple(x.to(torch.int32)[None, None].to(device) for x in (count, order))  # type: ignore[return-value]


def blocks(layout: Layout, window: int | None) -> tuple[Bool[Tensor, "n n"], Bool[Tensor, "n n"]]:
    """Of the blocks [queries, keys]: in which some query sees some key, and in which every one sees every other.

    Plain numbers: a stretch touches few blocks, and a tensor operation for each would keep the device waiting.
    """
    n = -(-len(layout.positions) // BLOCK)
    some, every = [[False] * n for _ in range(n)], [[False] * n for _ in range(n)]
    prompt, ahead = list[_Cut](), 0
    for _, branch, begin, tokens in layout.stretches():
        if branch == 0:
            own, ahead = _cut(begin, tokens, 0), tokens
            prompt, seen = own, own
        else:  # its positions continue the prompt's
            own = _cut(begin, tokens, ahead)
            seen = own + prompt
        for q, first_q, last_q, whole_q in own:
            for k, first_k, last_k, whole_k in seen:
                least, most = first_q - last_k, last_q - first_k  # how far back a key lies
                if most >= 0 and (window is None or least < window):
                    some[q][k] = True
                    every[q][k] |= whole_q and whole_k and least >= 0 and (window is None or most < window)
    return torch.tensor(some), torch.tensor(every)


def _cut(begin: int, tokens: int, position: int) -> list[_Cut]:
    """The blocks that a stretch touches: which, the positions of its first and last token there, and whether it covers
    the block."""
    found, by = [], position - begin
    for at in range(begin // BLOCK, -(-(begin + tokens) // BLOCK)):
        first, last = max(begin, at * BLOCK), min(begin + tokens, at * BLOCK + BLOCK) - 1
        found.append((at, first + by, last + by, last - first == BLOCK - 1))
    return found
