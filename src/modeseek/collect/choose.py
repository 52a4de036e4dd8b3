"""Which two responses to a prompt become a pair: the stages that select by reward, and strategies that need none.

The designs believe that a response is worth theta' f, f its features and theta unknown, and name pairs before any label
is known. `d_optimal` takes the pairs whose differences span the most: greedily, each the one whose difference is least
explained by those taken before it (the largest d' S d, S the covariance of theta; Mukherjee et al. 2024,
https://arxiv.org/abs/2404.13895). `v_optimal` takes the one whose label lowers the most the variance of what the
chunk's responses are worth within their prompts: as in `advise.acquire`, but there labels are known that foresee
winners. Features are hashed words and pairs of words, which any writer's text has, or a model's hidden states; a chunk
begins anew.
"""

from __future__ import annotations

import itertools
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from modeseek.advise.acquire import SETTING
from modeseek.batch import Batch
from modeseek.build import stage_of
from modeseek.collect.labels import Sampled
from modeseek.collect.rows import Response
from modeseek.config import StageSpec
from modeseek.data.records import text

DESIGNS = ("d_optimal", "v_optimal")
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
    "v_optimal": "the two whose label says most of what the other responses are worth",
}
DIMENSIONS, RIDGE = 128, 0.1
# Fisher information of a label about a gap that may be either way: p'^2 / (p (1 - p)) at 0, p = f + (1 - 2 f) sigmoid
LABEL = (1 - 2 * SETTING.flips) ** 2 / 4
Points = Float[np.ndarray, "K D"]  # the features of one prompt's responses
Places = list[list[tuple[int, int]]]  # for each prompt, the pairs of places in its group


def check(select: str, rewarded: bool, several: bool, features: str = "words") -> None:
    """Refuse a strategy that is not there or has not what it needs, before anything is sampled."""
    if features != "words" and select not in DESIGNS:
        raise ValueError(
            f"features: {features}, but select: {select} reads none; leave it out, or {' or '.join(DESIGNS)}"
        )
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


def without_reward(groups: Sequence[Sampled], select: str, seed: int, points: Sequence[Points] | None = None) -> Places:
    """A pair of each group that has two different texts. `points` are the responses' features; unset: their words'."""
    offers = list[list[tuple[int, int]]]()
    for _, responses in groups:
        texts = [text(one.text) for one in responses]
        offers.append([(i, k) for i, k in itertools.combinations(range(len(texts)), 2) if texts[i] != texts[k]])
    if select == "random":
        rng = np.random.default_rng(seed)
        return [[pairs[rng.integers(len(pairs))]] if pairs else [] for pairs in offers]
    points = [words(responses) for _, responses in groups] if points is None else points
    return _designed(points, offers, select)


def _designed(points: Sequence[Points], offers: Places, select: str) -> Places:
    """Greedily one of each group's offers, the covariance of theta lowered by what each label will say."""
    width = max((x.shape[1] for x in points if len(x)), default=DIMENSIONS)
    covariance, target = np.eye(width) / RIDGE, within(points, width)
    found: Places = []
    for at, pairs in zip(points, offers, strict=True):
        if not pairs:
            found.append([])
            continue
        apart = np.stack([at[i] - at[k] for i, k in pairs])  # [pairs, D]
        effect = apart @ covariance
        variance = (effect * apart).sum(1)
        if select == "d_optimal":
            best, told = int(variance.argmax()), 1.0
        else:
            less = LABEL / (1 + LABEL * variance) * np.einsum("nd,de,ne->n", effect, target, effect)
            best, told = int(less.argmax()), LABEL
        covariance = lowered(covariance, apart[best], told)
        found.append([pairs[best]])
    return found


def lowered(covariance: Float[np.ndarray, "D D"], d: Float[np.ndarray, " D"], told: float) -> Float[np.ndarray, "D D"]:
    """The inverse of A + told d d', from that of A (Sherman and Morrison)."""
    along = covariance @ d
    return covariance - told * np.outer(along, along) / (1 + told * d @ along)


def within(points: Sequence[Points], width: int) -> Float[np.ndarray, "D D"]:
    """Mean over prompts of the features' covariance within each: the directions in which its responses differ."""
    total = np.zeros((width, width))
    for at in filter(len, points):
        centred = at - at.mean(0)
        total += centred.T @ centred / len(at)
    return total / max(len(points), 1)


def words(responses: Sequence[Response]) -> Points:
    """The features of texts."""
    return np.stack([features(text(one.text)) for one in responses]) if responses else np.zeros((0, DIMENSIONS))


def projected(states: Sequence[Float[np.ndarray, "K H"]]) -> list[Points]:
    """Hidden states as features: around their mean, on average of length one, and of as many dimensions as words have.

    A random projection keeps distances to about 1 / sqrt(D) (Johnson and Lindenstrauss).
    """
    every = np.concatenate(states).astype(np.float64)
    centre = every.mean(0) if len(every) else 0.0
    size = float(np.sqrt(np.square(every - centre).sum(1).mean())) if len(every) else 1.0
    H = every.shape[1]
    down = np.random.default_rng(0).standard_normal((H, DIMENSIONS)) / np.sqrt(DIMENSIONS)
    down = np.eye(H) if H <= DIMENSIONS else down
    return [(x - centre) / max(size, 1e-12) @ down for x in states]


def features(said: str) -> Float[np.ndarray, " D"]:
    """Signed hashes of the words and of the pairs of neighbours, of length one."""
    tokens = said.casefold().split()
    counts = Counter([*tokens, *map(" ".join, itertools.pairwise(tokens))])
    found = np.zeros(DIMENSIONS)
    for word, n in counts.items():
        code = zlib.crc32(word.encode("utf-8", "backslashreplace"))
        found[code % DIMENSIONS] += n if code & 2**31 else -n
    return found / max(float(np.linalg.norm(found)), 1e-12)


def _closest(reward: torch.Tensor, there: torch.Tensor) -> list[tuple[int, int]]:
    said = reward.tolist()
    pairs = itertools.combinations([k for k in range(len(said)) if there[k]], 2)
    gaps = [(abs(said[i] - said[k]), i, k) for i, k in pairs if said[i] != said[k]]
    return [min(gaps)[1:]] if gaps else []
