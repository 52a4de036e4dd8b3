"""Is the data what the model itself would write? Ranks, typicality and a classifier, against its own samples.

A statistic of a data response has, among K samples of the model to the same prompt, a uniform rank if the model
wrote the response (a probability integral transform); the converse holds for that statistic only. Labels select: the
better of two own samples is not itself a draw, so the test takes both responses of a pair together.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from modeseek import estimate
from modeseek.diagnostics.look import Look
from modeseek.diagnostics.tails import Found, Refused
from modeseek.estimate import Estimate

FAR = 3.0  # standard deviations below the model's typical response: next to no support
DRAWS = 1999  # of the null distribution
LEAST = 10  # responses of a source


def on_policyness(look: Look, *, seed: int = 0) -> list[Found]:
    """The section's numbers. `pit/*` and `same/*` are 0.5 or 0 where the model wrote the data."""
    rng = np.random.default_rng(seed)
    own, told = look.own_mean_logp, look.told_mean_logp
    found: list[Found] = []
    for k, side in enumerate(look.sides):
        u = rank(own, told[:, k], rng)
        found += [
            estimate.share(u, name=f"pit/{side}"),
            distance(u, name=f"ks/{side}"),
            far_share(own, told[:, k], name=f"near_zero_support/{side}"),
            typicality(own, told[:, k], name=f"typicality/{side}"),
        ]
    found += [
        difference(own, told, rng, name="same/logp"),
        difference(look.own_length, look.told_length, rng, name="same/length"),
        estimate.mean_difference(look.told_length, look.own_length, name="longer_by_tokens"),
        auc(look.own_traits, look.told_traits, name="classifier_auc"),
    ]
    return found + _by_source(own, told, look.sources, rng)


def p_value(look: Look, *, seed: int = 0) -> float:
    """The chance of ranks this uneven if the model had written the data: the smaller of two, doubled (Bonferroni).

    The two statistics are the mean log-probability of a token and the length. Exact given the samples: a permutation
    test within prompts.
    """
    rng = np.random.default_rng(seed)
    pairs = ((look.own_mean_logp, look.told_mean_logp), (look.own_length, look.told_length))
    return min(1.0, 2 * min(permutation(own, told, rng) for own, told in pairs))


def rank(
    own: Float[np.ndarray, "P K"], told: Float[np.ndarray, " P"], rng: np.random.Generator
) -> Float[np.ndarray, " P"]:
    """Each data response's place among the model's samples to its prompt, in (0, 1); ties and ends are spread."""
    below = (own < told[:, None]).sum(1)
    ties = (own == told[:, None]).sum(1)
    return (below + rng.random(len(told)) * (ties + 1)) / (own.shape[1] + 1)


def distance(u: Float[np.ndarray, " P"], *, name: str = "ks") -> Estimate:
    """Kolmogorov-Smirnov distance of ranks from uniform, with the Dvoretzky-Kiefer-Wolfowitz (Massart) interval.

    Biased upwards by at most .87 / sqrt(n), its mean where the ranks are uniform.
    """
    value = float(stats.kstest(u, "uniform").statistic)
    reach = float(np.sqrt(np.log(2 / 0.05) / (2 * len(u))))
    return Estimate(
        value=value,
        low=max(0.0, value - reach),
        high=min(1.0, value + reach),
        n=len(u),
        name=name,
        standard_error=float(0.26 / np.sqrt(len(u))),  # of Kolmogorov's distribution
        interval="DKW",
    )


def difference(
    own: Float[np.ndarray, "P K"], told: Float[np.ndarray, "P m"], rng: np.random.Generator, *, name: str
) -> Estimate:
    """How far the ranks of both responses of a pair, in a random order, are from uniform."""
    picked = told[np.arange(len(told)), rng.integers(told.shape[1], size=len(told))]
    return distance(rank(own, picked, rng), name=name)


def permutation(own: Float[np.ndarray, "P K"], told: Float[np.ndarray, "P m"], rng: np.random.Generator) -> float:
    """P-value of the hypothesis that told and own responses to a prompt are exchangeable.

    The statistic is the largest gap between the distribution of the told ones' ranks in their group of K + m and the
    uniform one. Its null distribution knows nothing of the data, so it is drawn once for each shape.
    """
    both = np.concatenate([told, own], 1)
    order = np.lexsort((rng.random(both.shape), both), axis=1)
    ranks = np.argsort(order, 1)[:, : told.shape[1]]
    null = _null(len(own), own.shape[1], told.shape[1])
    seen = _gap(np.bincount(ranks.ravel(), minlength=both.shape[1])[None])[0]
    return float((1 + (null >= seen - 1e-12).sum()) / (1 + len(null)))


@functools.lru_cache(maxsize=16)
def _null(P: int, K: int, m: int) -> Float[np.ndarray, " draws"]:
    rng, counts = np.random.default_rng(0), np.zeros((DRAWS, K + m))
    for start in range(0, DRAWS, 100):  # a hundred draws at a time are held
        draws = min(100, DRAWS - start)
        ranks = np.argsort(rng.random((draws, P, K + m)), -1)[..., :m].reshape(draws, -1)
        flat = ranks + (K + m) * np.arange(draws)[:, None]
        counts[start : start + draws] = np.bincount(flat.ravel(), minlength=draws * (K + m)).reshape(draws, -1)
    return _gap(counts)


def _gap(counts: Float[np.ndarray, "draws L"] | Int[np.ndarray, "draws L"]) -> Float[np.ndarray, " draws"]:
    share = counts.cumsum(1) / counts.sum(1, keepdims=True)
    return np.abs(share - np.arange(1, counts.shape[1] + 1) / counts.shape[1]).max(1)


def typicality_z(own: Float[np.ndarray, "P K"], told: Float[np.ndarray, " P"]) -> Float[np.ndarray, " P"]:
    """How many standard deviations a response lies below the model's own to its prompt; above zero is less likely.

    The deviation is that within prompts, pooled over them, for K is small; 1 + 1/K is for the mean being an estimate.
    """
    K = own.shape[1]
    sd = np.sqrt(own.var(1, ddof=1).mean() * (1 + 1 / K))
    return (own.mean(1) - told) / max(float(sd), 1e-12)


def typicality(own: Float[np.ndarray, "P K"], told: Float[np.ndarray, " P"], *, name: str) -> Estimate:
    """Mean z over prompts."""
    return estimate.mean(typicality_z(own, told), name=name)


def far_share(own: Float[np.ndarray, "P K"], told: Float[np.ndarray, " P"], *, name: str) -> Estimate:
    """The share of responses to which the model gives next to no probability: z above 3."""
    return estimate.share((typicality_z(own, told) > FAR).astype(np.float64), name=name)


def auc(own: Float[np.ndarray, "P K H"], told: Float[np.ndarray, "P m H"], *, name: str, folds: int = 5) -> Found:
    """How often a linear classifier scores a data response above an own one to the same prompt; 1/2 is chance.

    A two-sample test by classification (1610.06545) with shrunk linear discriminants on features centred within
    prompts, cross-fitted over prompts.
    """
    P, K, _ = own.shape
    if folds > P // 2:
        return Refused(name=name, reason=f"{P} prompts are too few to train a classifier on; give --prompts 32 or more")
    x = np.concatenate([told, own], 1)
    x = x - x.mean(1, keepdims=True)
    x = x / np.maximum(x.std((0, 1)), 1e-12)
    wins = np.empty(P)
    for test in np.array_split(np.random.default_rng(0).permutation(P), folds):
        train = np.setdiff1d(np.arange(P), test)
        score = x[test] @ _discriminant(x[train], told.shape[1])
        ours, theirs = score[:, told.shape[1] :], score[:, : told.shape[1]]
        wins[test] = (1 + np.sign(theirs[:, :, None] - ours[:, None, :]).mean((1, 2))) / 2
    return estimate.share(wins, name=name)


def _discriminant(x: Float[np.ndarray, "p g H"], m: int) -> Float[np.ndarray, " H"]:
    told, own = x[:, :m].reshape(-1, x.shape[-1]), x[:, m:].reshape(-1, x.shape[-1])
    centred = np.concatenate([told - told.mean(0), own - own.mean(0)])
    spread = centred.T @ centred / len(centred)
    return np.linalg.solve(spread + 0.1 * np.eye(len(spread)), told.mean(0) - own.mean(0))


def _by_source(
    own: Float[np.ndarray, "P K"],
    told: Float[np.ndarray, "P m"],
    sources: Sequence[Sequence[str]],
    rng: np.random.Generator,
) -> list[Found]:
    """Mean rank for each model that the data name as a writer, the most frequent first."""
    names = np.array(sources, dtype=object)
    every, counts = np.unique(names[names != ""].astype(str), return_counts=True)
    found: list[Found] = []
    for name in every[np.argsort(-counts, kind="stable")][:12]:
        at = np.argwhere(names == name)
        if len(at) >= LEAST and len(every) > 1:
            u = rank(own[at[:, 0]], told[at[:, 0], at[:, 1]], rng)
            found.append(estimate.share(u, name=f"pit/source={name}"))
    return found
