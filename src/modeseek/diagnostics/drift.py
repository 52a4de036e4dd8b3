"""Where the pairs would push the model: what part of its own responses lies outside the data, now and after.

The model is taken to be log-linear in its last layer's pooled features, which is exact for a table of logits (its
features are its cells). A contrastive loss on the pairs then is a logistic regression on differences of features, and
its solution tilts the model's own samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from scipy.special import expit

from modeseek import estimate
from modeseek.diagnostics.look import Look
from modeseek.diagnostics.tails import Found, Refused, ratio
from modeseek.estimate import Estimate

MOST = 32  # directions
QUANTILE = 0.95  # of the data's own distances: an own response farther away than this lies outside the data
RIDGE = 3e-3  # on the tilt, features of unit mean square: keeps pairs that can be told apart from pushing for ever


def directions(look: Look) -> tuple[Float[np.ndarray, "P K d"], Float[np.ndarray, "P m d"]]:
    """Own and data features along their largest common directions, at most one for four prompts, unit mean square."""
    both = np.concatenate([look.own_features, look.told_features], 1)
    centred = both - both.mean((0, 1))
    flat = centred.reshape(-1, centred.shape[-1])
    _, spread, axes = np.linalg.svd(flat, full_matrices=False)
    keep = (spread > 1e-6 * spread[0]) & (np.arange(len(spread)) < min(MOST, max(2, len(look) // 4)))
    seen = centred @ axes[keep].T  # [P, K + m, d]
    seen = seen / np.sqrt((seen**2).sum(-1).mean())
    return seen[:, : look.own_features.shape[1]], seen[:, look.own_features.shape[1] :]


def outside(look: Look, *, name: str = "outside_data") -> Found:
    """The share of own responses that lie outside the data now; about 5% where the data are the model's own."""
    if len(look) < 16:
        return Refused(name=name, reason=f"{len(look)} prompts are too few to tell; give --prompts 64 or more")
    return estimate.share(outliers(*directions(look)).astype(np.float64), name=name)


def outliers(own: Float[np.ndarray, "P K d"], told: Float[np.ndarray, "P m d"]) -> Bool[np.ndarray, "P K"]:
    """Which own responses are farther from the data than 95% of the data's responses are from the rest of them.

    The distance is to the nearest data response to another prompt, on both sides alike.
    """
    prompt = np.repeat(np.arange(len(told)), told.shape[1])
    data = told.reshape(len(prompt), -1)

    def nearest(x: np.ndarray) -> np.ndarray:
        apart = cdist(x.reshape(-1, x.shape[-1]), data)
        apart[np.repeat(np.arange(len(x)), x.shape[1])[:, None] == prompt] = np.inf
        return apart.min(1).reshape(x.shape[:2])

    return nearest(own) > np.quantile(nearest(told), QUANTILE) + 1e-9


def tilt(gaps: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " d"]:
    """The implicit reward's weights that a contrastive loss ends at: logistic regression of chosen over rejected."""

    def loss(v: np.ndarray) -> tuple[float, np.ndarray]:
        m = gaps @ v
        slope = -gaps.T @ expit(-m) / len(gaps) + RIDGE * v
        return float(np.logaddexp(0, -m).mean() + RIDGE / 2 * v @ v), slope

    return minimize(loss, np.zeros(gaps.shape[1]), jac=True, method="L-BFGS-B").x


def predicted(look: Look, *, beta: float = 0.1, name: str = "drift/outside_after") -> Found:
    """The share of responses outside the data after a contrastive run to its end, from the model's own samples.

    They are weighted by exp(tilt / beta), centred within each context. Few carry the weight: the number ranks data
    sets and models (0.7 and more against what came, in `tests/diagnostics/test_drift.py`) and forecasts none of them.
    """
    if len(look.sides) < 2 or len(look) < 16:
        return Refused(name=name, reason="needs pairs for 16 prompts or more")
    own, told = directions(look)
    out = outliers(own, told)
    reward = own @ tilt(told[:, 0] - told[:, 1]) / beta  # [P, K]
    reward = reward - _context_means(reward, look.contexts)[:, None]
    w = np.exp(reward - reward.max())
    found = ratio((w * out).sum(1), w.sum(1), name=name)
    value = float((w * out).sum() / w.sum())  # the jackknife's correction may leave [0, 1]
    low, high = np.clip([found.low, found.high], 0, 1)
    return dataclasses.replace(found, value=value, low=min(float(low), value), high=max(float(high), value))


def _context_means(x: Float[np.ndarray, "P K"], contexts: Sequence[int] | None) -> Float[np.ndarray, " P"]:
    """Mean over the samples to equal prompts."""
    which = np.arange(len(x)) if contexts is None else np.unique(np.asarray(contexts), return_inverse=True)[1]
    return (np.bincount(which, x.mean(1)) / np.bincount(which))[which]


def index(chosen: Float[np.ndarray, " P"], rejected: Float[np.ndarray, " P"], *, name: str = "drift/index") -> Estimate:
    """The tabular law's first step: log-mass outside the data moves by beta sum sigma(-m) (pi(y-) - pi(y+)) a step.

    Here its mean over pairs where no step has been taken (m = 0). Takes probabilities; for whole texts their geometric
    means over tokens stand in. Above zero: rejected responses hold more mass than chosen, so pushing them down frees
    more than the chosen take up.
    """
    return estimate.mean((rejected - chosen) / 2, name=name)
