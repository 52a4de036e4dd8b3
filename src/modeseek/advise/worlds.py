"""Preference problems in which the truth is known: what the prior is fitted on and the advice is judged by.

A world is a log-linear policy over a finite table of responses, pi(a | x) proportional to exp(features(x, a) . theta),
with a true reward, labelled pairs, and the proxy reward that the practitioner has. Worlds are stacked, so that a method
is trained in all of them at once. The responses to all prompts of a world stand in one row of M = X A places.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


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
