"""Candidates measured against each other: labels go where they decide between the leader and those that may be best.

Each label is one reading of one response. Who may be best is drawn from the belief (top-two Thompson sampling, Russo
2016, https://arxiv.org/abs/1602.08448); the response is the one whose reading lowers the variance of those differences
most, as in Bayesian quadrature, and what the judge says of it tells of every candidate that would give it or one like
it. With a judge that reads a whole candidate: `race_whole`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from modeseek.advise.belief import Belief

DRAWS = 64  # of all gains at once

Judge = Callable[[Int[Tensor, "W n"]], Float[Tensor, "W n"]]  # places to readings


def schedule(labels: int) -> list[int]:
    """How many labels are bought between two looks at the belief: few at first."""
    sizes, spent = [], 0
    while spent < labels:
        size = min(5 if spent < 50 else 10 if spent < 200 else 30, labels - spent)
        sizes.append(size)
        spent += size
    return sizes


def race(
    held: Belief,
    moved: Float[Tensor, "W C M"],
    judge: Judge,
    noise: float,
    sizes: Sequence[int],
    rng: Generator,
) -> Iterator[tuple[int, Belief]]:
    """The belief after each batch of labels, and how many have been bought."""
    spent = 0
    for size in sizes:
        place = contested(held, moved, noise, size, rng)
        held = held.told(place, judge(place), noise)
        spent += size
        yield spent, held


def contested(
    held: Belief,
    moved: Float[Tensor, "W C M"],
    noise: float,
    n: int,
    rng: Generator,
    *,
    offers: Float[Tensor, "W m M"] | None = None,
    unread: Bool[Tensor, "W m"] | None = None,
) -> Int[Tensor, "W n"]:
    """`n` responses for the judge, or numbers of `offers`, which are weighted sums of worths that it may read; where
    `unread` is given, only those, and each once.

    One after another, the one whose reading takes most off the variance of how much better than the leader those are
    that may be best. What a Gaussian's variance becomes does not wait for the readings.
    """
    mean, covariance = held.of(moved)
    leader, second = mean.topk(2, -1).indices.split(1, -1)  # [W, 1]
    may = torch.cat([_sampled(mean, covariance, DRAWS, rng).argmax(-1), second], 1)  # [W, S]
    pick = lambda at: moved.gather(1, at[..., None].expand(-1, -1, moved.shape[2]))
    effect = (pick(may) - pick(leader)) @ held.covariance  # [W, S, M]
    among = held.covariance
    if offers is not None:
        effect, among = effect @ offers.mT, offers @ among @ offers.mT
    chosen = []
    for _ in range(n):
        total = among.diagonal(dim1=1, dim2=2) + noise**2  # [W, m]
        less = effect.square().sum(1) / total
        at = (less if unread is None else less.masked_fill(~unread, -1.0)).argmax(1, keepdim=True)  # [W, 1]
        row = among.gather(1, at[..., None].expand(-1, -1, among.shape[2]))  # [W, 1, m]
        share = row / total.gather(1, at)[..., None]
        effect = effect - effect.gather(2, at[..., None].expand(-1, effect.shape[1], -1)) * share
        among = among - row.mT @ share
        unread = None if unread is None else unread.scatter(1, at, False)
        chosen.append(at)
    return torch.cat(chosen, 1)


def race_whole(
    mean: Float[Tensor, "W C"],
    covariance: Float[Tensor, "W C C"],
    judge: Judge,
    noise: float,
    labels: int,
    rng: Generator,
) -> Iterator[tuple[int, Float[Tensor, "W C"], Float[Tensor, "W C C"]]]:
    """As `race`, for a judge that reads one candidate's gain at a time, whatever the response."""
    for spent in range(1, labels + 1):
        first, second = _sampled(mean, covariance, 1, rng)[:, 0].topk(2, -1).indices.unbind(-1)
        arm = _less_known(covariance, first, second)
        row = covariance.gather(1, arm[..., None].expand(-1, -1, mean.shape[1]))[:, 0]  # [W, C]
        total = row.gather(1, arm) + noise**2
        off = judge(arm) - mean.gather(1, arm)
        mean = mean + row * off / total
        covariance = covariance - row[:, :, None] * row[:, None] / total[..., None]
        yield spent, mean, covariance


def halve(gain: Float[Tensor, "W C"], noise: float, labels: int, rng: Generator) -> Int[Tensor, " W"]:
    """Successive halving without a belief (Karnin et al. 2013): the arm whose readings have the best mean at last.

    `gain` is what a reading is worth on average. Each round shares its part of the labels among the arms that are left.
    """
    W, C = gain.shape
    total, count = torch.zeros_like(gain), torch.zeros_like(gain)
    left = torch.arange(C).expand(W, C)
    rounds = max(1, (C - 1).bit_length())
    spent = 0
    for r in range(rounds):
        part = (labels - spent) // (rounds - r)
        each = torch.full((left.shape[1],), part // left.shape[1])
        each[: part % left.shape[1]] += 1
        order = torch.rand(left.shape, generator=rng).argsort(1)
        left = left.gather(1, order)  # who gets the odd label is chance
        reading = gain.gather(1, left) * each + noise * each.double().sqrt() * _normal(left.shape, rng)
        total.scatter_add_(1, left, reading)
        count.scatter_add_(1, left, each.double().expand(left.shape))
        spent += part
        score = (total / count.clamp(min=1)).masked_fill(count == 0, -torch.inf).gather(1, left)
        left = left.gather(1, score.argsort(1, descending=True)[:, : max(1, left.shape[1] // 2)])
    return left[:, 0]


def _less_known(covariance: Tensor, first: Tensor, second: Tensor) -> Int[Tensor, "W 1"]:
    variance = covariance.diagonal(dim1=1, dim2=2)
    more = variance.gather(1, first[:, None]) >= variance.gather(1, second[:, None])
    return torch.where(more, first[:, None], second[:, None])


def _sampled(mean: Tensor, covariance: Tensor, n: int, rng: Generator) -> Float[Tensor, "W n C"]:
    """Draws of all gains at once."""
    scale = covariance.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-9)[:, None, None]
    root = torch.linalg.cholesky(covariance + 1e-6 * scale * torch.eye(mean.shape[1], dtype=mean.dtype))
    return mean[:, None] + _normal((len(mean), n, mean.shape[1]), rng) @ root.mT


def _normal(shape: Sequence[int], rng: Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=rng, dtype=torch.float64)
