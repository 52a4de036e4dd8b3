"""Which two responses to a prompt become a pair: the stages that select by reward, and strategies that need none.

`d_optimal` takes the pairs whose differences span the most: greedily, each the one whose difference of features is
least explained by those taken before it (the largest d' A^-1 d, A the sum of d d' so far; Mukherjee et al. 2024,
https://arxiv.org/abs/2404.13895, choose comparisons by an optimal design). Features are hashed words and pairs of
words, so that any writer's text has them; a chunk begins anew.
"""

from __future__ import annotations

import itertools
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from modeseek.batch import Batch
from modeseek.build import stage_of
from modeseek.collect.labels import Sampled
from modeseek.config import StageSpec
from modeseek.data.records import text

BY_REWARD = {
    "best_worst": "the best against the worst by the reward",
    "best_second": "the best against the next that is worse",
    "best_sigma": "the best against the one nearest to two standard deviations below the mean",
    "best_random": "the best against a random other",
    "all_pairs": "every pair whose rewards differ",
    "uncertain": "the two whose rewards differ least, of those that differ",
}
WITHOUT = {
    "random": "two at random",
    "d_optimal": "the two whose difference is least like those chosen before",
}
DIMENSIONS, RIDGE = 128, 0.1
Places = list[list[tuple[int, int]]]  # for each prompt, the pairs of places in its group


def check(select: str, rewarded: bool, several: bool) -> None:
    """Refuse a strategy that is not there or has not what it needs, before anything is sampled."""
    if select not in BY_REWARD | WITHOUT:
        raise ValueError(f"select: {select!r}, expected one of {', '.join(BY_REWARD | WITHOUT)}")
    if select in BY_REWARD and not rewarded:
        raise ValueError(
            f"select: {select} reads a reward, and people give none; write proxy: REWARD, or select: random"
        )
    if not several:
        raise ValueError("num_generations: 1 of a single policy makes no pair; write 2 or more")


def by_reward(batch: Batch, select: str, seed: int) -> Places:
    """The pairs that a stage takes of groups with `reward`; `response[p, k, 0]` is a response's number."""
    if select == "uncertain":
        return [_closest(row, there) for row, there in zip(batch["reward"], batch.present, strict=True)]
    options = {"seed": seed % 2**63} if select == "best_random" else {}
    taken = stage_of(StageSpec(name=select, options=options), {})(batch)
    place = {int(batch.response[p, k, 0]): k for p, k in batch.present.nonzero().tolist()}
    found: Places = [[] for _ in range(len(batch))]
    for row, one, other in zip(
        taken["row"].tolist(), taken.response[:, 0, 0].tolist(), taken.response[:, 1, 0].tolist(), strict=True
    ):
        found[row].append((place[one], place[other]))
    return found


def without_reward(groups: Sequence[Sampled], select: str, seed: int) -> Places:
    """A pair of each group that has two different texts."""
    rng = np.random.default_rng(seed)
    inverse = np.eye(DIMENSIONS) / RIDGE
    found: Places = []
    for _, responses in groups:
        texts = [text(one.text) for one in responses]
        pairs = [(i, k) for i, k in itertools.combinations(range(len(texts)), 2) if texts[i] != texts[k]]
        if not pairs:
            found.append([])
        elif select == "random":
            found.append([pairs[rng.integers(len(pairs))]])
        else:
            points = np.stack([features(one) for one in texts])
            apart = np.stack([points[i] - points[k] for i, k in pairs])  # [pairs, D]
            best = int(np.einsum("nd,de,ne->n", apart, inverse, apart).argmax())
            inverse = updated(inverse, apart[best])
            found.append([pairs[best]])
    return found


def features(words: str) -> Float[np.ndarray, " D"]:
    """Signed hashes of the words and of the pairs of neighbours, of length one."""
    tokens = words.casefold().split()
    counts = Counter([*tokens, *map(" ".join, itertools.pairwise(tokens))])
    found = np.zeros(DIMENSIONS)
    for word, n in counts.items():
        code = zlib.crc32(word.encode("utf-8", "backslashreplace"))
        found[code % DIMENSIONS] += n if code & 2**31 else -n
    return found / max(float(np.linalg.norm(found)), 1e-12)


def updated(inverse: Float[np.ndarray, "D D"], d: Float[np.ndarray, " D"]) -> Float[np.ndarray, "D D"]:
    """The inverse of A + d d', from that of A (Sherman and Morrison)."""
    along = inverse @ d
    return inverse - np.outer(along, along) / (1 + d @ along)


def _closest(reward: torch.Tensor, there: torch.Tensor) -> list[tuple[int, int]]:
    said = reward.tolist()
    pairs = itertools.combinations([k for k in range(len(said)) if there[k]], 2)
    gaps = [(abs(said[i] - said[k]), i, k) for i, k in pairs if said[i] != said[k]]
    return [min(gaps)[1:]] if gaps else []
