"""Where reward lies for this model: on its own samples, in reach of best-of-N, likely or unlikely under it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.special import comb, logsumexp

from modeseek import estimate
from modeseek.diagnostics import drift
from modeseek.diagnostics.look import Look
from modeseek.diagnostics.tails import Found, Refused, ratio, unless_heavy

PK = Float[np.ndarray, "P K"]


def geometry(look: Look, *, beta: float = 0.1) -> list[Found]:
    """The section's numbers; without a reward it is one refusal."""
    if look.own_reward is None or look.told_reward is None:
        return [Refused(name="geometry", reason="needs a reward; give --reward, such as --reward length")]
    own, told = look.own_reward, look.told_reward
    K = own.shape[1]
    found: list[Found] = [estimate.mean(own, name="reward/own")]
    for k, side in enumerate(look.sides):
        found.append(estimate.mean_difference(told[:, k], own, name=f"reward/{side}_less_own"))
    for n in _sizes(K):
        found.append(estimate.mean(best_of(own, n), name=f"best_of/{n}"))
    for n in _sizes(K):
        found.append(estimate.share(reach(own, told[:, 0], n), name=f"reach/{n}"))
    found += [peak(own, look.own_mean_logp), *tilted(own, beta), linearity(look)]
    return found


def _sizes(K: int) -> list[int]:
    return sorted({1, *(n for n in (2, 4, 8, 16, 32) if n < K), K})


def best_of(reward: PK, n: int) -> Float[np.ndarray, " P"]:
    """The expected best of n of a prompt's K samples: unbiased for best-of-n, whose KL is at most log n - (n - 1)/n."""
    K = reward.shape[1]
    share = comb(np.arange(K), n - 1) / comb(K, n)  # of the subsets in which the i-th lowest is the best
    return np.sort(reward, 1) @ share


def reach(own: PK, chosen: Float[np.ndarray, " P"], n: int) -> Float[np.ndarray, " P"]:
    """P(best of n own >= chosen): 1 - C(K - c, n) / C(K, n) where c of K samples reach it. Unbiased."""
    K = own.shape[1]
    c = (own >= chosen[:, None]).sum(1)
    return 1 - np.asarray(comb(K - c, n)) / comb(K, n)


def peak(reward: PK, mean_logp: PK, *, name: str = "peak_rank") -> Found:
    """The rank by likelihood of the best own sample among the others: 1/2 where reward and likelihood are unrelated,
    below it where what is worth most is unlikely under the model. Ties for the best are split."""
    other = (np.sign(mean_logp[:, :, None] - mean_logp[:, None, :]) + 1).sum(2) / 2 - 0.5  # others below, ties halved
    best = reward == reward.max(1, keepdims=True)
    said = ~best.all(1)
    if said.sum() < 2:
        return Refused(name=name, reason="all own samples of a prompt have the same reward")
    place = (other * best).sum(1) / best.sum(1) / (reward.shape[1] - 1)
    return estimate.share(place[said], name=name)


def tilted(reward: PK, beta: float) -> list[Found]:
    """KL to the target pi exp(r / beta) / Z, and what K samples are worth as samples of it.

    Of reweighted samples; both are biased by 1 / K, which a jackknife over the K takes off. The KL of K samples cannot
    pass log K, so it is refused where the samples are worth fewer than two.
    """
    K = reward.shape[1]
    kl_name, ess_name = f"target_kl/beta={beta:g}", f"target_ess/beta={beta:g}"
    if K < 3:
        return [Refused(name=n, reason="needs three samples of a prompt") for n in (kl_name, ess_name)]
    log_w = reward / beta
    weights = np.exp(log_w - logsumexp(log_w, axis=1, keepdims=True))
    worth = np.clip(_without_bias(log_w, _worth), 1 / K, 1)
    ess = unless_heavy(weights, ess_name, lambda: estimate.share(worth, name=ess_name))
    if float(_worth(log_w).mean()) * K < 2:
        reason = (
            f"{K} samples are worth fewer than two of the target's: it is more than about {np.log(K):.1f} nats away"
        )
        return [Refused(name=kl_name, reason=f"{reason}; beta is small for this reward"), ess]
    kl = lambda: estimate.mean(_without_bias(log_w, _kl), name=kl_name)
    return [unless_heavy(weights, kl_name, kl), ess]


def _kl(log_w: PK) -> Float[np.ndarray, " P"]:
    p = np.exp(log_w - logsumexp(log_w, axis=1, keepdims=True))
    return (p * np.log(np.maximum(p, 1e-300) * p.shape[1])).sum(1)


def _worth(log_w: PK) -> Float[np.ndarray, " P"]:
    p = np.exp(log_w - logsumexp(log_w, axis=1, keepdims=True))
    return 1 / (p**2).sum(1) / p.shape[1]


def _without_bias(log_w: PK, statistic) -> Float[np.ndarray, " P"]:
    K = log_w.shape[1]
    without = np.mean([statistic(np.delete(log_w, k, 1)) for k in range(K)], 0)
    return K * statistic(log_w) - (K - 1) * without


def linearity(look: Look, *, name: str = "reward_linear_r2", folds: int = 5) -> Found:
    """The share of reward's variance within prompts that is linear in the model's features, on prompts left out.

    Low by about directions / samples, for the weights are fitted; below zero where nothing is found.
    """
    assert look.own_reward is not None
    P = len(look)
    if folds > P // 3:
        return Refused(name=name, reason=f"{P} prompts are too few to fit on; give --prompts 32 or more")
    own, _ = drift.directions(look)
    x = own - own.mean(1, keepdims=True)
    y = look.own_reward - look.own_reward.mean(1, keepdims=True)
    if np.allclose(y, 0):
        return Refused(name=name, reason="all own samples of a prompt have the same reward")
    left = np.empty(P)
    for test in np.array_split(np.random.default_rng(0).permutation(P), folds):
        train = np.setdiff1d(np.arange(P), test)
        a, b = x[train].reshape(-1, x.shape[-1]), y[train].ravel()
        w = np.linalg.solve(a.T @ a + 1e-3 * np.trace(a.T @ a) / a.shape[1] * np.eye(a.shape[1]), a.T @ b)
        left[test] = ((y[test] - x[test] @ w) ** 2).sum(1)
    total = (y**2).sum(1)
    return ratio(total - left, total, name=name)
