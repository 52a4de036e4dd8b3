"""Two policies' answers compared by a judge: pair by pair, in both orders, ties as halves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from modeseek.batch import Batch
from modeseek.rewards import AnyReward, Comparison, Decoder, Ensemble, Judge, Prompts
from modeseek.rewards.text import Reply, replies


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Our share of the win `[P, K]`: 1, 0, or 0.5 for a tie, an unclear answer, or one that the order changed."""

    wins: Float[Tensor, "P K"]
    counts: Counter[str]  # the judge's: asked, cached, retried, unclear, order_dependent, pairs, ties


def judged(
    ours: Sequence[Batch],
    theirs: Sequence[Batch],
    comparison: Comparison,
    decoder: Decoder,
    prompts: Prompts | None = None,
    their_decoder: Decoder | None = None,
) -> Judged:
    """The k-th answer of ours meets the k-th of theirs to the same prompt: two requests for each such pair.

    The answers are as `answer` gives them; `their_decoder` reads theirs where they are of another vocabulary. Pairs
    that the judge has seen come from its cache and cost nothing.
    """
    a, b = (_rows(ours, decoder, prompts), _rows(theirs, their_decoder or decoder, prompts))
    if [len(group) for group in a] != [len(group) for group in b]:
        raise ValueError("judged: found another number of answers to a prompt on the two sides, expected as many")
    for one, other in zip(a, b, strict=True):
        if one and one[0].prompt != other[0].prompt:
            raise ValueError("judged: found answers to different prompts, expected the same in the same order")
    pairs = [pair for one, other in zip(a, b, strict=True) for pair in zip(one, other, strict=True)]
    found = torch.tensor(comparison.compare(pairs), dtype=torch.float64)
    return Judged(wins=found.view(len(a), -1), counts=comparison.counts)


def with_wins(ours: Sequence[Batch], theirs: Sequence[Batch], found: Judged) -> tuple[list[Batch], list[Batch]]:
    """The answers with their share of the win as `reward`: what `compare` reads, where no number is at hand."""
    sizes = [len(batch) for batch in ours]
    parts = zip(ours, theirs, found.wins.float().split(sizes), strict=True)
    filled = [(a.fill(reward=wins), b.fill(reward=1 - wins)) for a, b, wins in parts]
    return [a for a, _ in filled], [b for _, b in filled]


def measure(config: AnyReward, key: str) -> AnyReward:
    """A reward that can tell policies apart. An ensemble's judge would compare each with its own samples only."""
    if isinstance(config, Ensemble) and any(isinstance(one, Judge) for one in config.members):
        raise ValueError(f"{key}: an ensemble with a judge gives no number across policies; write the judge alone")
    return config


def _rows(batches: Sequence[Batch], decoder: Decoder, prompts: Prompts | None) -> list[list[Reply]]:
    found = [group for batch in batches for group in replies(batch, decoder, prompts)]
    return [[one for one in group if one is not None] for group in found]
