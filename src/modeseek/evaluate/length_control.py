"""The length-controlled win rate: what a judge would have said had both responses been of one length.

AlpacaEval 2's form (Dubois et al. 2024, arXiv 2404.04475, equation 2; tatsu-lab/alpaca_eval, `metrics/glm_winrate.py`):

    P(ours wins on x) = sigma(theta + phi tanh(d_x / sd(d)) + psi gamma_x)

with d_x the length of ours less theirs and gamma_x the difficulty of the instruction. theta, phi and psi are fitted to
the annotations by logistic regression; the win rate is the mean over x of the prediction at d = 0. Their published
coefficients are those of a model against their baseline: of two models it is the difference that predicts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.special import expit, log_expit

from modeseek.estimate import Estimate

FEWEST = 20  # prompts: below that three coefficients say nothing
_STRENGTHS = tuple(float(c) for c in np.logspace(-4, 4, 10))  # weight of the data against the penalty
_EXTREME = 10.0  # AlpacaEval's warning: percentage points between raw and controlled


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """A fitted model. The length is of ours less theirs: `phi` above 0 means that longer responses win.

    AlpacaEval's files store the same numbers as `not_gamed_baseline.astype(float)`, `np.tanh(std_delta_len)` and
    `instruction_difficulty`; theirs has the length of the baseline less the model's, so its `phi` has the other sign.
    """

    theta: float  # how much better ours is, in logits, at equal length and difficulty 0
    phi: float = 0.0
    psi: float = 0.0

    def __sub__(self, other: Coefficients) -> Coefficients:
        """Those of this model against the other, both having been fitted against one baseline."""
        return Coefficients(theta=self.theta - other.theta, phi=self.phi - other.phi, psi=self.psi - other.psi)

    @staticmethod
    def of_alpaca_eval(row: Mapping[str, float | str]) -> Coefficients:
        """From a row of their `weights/ANNOTATOR/length_controlled_v1/baseline_*.csv`, by its column names."""
        names = ("not_gamed_baseline.astype(float)", "np.tanh(std_delta_len)", "instruction_difficulty")
        if missing := [name for name in names if name not in row]:
            raise ValueError(f"coefficients: found no {', '.join(missing)}, expected a row of AlpacaEval's weights")
        theta, phi, psi = (float(row[name]) for name in names)
        return Coefficients(theta=theta, phi=-phi, psi=psi)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Coefficients with what was needed to find them."""

    coefficients: Coefficients
    strength: float  # the weight of the data against the L1 penalty that cross-validation chose
    deviation: float  # sd(d): characters, tokens or words, as the lengths were given
    with_difficulty: bool
    n: int


@dataclass(frozen=True, kw_only=True)
class LengthControlled:
    """The win rate at no difference in length, beside the raw one."""

    estimate: Estimate
    raw: float
    fit: Fit
    extreme: bool  # further from the raw one than AlpacaEval thinks safe: look at the fit before believing it


def preference(coefficients: Coefficients, difficulty: ArrayLike, length: ArrayLike = 0.0) -> Float[np.ndarray, " P"]:
    """P(ours wins) for each instruction; `length` is the standardised difference before the tanh, 0 by default."""
    gamma, d = np.asarray(difficulty, dtype=np.float64), np.asarray(length, dtype=np.float64)
    c = coefficients
    return np.atleast_1d(expit(c.theta + c.phi * np.tanh(d) + c.psi * gamma))


def predict(coefficients: Coefficients, difficulty: ArrayLike, baseline: Coefficients | None = None) -> float:
    """The length-controlled win rate, a share: the mean over instructions of the prediction at equal lengths.

    Against a `baseline` other than the one that the coefficients were fitted against, their difference predicts.
    """
    return float(preference(coefficients if baseline is None else coefficients - baseline, difficulty).mean())


def fit(
    wins: ArrayLike,
    lengths: ArrayLike,
    their_lengths: ArrayLike,
    difficulty: ArrayLike | None = None,
    *,
    folds: int = 5,
    anchors: tuple[ArrayLike, ArrayLike, ArrayLike] | None = None,
    anchor_weight: float = 0.2,
) -> Fit:
    """Fit the coefficients to our share of the win on each prompt, 0 to 1; NaN where there is none.

    As AlpacaEval does: cross-entropy with soft targets, an L1 penalty without intercept whose strength is the best of
    ten by `folds`-fold cross-validation, and the length standardised by its own deviation over prompts (n - 1).
    `anchors` are its gamed baselines: wins, standardised lengths (ours less theirs) and difficulty of pairs whose only
    difference is length; they take part in phi and psi but not in theta, at `anchor_weight` / 2 a row, two variants
    of the baseline being given. Without them phi rests on these prompts alone. Without `difficulty` there is no psi.
    """
    y, length, gamma, deviation = _table(wins, lengths, their_lengths, difficulty)
    X = _design(np.ones(len(y)), length, gamma)
    weight = np.ones(len(y))
    if anchors is not None:
        other = [np.asarray(x, dtype=np.float64) for x in anchors]
        X = np.concatenate([_design(np.zeros(len(other[0])), other[1], None if gamma is None else other[2]), X])
        y = np.concatenate([other[0], y])
        weight = np.concatenate([np.full(len(other[0]), anchor_weight / 2), weight])
    strength = _cross_validated(X, y, weight, folds)
    found = _l1(X, y, weight, strength)
    return Fit(
        coefficients=Coefficients(theta=found[0], phi=found[1], psi=found[2] if gamma is not None else 0.0),
        strength=strength,
        deviation=deviation,
        with_difficulty=gamma is not None,
        n=int((~np.isnan(np.asarray(wins, dtype=np.float64))).sum()),
    )


def win_rate(
    wins: ArrayLike,
    lengths: ArrayLike,
    their_lengths: ArrayLike,
    difficulty: ArrayLike | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 400,
    name: str = "win_rate/length_controlled",
) -> LengthControlled:
    """Fit and predict, with a percentile bootstrap that refits on resampled prompts (its strength chosen once).

    AlpacaEval prints the deviation of the predictions as an error, which is zero where difficulty is not known; ours
    counts what the coefficients themselves do not know.
    """
    found = fit(wins, lengths, their_lengths, difficulty)
    y, length, gamma, _ = _table(wins, lengths, their_lengths, difficulty)
    X, rng = _design(np.ones(len(y)), length, gamma), np.random.default_rng(seed)
    at_zero = X * np.array([1.0, 0.0, 1.0])[: X.shape[1]]
    start = _l1(X, y, np.ones(len(y)), found.strength)
    value = float(expit(at_zero @ start).mean())
    drawn = [rng.multinomial(len(y), np.full(len(y), 1 / len(y))).astype(float) for _ in range(resamples)]
    spread = [np.average(expit(at_zero @ _l1(X, y, w, found.strength, start)), weights=w) for w in drawn]
    tail = (1 - level) / 2
    low, high = (float(x) for x in np.quantile(spread, [tail, 1 - tail]))
    raw = float(y.mean())
    return LengthControlled(
        estimate=Estimate(
            value=value,
            low=low,
            high=high,
            n=len(y),
            name=name,
            standard_error=float(np.std(spread, ddof=1)),
            level=level,
            interval="percentile bootstrap",
        ),
        raw=raw,
        fit=found,
        extreme=is_extreme(raw, value),
    )


def is_extreme(raw: float, controlled: float) -> bool:
    """AlpacaEval's `get_is_extreme_changes`, for shares: off by 10 points and by a quarter of that side."""
    a, b = 100 * raw, 100 * controlled
    return b < min(a - a / 4, a - _EXTREME) or b > max(a + (100 - a) / 4, a + _EXTREME)


def difficulty(wins: ArrayLike, *, ridge: float = 1.0, rounds: int = 50) -> Float[np.ndarray, " P"]:
    """gamma_x from several models' wins `[M, P]` against one baseline: how much likelier any of them wins on x.

    logit P(m wins on x) = theta_m + gamma_x with a Gaussian prior of variance 1 / `ridge` on gamma, by alternating
    Newton steps; then centred. AlpacaEval estimates its own on its leaderboard's models in this spirit and ships them.
    To judge a model, leave it out of `wins`: its own luck would look like the prompt's difficulty.
    """
    y = np.asarray(wins, dtype=np.float64)
    if y.ndim != 2 or len(y) < 2:
        raise ValueError(f"difficulty: found shape {y.shape}, expected [models, prompts] of two models or more")
    theta, gamma = np.zeros(len(y)), np.zeros(y.shape[1])
    for _ in range(rounds):
        p = expit(theta[:, None] + gamma[None])
        theta = np.clip(theta + (y - p).sum(1) / np.maximum((p * (1 - p)).sum(1), 1e-6), -10, 10)
        p = expit(theta[:, None] + gamma[None])
        gamma = gamma + ((y - p).sum(0) - ridge * gamma) / ((p * (1 - p)).sum(0) + ridge)
    return gamma - gamma.mean()


def _table(
    wins: ArrayLike, lengths: ArrayLike, their_lengths: ArrayLike, difficulty: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, float]:
    y, a, b = (np.asarray(x, dtype=np.float64) for x in (wins, lengths, their_lengths))
    gamma = None if difficulty is None else np.asarray(difficulty, dtype=np.float64)
    shapes = [x.shape for x in (y, a, b) if x is not None] + ([] if gamma is None else [gamma.shape])
    if y.ndim != 1 or len(set(shapes)) > 1:
        raise ValueError(f"length control: found shapes {shapes}, expected one number a prompt in each")
    delta = a - b
    deviation = float(delta.std(ddof=1)) if len(delta) > 1 else 0.0  # over all prompts, annotated or not, as theirs
    there = ~np.isnan(y)
    if there.sum() < FEWEST:
        raise ValueError(f"length control: found {int(there.sum())} annotated prompts, expected {FEWEST} or more")
    if not deviation > 0 or not math.isfinite(deviation):
        raise ValueError("length control: all differences in length are the same; the raw win rate is all there is")
    y, length = y[there], (delta / deviation)[there]
    if y.min() < 0 or y.max() > 1:
        raise ValueError(f"length control: found wins from {y.min():g} to {y.max():g}, expected 0 to 1")
    return y, length, None if gamma is None else gamma[there], deviation


def _design(own: np.ndarray, length: np.ndarray, gamma: np.ndarray | None) -> np.ndarray:
    return np.stack([own, np.tanh(length), *([] if gamma is None else [gamma])], 1)


def _loss(X: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Cross-entropy of each row, in nats."""
    eta = X @ w
    return -(y * log_expit(eta) + (1 - y) * log_expit(-eta))


def _l1(
    X: np.ndarray, y: np.ndarray, weight: np.ndarray, strength: float, start: np.ndarray | None = None
) -> np.ndarray:
    """argmin of |w|_1 + strength sum_i weight_i CE_i, liblinear's objective, by proximal Newton steps."""
    w = np.zeros(X.shape[1]) if start is None else start
    objective = lambda w: float(np.abs(w).sum() + strength * (weight @ _loss(X, y, w)))
    now = objective(w)
    for _ in range(100):
        p = expit(X @ w)
        slope = strength * X.T @ (weight * (p - y))
        curve = strength * (X * (weight * p * (1 - p))[:, None]).T @ X + 1e-9 * np.eye(len(w))
        step = _proximal_step(w, slope, curve)
        size, new = 1.0, objective(w + step)
        while new > now and size > 1e-6:
            size /= 2
            new = objective(w + size * step)
        if new > now or np.abs(size * step).max() < 1e-9:
            break
        w, now = w + size * step, new
    return w


def _proximal_step(w: np.ndarray, slope: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """argmin over d of slope d + d curve d / 2 + |w + d|_1, one coordinate at a time."""
    d = np.zeros(len(w))
    for _ in range(200):
        largest = 0.0
        for j in range(len(w)):
            rest = slope[j] + curve[j] @ d - curve[j, j] * d[j]
            at = w[j] - rest / curve[j, j]  # where the quadratic alone is least
            moved = math.copysign(max(abs(at) - 1 / curve[j, j], 0.0), at) - w[j]
            largest, d[j] = max(largest, abs(moved - d[j])), moved
        if largest < 1e-11:
            break
    return d


def _cross_validated(X: np.ndarray, y: np.ndarray, weight: np.ndarray, folds: int) -> float:
    """The strength with the least held-out loss, a mean over folds; rows are dealt to folds in turn."""
    fold = np.arange(len(y))[::-1] % folds
    losses = []
    for strength in _STRENGTHS:
        held = []
        for f in range(folds):
            out = fold == f
            w = _l1(X[~out], y[~out], weight[~out], strength)
            held.append(float((weight[out] * _loss(X[out], y[out], w)).mean()))
        losses.append(float(np.mean(held)))
    return _STRENGTHS[int(np.argmin(losses))]
