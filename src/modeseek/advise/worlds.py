"""Random preference problems in which the truth is known: what the prior is fitted on and the advice is judged by.

A world is a log-linear policy over a finite table of responses, pi(a | x) proportional to exp(features(x, a) . theta),
a true reward that is partly linear in the features, pairs that another policy wrote and that the reward labels with
noise (Bradley-Terry, some labels flipped), and the proxy reward that the practitioner has. Worlds are stacked, so that
a method is trained in all of them at once. The responses to all prompts of a world stand in one row of M = X A places.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

Span = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """What worlds are drawn from; a span is drawn from uniformly, counts and paces on a log scale."""

    contexts: int = 1  # X
    actions: int = 120  # A, to each context
    width: int = 10  # d
    heavy_features: bool = False  # Student's t with 4 degrees of freedom instead of a normal
    sharpness: Span = (0.5, 2.5)  # sd of the reference's logits
    scale: Span = (1.0, 3.0)  # sd of the true reward over all responses
    alignment: Span = (-0.9, 0.9)  # cosine of the reward's and the reference's directions: where the peak is
    misspecification: Span = (0.0, 0.7)  # share of the reward's variance that no feature says
    curved: Span = (0.0, 0.0)  # share of what features say that is a product of two directions, not linear
    distance: Span = (0.0, 2.0)  # of the data's other writer from the reference, in sd of logits
    skew: Span = (-0.5, 1.0)  # cosine of what sets the other writer apart with the reward's direction
    others: Span = (0.0, 1.0)  # share of responses that the other writer wrote
    narrow: float = 0.3  # share of worlds whose data come from a third of the responses at most
    pairs: Span = (40, 1000)
    flips: Span = (0.0, 0.35)
    given: float = 0.5  # share of worlds with a reward model that came from elsewhere; else it is fitted on the pairs
    quality: Span = (0.0, 1.0)  # correlation of a given reward with the true one
    pace: Span = (0.02, 0.1)  # Adam's learning rate: how far the training budget goes
    hidden: Span = (0.0, 0.3)  # share of the variance of what the advisor sees of the features that is noise


FIRST = Ranges()
SECOND = Ranges(
    contexts=4,
    actions=36,
    width=14,
    heavy_features=True,
    sharpness=(0.3, 3.5),
    scale=(0.7, 4.0),
    alignment=(-1.0, 0.5),
    misspecification=(0.2, 0.9),
    distance=(0.5, 3.0),
    skew=(-1.0, 0.7),
    narrow=0.5,
    pairs=(25, 600),
    flips=(0.05, 0.42),
    given=0.5,
    quality=(-0.2, 0.9),
    pace=(0.01, 0.12),
    hidden=(0.1, 0.6),
)


# For reports alone: a reward that bends, more features than the advisor keeps of a language model, many prompts.
FOURTH = Ranges(
    contexts=6,
    actions=22,
    width=20,
    sharpness=(0.5, 3.0),
    scale=(0.8, 3.5),
    alignment=(-0.8, 0.8),
    misspecification=(0.0, 0.6),
    curved=(0.2, 0.8),
    distance=(0.0, 2.5),
    skew=(-0.8, 0.8),
    narrow=0.4,
    pairs=(30, 800),
    flips=(0.0, 0.4),
    quality=(-0.1, 0.9),
    pace=(0.02, 0.12),
    hidden=(0.0, 0.5),
)


def broad(seed: int) -> Ranges:
    """Ranges for one stack of worlds: wide spans, and a shape that is itself drawn, so that stacks are as unlike each
    other as the worlds of different generators. All have about 128 responses."""
    rng = torch.Generator().manual_seed(seed)
    pick = lambda choices: choices[int(torch.randint(len(choices), (1,), generator=rng))]
    contexts = pick((1, 2, 4, 8))
    return Ranges(
        contexts=contexts,
        actions=128 // contexts,
        width=pick((6, 8, 12, 16, 20)),
        heavy_features=pick((False, True)),
        sharpness=(0.3, 3.5),
        scale=(0.7, 4.0),
        alignment=(-1.0, 1.0),
        misspecification=(0.0, 0.9),
        distance=(0.0, 3.0),
        skew=(-1.0, 1.0),
        narrow=0.4,
        pairs=(25, 1000),
        flips=(0.0, 0.42),
        quality=(-0.2, 1.0),
        pace=(0.01, 0.12),
        hidden=(0.0, 0.6),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Worlds:
    """W worlds of M = X A responses each; every array is float64.

    A policy is what it adds to the reference's logits: weights [W, d] on the features, zero for the reference.
    """

    features: Float[Tensor, "W X A d"]
    seen: Float[Tensor, "W X A e"]  # of the features, what the advisor sees
    base: Float[Tensor, "W X A"]  # the reference's logits
    reward: Float[Tensor, "W M"]  # the truth
    proxy: Float[Tensor, "W M"]  # what the practitioner scores responses with: mean 0, sd 1
    given: Bool[Tensor, " W"]  # the proxy came from elsewhere: it was not fitted on the pairs
    pairs: Int[Tensor, "W N 2"]  # places, the preferred first; rows from `count` on repeat earlier ones
    count: Int[Tensor, " W"]  # pairs that there are
    pace: Float[Tensor, " W"]  # Adam's learning rate

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def contexts(self) -> int:
        """X, the prompts of each world."""
        return self.base.shape[1]

    def still(self) -> Float[Tensor, "W d"]:
        """The reference as weights: nothing added."""
        return self.features.new_zeros(len(self), self.features.shape[-1])

    def logp(self, theta: Float[Tensor, "W d"]) -> Float[Tensor, "W M"]:
        """log pi(a | x) of every response."""
        return (self.base + torch.einsum("wxad,wd->wxa", self.features, theta)).log_softmax(-1).flatten(1)

    def mass(self, theta: Float[Tensor, "W d"]) -> Float[Tensor, "W M"]:
        """How often each response is met when prompts are uniform: sums to one."""
        return self.logp(theta).exp() / self.contexts

    def moved(self, theta: Float[Tensor, "W C d"]) -> Float[Tensor, "W C M"]:
        """For each arm, how much more often than the reference it gives each response: sums to zero."""
        still = self.mass(self.still())
        return torch.stack([self.mass(arm) - still for arm in theta.unbind(1)], 1)

    def kl(self, theta: Float[Tensor, "W d"]) -> Float[Tensor, " W"]:
        """KL(pi || reference) in nats, a mean over prompts."""
        return (self.mass(theta) * (self.logp(theta) - self.logp(self.still()))).sum(-1)

    def take(self, index: Int[Tensor, " w"] | Bool[Tensor, " W"] | slice) -> Worlds:
        """Some of the worlds."""
        return Worlds(**{f.name: getattr(self, f.name)[index] for f in dataclasses.fields(self)})


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


def join(parts: Sequence[Worlds]) -> Worlds:
    """Several stacks of worlds of one shape as one."""
    return Worlds(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Worlds)})


def standard(x: Float[Tensor, "W M"]) -> Float[Tensor, "W M"]:
    """Mean 0 and sd 1 over each world's responses; a constant stays 0."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / centred.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-9)


def fit_linear(
    features: Float[Tensor, "W M d"],
    pairs: Int[Tensor, "W N 2"],
    count: Int[Tensor, " W"],
    ridge: float = 1.0,
    steps: int = 12,
) -> Float[Tensor, "W M"]:
    """Bradley-Terry on the pairs, linear in the features, with a ridge, by Newton's method: the reward of all."""
    W, _, d = features.shape
    pick = lambda k: features.gather(1, pairs[..., k, None].expand(-1, -1, d))
    difference = pick(0) - pick(1)  # [W, N, d]
    counts = (torch.arange(pairs.shape[1]) < count[:, None]).to(features.dtype)  # [W, N]
    w = features.new_zeros(W, d)
    eye = ridge * torch.eye(d, dtype=features.dtype)
    for _ in range(steps):
        p = torch.einsum("wnd,wd->wn", difference, w).sigmoid()
        slope = torch.einsum("wnd,wn->wd", difference, counts * (1 - p)) - ridge * w
        bend = torch.einsum("wnd,wn,wne->wde", difference, counts * p * (1 - p), difference) + eye
        w = w + torch.linalg.solve(bend, slope)
    return torch.einsum("wmd,wd->wm", features, w)


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
