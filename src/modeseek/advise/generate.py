"""Random worlds, drawn from ranges.

The true reward is partly linear in the features. The reference or another policy wrote the pairs, and the reward labels
them with noise (Bradley-Terry, some labels flipped). The proxy was made elsewhere, or is fitted on the pairs.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from modeseek.advise.ranges import FIRST, Ranges, Span
from modeseek.advise.worlds import Worlds, fit_linear, standard


def generate(n: int, ranges: Ranges = FIRST, seed: int = 0) -> Worlds:
    """`n` worlds of these ranges; the same seed gives the same worlds."""
    rng = torch.Generator().manual_seed(seed)
    features, start, direction = _policies(n, ranges, rng)
    reward = _reward(features, direction, ranges, rng)
    pairs, count = _pairs(features, start, direction, reward, ranges, rng)
    given = torch.rand(n, generator=rng) < ranges.given
    hidden = _uniform(n, ranges.hidden, rng)[:, None, None, None]
    seen = (1 - hidden).sqrt() * features + hidden.sqrt() * _normal(tuple(features.shape), rng)
    fitted = fit_linear(seen.flatten(1, 2), pairs, count)
    proxy = torch.where(given[:, None], _elsewhere(reward, features, ranges, rng), fitted)
    return Worlds(
        features=features,
        seen=seen,
        base=torch.einsum("wxad,wd->wxa", features, start),
        reward=reward,
        proxy=standard(proxy),
        given=given,
        pairs=pairs,
        count=count,
        pace=_log_uniform(n, ranges.pace, rng),
    )


def _policies(n: int, ranges: Ranges, rng: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Features, the reference's weights, and the unit direction of the linear part of the reward."""
    X, A, d = ranges.contexts, ranges.actions, ranges.width
    features = _normal((n, X, A, d), rng)
    if ranges.heavy_features:
        chi = _normal((n, X, A, 4), rng).square().mean(-1, keepdim=True)
        features = features / chi.sqrt() / math.sqrt(2)  # Student's t has variance 2
    towards = _unit((n, d), rng)
    start = towards * _uniform(n, ranges.sharpness, rng)[:, None]
    cosine = _uniform(n, ranges.alignment, rng)[:, None]
    aside = _aside(towards, rng)
    return features, start, cosine * towards + (1 - cosine.square()).clamp(min=0).sqrt() * aside


def _reward(features: Tensor, direction: Tensor, ranges: Ranges, rng: Generator) -> Tensor:
    n = len(features)
    linear = standard(torch.einsum("wxad,wd->wxa", features, direction).flatten(1))
    share = _uniform(n, ranges.misspecification, rng)[:, None]
    rest = standard(_normal(tuple(linear.shape), rng))
    if ranges.curved[1] > 0:
        bend = _uniform(n, ranges.curved, rng)[:, None]
        linear = (1 - bend).sqrt() * linear + bend.sqrt() * _curve(features, rng)
    return _uniform(n, ranges.scale, rng)[:, None] * ((1 - share).sqrt() * linear + share.sqrt() * rest)


def _curve(features: Tensor, rng: Generator) -> Tensor:
    """The product of two random directions: what no linear reward can say of the features."""
    n, d = len(features), features.shape[-1]
    one, other = (torch.einsum("wxad,wd->wxa", features, _unit((n, d), rng)).flatten(1) for _ in range(2))
    return standard(one * other)


def _pairs(
    features: Tensor, start: Tensor, direction: Tensor, reward: Tensor, ranges: Ranges, rng: Generator
) -> tuple[Tensor, Tensor]:
    n, X, A, _ = features.shape
    cosine = _uniform(n, ranges.skew, rng)[:, None]
    apart = cosine * direction + (1 - cosine.square()).clamp(min=0).sqrt() * _aside(direction, rng)
    other = start + apart * _uniform(n, ranges.distance, rng)[:, None]
    writer = torch.einsum("wxad,wkd->wkxa", features, torch.stack([start, other], 1)).softmax(-1)
    narrow = torch.rand(n, generator=rng) < ranges.narrow
    seen = torch.rand(n, X, A, generator=rng) < 1 / 3
    seen[..., 0] = True  # never nothing at all
    writer = torch.where((narrow[:, None, None] & ~seen)[:, None], 0.0, writer)
    mixture = _uniform(n, ranges.others, rng)[:, None, None]
    table = (1 - mixture) * writer[:, 0] + mixture * writer[:, 1]  # [W, X, A]
    count = _log_uniform(n, ranges.pairs, rng).round().long()
    N = int(ranges.pairs[1])
    each = -(-N // X)
    drawn = torch.multinomial(table.flatten(0, 1), 2 * each, replacement=True, generator=rng)
    places = drawn.view(n, X, each, 2) + A * torch.arange(X)[:, None, None]
    places = places.transpose(1, 2).flatten(1, 2)[:, :N]  # contexts in turn
    first, second = (reward.gather(1, places[..., k]) for k in (0, 1))
    right = torch.rand(n, N, generator=rng, dtype=torch.float64) < (first - second).sigmoid()
    flipped = torch.rand(n, N, generator=rng) < _uniform(n, ranges.flips, rng)[:, None]
    pairs = torch.where((right ^ flipped)[..., None], places, places.flip(-1))
    again = torch.arange(N) % count[:, None]  # rows beyond the count repeat earlier ones
    return pairs.gather(1, again[..., None].expand(-1, -1, 2)), count


def _elsewhere(reward: Tensor, features: Tensor, ranges: Ranges, rng: Generator) -> Tensor:
    """A reward that somebody else made: right to a degree, and wrong in its own direction."""
    n, d = len(reward), features.shape[-1]
    wrong = torch.einsum("wxad,wd->wxa", features, _unit((n, d), rng)).flatten(1)
    wrong = standard(standard(wrong) + _normal(tuple(reward.shape), rng))
    right = _uniform(n, ranges.quality, rng)[:, None]
    return right * standard(reward) + (1 - right.square()).clamp(min=0).sqrt() * wrong


def _normal(shape: tuple[int, ...], rng: Generator) -> Tensor:
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def _unit(shape: tuple[int, ...], rng: Generator) -> Tensor:
    return torch.nn.functional.normalize(_normal(shape, rng), dim=-1)


def _aside(direction: Tensor, rng: Generator) -> Tensor:
    """A random unit direction at right angles to this one."""
    free = _normal(tuple(direction.shape), rng)
    free = free - (free * direction).sum(-1, keepdim=True) * direction
    return torch.nn.functional.normalize(free, dim=-1)


def _uniform(n: int, span: Span, rng: Generator) -> Tensor:
    low, high = span
    return low + (high - low) * torch.rand(n, generator=rng, dtype=torch.float64)


def _log_uniform(n: int, span: Span, rng: Generator) -> Tensor:
    return _uniform(n, (math.log(span[0]), math.log(span[1])), rng).exp()
