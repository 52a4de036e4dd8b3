"""What reward costs: best-of-N curves, reward against KL over checkpoints, and where the gold reward turns down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.special import gammaln

from modeseek import estimate
from modeseek.estimate import Estimate


@dataclass(frozen=True, kw_only=True)
class BestOf:
    """The best of n samples by the proxy reward: what it is worth, and how far from the policy it is."""

    n: int
    kl: float  # nats, the bound log n - (n - 1) / n
    proxy: Estimate
    gold: Estimate | None = None  # what another reward says of the one that the proxy picked
    win_rate: Estimate | None = None  # against the reference's own response, by gold where there is one


@dataclass(frozen=True, kw_only=True)
class Point:
    """A policy on the way from the reference."""

    name: str
    kl: Estimate
    reward: Estimate
    gold: Estimate | None = None
    on_frontier: bool = False  # no other point has as much reward for as little KL


@dataclass(frozen=True, kw_only=True)
class Overoptimised:
    """Whether the gold reward fell while the proxy went on rising."""

    peak: str  # the point with the most gold reward
    last: str  # the point with the most proxy reward
    drop: Estimate  # gold of the peak less gold of the last, paired over prompts
    happened: bool  # the drop's interval is above zero


def kl_of_best(n: float) -> float:
    """log n - (n - 1) / n nats: an upper bound on the KL of best-of-n to its policy, tight without ties.

    Stiennon et al. 2020 (appendix G.3); a bound where responses repeat (Beirami et al. 2024, arXiv 2401.01879).
    """
    if n < 1:
        raise ValueError(f"n: found {n}, expected 1 or more")
    return float(np.log(n) - (n - 1) / n)


def best_of_weights(proxy: ArrayLike, n: int) -> Float[np.ndarray, "P N"]:
    """The chance of each of a prompt's N samples to be the best of n of them, drawn without replacement.

    The i-th from below is it in C(i - 1, n - 1) of the C(N, n) draws, so that sum(weight * value) averages over every
    draw: the unbiased estimate with the least variance. Samples that tie share their chances equally.
    """
    x = np.asarray(proxy, dtype=np.float64)
    if x.ndim != 2 or not 1 <= n <= x.shape[1]:
        raise ValueError(f"best of {n}: found shape {x.shape}, expected [prompts, samples] of at least {n} samples")
    N = x.shape[1]
    i = np.arange(1, N + 1)
    log_choose = lambda a, b: gammaln(a + 1) - gammaln(b + 1) - gammaln(a - b + 1)
    with np.errstate(invalid="ignore"):
        chance = np.where(i >= n, np.exp(log_choose(np.maximum(i - 1, n - 1), n - 1) - log_choose(N, n)), 0.0)
    by_rank = np.concatenate([[0.0], np.cumsum(chance)])
    below = (x[:, None, :] < x[:, :, None]).sum(-1)  # [P, N] samples below each
    equal = (x[:, None, :] == x[:, :, None]).sum(-1)
    return (by_rank[below + equal] - by_rank[below]) / equal


def best_of_n(
    proxy: ArrayLike,
    *,
    gold: ArrayLike | None = None,
    reference: ArrayLike | None = None,
    ns: Sequence[int] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[BestOf, ...]:
    """Curves over n from N samples a prompt `[P, N]`; by default over powers of two up to N.

    `gold` is another reward of the same samples. `reference` is the reward (gold where given, else proxy) of the
    responses to beat, `[P]` or `[P, K]`. Near n = N few draws are left to average and the intervals say so only in
    part: sample twice the n that you want to read.
    """
    x = np.asarray(proxy, dtype=np.float64)
    g = x if gold is None else np.asarray(gold, dtype=np.float64)
    if g.shape != x.shape or not np.isfinite(x).all() or not np.isfinite(g).all():
        raise ValueError(f"best_of_n: found rewards of shapes {x.shape} and {g.shape}, expected two equal and finite")
    wins = None
    if reference is not None:
        other = np.asarray(reference, dtype=np.float64).reshape(len(x), -1)
        wins = (1 + np.sign(g[:, :, None] - other[:, None, :]).mean(-1)) / 2  # [P, N]
    found = []
    for n in ns or _powers(x.shape[1]):
        weight = best_of_weights(x, n)
        best, true = (weight * x).sum(1), (weight * g).sum(1)
        clipped = None if wins is None else np.clip((weight * wins).sum(1), 0, 1)
        found.append(
            BestOf(
                n=n,
                kl=kl_of_best(n),
                proxy=estimate.mean(best, level=level, name=f"best_of_{n}/reward"),
                gold=None if gold is None else estimate.mean(true, level=level, name=f"best_of_{n}/gold"),
                win_rate=None
                if clipped is None
                else estimate.share(clipped, level=level, seed=seed, name=f"best_of_{n}/win_rate"),
            )
        )
    return tuple(found)


def frontier(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points in order of KL, those marked that no other dominates (as much reward for as little KL)."""
    ranked, best, marked = sorted(points, key=lambda p: (p.kl.value, -p.reward.value)), -np.inf, list[Point]()
    for p in ranked:
        on = p.reward.value > best
        best = max(best, p.reward.value)
        marked.append(Point(name=p.name, kl=p.kl, reward=p.reward, gold=p.gold, on_frontier=bool(on)))
    return tuple(marked)


def overoptimisation(names: Sequence[str], proxy: ArrayLike, gold: ArrayLike, *, level: float = 0.95) -> Overoptimised:
    """From proxy and gold rewards `[points, prompts]` of checkpoints, or of best-of-n for growing n.

    The peak is chosen by the same numbers that its drop is measured on, which flatters the drop; where it matters
    choose it on other prompts. Peak and last being one point, the drop is exactly zero.
    """
    x, g = np.asarray(proxy, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if x.shape != g.shape or x.ndim != 2 or len(x) != len(names) or len(x) < 2:
        raise ValueError(
            f"overoptimisation: found shapes {x.shape} and {g.shape}, expected [points, prompts] of two up"
        )
    peak, last = int(g.mean(1).argmax()), int(x.mean(1).argmax())
    drop = estimate.mean_difference(g[peak], g[last], level=level, name="gold/drop")
    return Overoptimised(peak=names[peak], last=names[last], drop=drop, happened=drop.low > 0)


def _powers(N: int) -> list[int]:
    return sorted({2**k for k in range(N.bit_length()) if 2**k <= N} | {N})
