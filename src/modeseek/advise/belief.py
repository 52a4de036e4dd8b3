"""What is believed about the worth of every response: a Gaussian, changed by pairs, by a given reward and by a judge.

A Gaussian process over the M responses at hand (Rasmussen & Williams 2006, chapters 2 and 3): rewards that are linear
in the features, plus a part of each response's own that no feature says (the misspecification). Pairs enter by
Bradley-Terry with a share of flipped labels, by the variational Gaussian (Opper & Archambeau 2009): Laplace's
approximation sits at the mode, which for rewards of this size lies a quarter below the mean. A reward that was not
fitted on these pairs enters as the prior's mean, as far as the pairs bear it out. How large, how linear, how noisy and
how trusted is not known, so a few settings are weighed by how well they foresee the pairs (the variational bound) and
mixed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

OFFSET = 9.0  # variance of what all rewards have in common: pairs do not say it, a judge does
ROUNDS = 7  # of the fixed point
NODES, WEIGHTS = (torch.tensor(x) for x in np.polynomial.hermite_e.hermegauss(5))
WEIGHTS = WEIGHTS / WEIGHTS.sum()


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One hypothesis about where the labels came from."""

    scale: float  # sd of the reward over responses, in the unit in which a gap of 1 is preferred 73% of the time
    own: float  # share of its variance that no feature says
    flips: float  # share of labels that are flipped
    trust: float  # correlation of the given reward with the true one


# Half of all combinations, those whose places sum to an even number: each two factors still meet at all their values.
GRID: tuple[Setting, ...] = tuple(
    Setting(scale=s, own=m, flips=e, trust=t)
    for (i, s), (j, m), (k, e), (n, t) in itertools.product(
        enumerate((1.2, 2.4, 4.2)), enumerate((0.1, 0.45, 0.8)), enumerate((0.05, 0.3)), enumerate((0.0, 0.4, 0.7, 0.9))
    )
    if (i + j + k + n) % 2 == 0
)


@dataclass(frozen=True, eq=False)
class Belief:
    """Mean and covariance of the worth of M responses, in each of W problems."""

    mean: Float[Tensor, "W M"]
    covariance: Float[Tensor, "W M M"]

    def of(self, weights: Float[Tensor, "W C M"]) -> tuple[Float[Tensor, "W C"], Float[Tensor, "W C C"]]:
        """Mean and covariance of weighted sums of worths: of an arm's gain, where the weights are what the arm does
        more often than the reference."""
        return torch.einsum("wcm,wm->wc", weights, self.mean), weights @ self.covariance @ weights.mT

    def told(self, place: Int[Tensor, "W n"], reading: Float[Tensor, "W n"], noise: float) -> Belief:
        """After a judge has read the worth of these responses, each with a noise of this sd."""
        M = self.mean.shape[1]
        rows = self.covariance.gather(1, place[..., None].expand(-1, -1, M))  # [W, n, M]
        among = rows.gather(2, place[:, None].expand(-1, place.shape[1], -1))
        return self._after(rows, among, reading - self.mean.gather(1, place), noise)

    def heard(self, weights: Float[Tensor, "W n M"], reading: Float[Tensor, "W n"], noise: float) -> Belief:
        """As `told`, of weighted sums of worths: of the difference of two responses, say."""
        rows = weights @ self.covariance  # [W, n, M]
        expected = torch.einsum("wnm,wm->wn", weights, self.mean)
        return self._after(rows, rows @ weights.mT, reading - expected, noise)

    def _after(self, rows: Tensor, among: Tensor, surprise: Tensor, noise: float) -> Belief:
        root = torch.linalg.cholesky(among + noise**2 * torch.eye(among.shape[-1], dtype=rows.dtype))
        white = torch.linalg.solve_triangular(root, rows, upper=False)
        off = torch.linalg.solve_triangular(root, surprise[..., None], upper=False)
        return Belief(self.mean + (white.mT @ off)[..., 0], self.covariance - white.mT @ white)


@dataclass(frozen=True, eq=False)
class Fits:
    """A belief under each of S settings, and how well each foresaw the pairs."""

    mean: Float[Tensor, "W S M"]
    covariance: tuple[Float[Tensor, "W M M"], ...]  # one a setting
    evidence: Float[Tensor, "W S"]  # log marginal likelihood

    def mixed(
        self, log_weight: Float[Tensor, " S"], temper: float, slope: float, widen: Float[Tensor, " W"], own: float
    ) -> Belief:
        """One Gaussian with the mixture's mean and covariance; the numbers are the prior's calibration: `own` is the
        standard deviation of what no setting says of a response, `widen` multiplies all standard deviations."""
        weight = (log_weight + temper * self.evidence).softmax(1)
        mean = torch.einsum("ws,wsm->wm", weight, self.mean)
        total = own**2 * torch.eye(mean.shape[1], dtype=mean.dtype).repeat(len(mean), 1, 1)
        for i, spread in enumerate(self.covariance):
            away = (self.mean[:, i] - mean)[..., None]
            total += weight[:, i, None, None] * (spread + away @ away.mT)
        return Belief(slope * mean, widen.square()[:, None, None] * total)


def fit(
    kernel: Float[Tensor, "W M M"],
    pairs: Int[Tensor, "W N 2"],
    count: Int[Tensor, " W"],
    proxy: Float[Tensor, "W M"],
    given: Bool[Tensor, " W"],
    settings: Sequence[Setting] = GRID,
) -> Fits:
    """What each setting makes of the pairs.

    `proxy` is standardised (mean 0, sd 1); where it was fitted on the same pairs (`given` is False) it says nothing
    new, and no setting trusts it.
    """
    real = (torch.arange(pairs.shape[1]) < count[:, None]).double()
    open_ = given.double()
    W, M = len(kernel), kernel.shape[1]
    means = kernel.new_zeros(W, len(settings), M)
    evidence = kernel.new_full((W, len(settings)), -torch.inf)
    spreads = []
    for i, setting in enumerate(settings):
        at = given if setting.trust else torch.ones_like(given)  # nobody trusts what was fitted on the same pairs
        spread = kernel.new_zeros(W, M, M)
        if at.any():
            found = _variational(kernel[at], pairs[at], real[at], proxy[at], open_[at] * setting.trust, setting)
            means[at, i], spread[at], evidence[at, i] = found
        spreads.append(spread)
    return Fits(means, tuple(spreads), evidence)


def ignorant(kernel: Float[Tensor, "W M M"], scale: float = 2.0, own: float = 0.3) -> Belief:
    """The belief of someone who has seen neither pairs nor a reward."""
    setting = Setting(scale=scale, own=own, flips=0.0, trust=0.0)
    return Belief(kernel.new_zeros(kernel.shape[:2]), _prior(kernel, kernel.new_zeros(len(kernel)), setting))


def linear_kernel(*features: Float[Tensor, "W M _"]) -> Float[Tensor, "W M M"]:
    """Inner products of centred features, scaled so that a response's own is 1 on average; several kinds of features
    have equal parts in it."""
    total = features[0].new_zeros(())
    for kind in features:
        centred = kind - kind.mean(1, keepdim=True)
        kernel = centred @ centred.mT
        total = total + kernel / kernel.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)[:, None, None]
    return total / len(features)


def tangents(log_ratio: Float[Tensor, "W C M"], rank: int = 12) -> Float[Tensor, "W M k"]:
    """The directions in which trained candidates moved, as features of the responses: what a policy can learn of a
    reward lies in their span, whether or not hidden states show it. Whitened; weak directions are left out.

    `log_ratio` is log pi - log pi_ref of each candidate.
    """
    centred = (log_ratio - log_ratio.mean(-1, keepdim=True)).mT  # [W, M, C]
    size = centred.norm(dim=1, keepdim=True)
    u, s, _ = torch.linalg.svd(centred / size.clamp(min=1e-9), full_matrices=False)
    k = min(rank, u.shape[-1])
    strong = s[:, None, :k] > 0.03 * s[:, None, :1]
    return u[..., :k] * strong * u.shape[1] ** 0.5


def _prior(kernel: Tensor, trust: Tensor, setting: Setting) -> Tensor:
    """Covariance before the pairs: what the given reward leaves open, and the common offset."""
    eye = torch.eye(kernel.shape[-1], dtype=kernel.dtype)
    free = (1 - trust**2)[:, None, None]
    return setting.scale**2 * free * ((1 - setting.own) * kernel + setting.own * eye) + OFFSET


def _variational(
    kernel: Tensor, pairs: Tensor, real: Tensor, proxy: Tensor, trust: Tensor, setting: Setting
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, covariance and bound on the log evidence under one setting, by the fixed point of the variational Gaussian:
    gradient and curvature of each pair's log-likelihood, averaged over what is believed of its gap."""
    K = _prior(kernel, trust, setting)
    eye = torch.eye(K.shape[-1], dtype=K.dtype)
    root = torch.linalg.cholesky(K + 1e-9 * K.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * eye)
    start = setting.scale * trust[:, None] * proxy
    first, second = pairs.unbind(-1)
    f, spread, inverse = start, K, eye
    size = K.new_zeros(len(K))
    for _ in range(ROUNDS):
        gap, sd = _gaps(f, spread, first, second)
        _, pull, weight = _averaged(gap, sd, setting.flips)
        slope = _onto(torch.zeros_like(f), first, second, real * pull)
        bend = _laplacian(real * weight.clamp(min=0), first, second, K.shape[-1])
        inner = torch.linalg.cholesky(eye + root.mT @ bend @ root)
        inverse = torch.linalg.solve_triangular(inner, eye.expand_as(inner), upper=False)
        half = inverse @ root.mT
        spread = half.mT @ half  # (K^-1 + H)^-1 = L (I + L' H L)^-1 L'
        step = (bend @ (f - start)[..., None])[..., 0] + slope
        f = start + (spread @ step[..., None])[..., 0]
        size = 2 * inner.diagonal(dim1=1, dim2=2).log().sum(-1)  # log det K - log det S
    gap, sd = _gaps(f, spread, first, second)
    told, pull, _ = _averaged(gap, sd, setting.flips)
    slope = _onto(torch.zeros_like(f), first, second, real * pull)  # K^-1 (f - m) at the fixed point
    trace = inverse.square().sum((1, 2))
    divergence = (trace - K.shape[-1] + ((f - start) * slope).sum(-1) + size) / 2
    return f, spread, (real * told).sum(-1) - divergence


def _gaps(f: Tensor, spread: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sd of each pair's difference of worths, [W, N]."""
    M = f.shape[1]
    own = spread.diagonal(dim1=1, dim2=2)
    both = spread.flatten(1).gather(1, first * M + second)
    variance = own.gather(1, first) + own.gather(1, second) - 2 * both
    return f.gather(1, first) - f.gather(1, second), variance.clamp(min=0).sqrt()


def _averaged(gap: Tensor, sd: Tensor, flips: float) -> tuple[Tensor, Tensor, Tensor]:
    """A label's log-likelihood, its slope and its curvature (downwards), averaged over a Gaussian gap."""
    told, pull, weight = torch.zeros_like(gap), torch.zeros_like(gap), torch.zeros_like(gap)
    for node, share in zip(NODES, WEIGHTS, strict=True):
        p = (gap + node * sd).sigmoid()
        chance = flips + (1 - 2 * flips) * p
        slope = (1 - 2 * flips) * p * (1 - p) / chance
        told += share * chance.clamp(min=1e-300).log()
        pull += share * slope
        weight += share * (slope.square() - slope * (1 - 2 * p))
    return told, pull, weight


def _onto(zero: Tensor, first: Tensor, second: Tensor, pull: Tensor) -> Tensor:
    return zero.scatter_add(1, first, pull).scatter_add(1, second, -pull)


def _laplacian(weight: Tensor, first: Tensor, second: Tensor, M: int) -> Tensor:
    """Sum over pairs of weight (e_i - e_j)(e_i - e_j)', [W, M, M]."""
    flat = weight.new_zeros(len(weight), M * M)
    flat = flat.scatter_add(1, first * M + second, weight).scatter_add(1, second * M + first, weight)
    between = flat.view(-1, M, M)
    return torch.diag_embed(between.sum(2)) - between
