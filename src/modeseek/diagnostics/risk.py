"""What a contrastive run on these pairs may do wrong: displacement, drift, shortcuts in place of quality."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit

from modeseek import estimate
from modeseek.diagnostics import drift
from modeseek.diagnostics.look import Look
from modeseek.diagnostics.tails import Found, Refused, jackknife
from modeseek.estimate import Estimate

SATURATED = 5.0  # an implied margin that hardly learns any more
BINS = 10


def risk(look: Look, *, beta: float = 0.1) -> list[Found]:
    """The section's numbers; data without pairs give one refusal."""
    if len(look.sides) < 2:
        return [Refused(name="risk", reason="needs pairs: a contrastive loss compares two responses")]
    base = look.told_logp if look.told_ref_logp is None else look.told_ref_logp
    per_token = base / look.told_length
    ches, ln_ches = hidden_similarity(look.told_predicting, look.told_length)
    firsts = np.array([[tokens[0] for tokens in pair] for pair in look.told_tokens])
    return [
        estimate.share((base[:, 0] < base[:, 1]).astype(np.float64), name="pessimistic"),
        estimate.share(_beats(per_token), name="reference_accuracy"),
        estimate.mean(ches, name="ches"),
        estimate.mean(ln_ches, name="ches/length_normalised"),
        estimate.share(similarity(look.told_tokens), name="edit_similarity"),
        drift.index(*np.exp(per_token).T),
        drift.predicted(look, beta=beta),
        estimate.share(_beats(look.told_length), name="longer_is_chosen"),
        estimate.share(first_token_accuracy(firsts), name="first_token_accuracy"),
        *implied_margins(look, beta),
    ]


def _beats(x: Float[np.ndarray, "P 2"]) -> Float[np.ndarray, " P"]:
    """1 where the chosen response has more, 1/2 where both have as much."""
    return (1 + np.sign(x[:, 0] - x[:, 1])) / 2


def hidden_similarity(
    predicting: Float[np.ndarray, "P 2 H"], length: Float[np.ndarray, "P 2"]
) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """CHES and its length-normalised form (2410.08847, definitions 2 and 3): <S+, S-> - |S+|^2, S the sum of the hidden
    states that predict a response's tokens. Higher: the pair pushes the chosen down with the rejected. Zero for single
    tokens, whose S is the prompt's."""
    chosen, rejected = predicting[:, 0], predicting[:, 1]
    inner, norm = (chosen * rejected).sum(1), (chosen**2).sum(1)
    a, b = length.T
    return inner - norm, inner / (a * b) - norm / a**2


def similarity(tokens: Sequence[Sequence[Sequence[int]]]) -> Float[np.ndarray, " P"]:
    """The share of tokens that chosen and rejected have in common, in order (Ratcliff and Obershelp)."""
    return np.array([SequenceMatcher(None, a, b, autojunk=False).ratio() for a, b in tokens])


def first_token_accuracy(first: np.ndarray) -> Float[np.ndarray, " P"]:
    """Whether the first tokens alone tell which response was chosen, each pair judged by counts of all the others.

    The score of a token is log (chosen + 1) / (rejected + 1). Leaving one out errs below 1/2 where there is nothing.
    """
    size = int(first.max()) + 1
    counts = np.stack([np.bincount(first[:, k], minlength=size) for k in (0, 1)])  # [2, V]
    won, lost = first.T
    same = won == lost
    score = lambda token, mine: (
        np.log(counts[0][token] + 1 - (mine == 0) - (same & (mine == 1)))
        - np.log(counts[1][token] + 1 - (mine == 1) - (same & (mine == 0)))
    )
    gap = score(won, 0) - score(lost, 1)
    return (1 + np.sign(np.where(same, 0.0, gap))) / 2


def implied_margins(look: Look, beta: float) -> list[Found]:
    """What the model, trained against the reference, already says of the pairs: m = beta (h+ - h-)."""
    names = ("margin_accuracy", "margin_calibration_error", "margin_saturated", "displaced")
    if look.told_ref_logp is None:
        reason = "the model is its own reference, so every margin is zero; give --reference for a trained one"
        return [Refused(name=name, reason=reason) for name in names]
    h = look.told_logp - look.told_ref_logp
    m = beta * (h[:, 0] - h[:, 1])
    return [
        estimate.share((1 + np.sign(m)) / 2, name="margin_accuracy"),
        calibration_error(m),
        estimate.share((m > SATURATED).astype(np.float64), name="margin_saturated"),
        estimate.share((h[:, 0] < 0).astype(np.float64), name="displaced"),
    ]


def calibration_error(m: Float[np.ndarray, " P"], *, name: str = "margin_calibration_error") -> Estimate:
    """How far sigma(|m|), the confidence, is from how often the margin's sign is right, in ten equal bins.

    A mean of absolute values, so biased upwards, by about sqrt(bins / n) / 4 where all is well.
    """
    sure, right = expit(np.abs(m)), (1 + np.sign(m)) / 2
    bins = np.minimum(((sure - 0.5) * 2 * BINS).astype(int), BINS - 1)

    def error(at: Int[np.ndarray, " p"]) -> float:
        return float(np.abs(np.bincount(bins[at], (right - sure)[at], minlength=BINS)).sum() / len(at))

    value = error(np.arange(len(m)))
    found = jackknife(error, len(m), name=name)  # its centre may lie below zero: an absolute value has a kink there
    return dataclasses.replace(found, value=value, low=min(max(found.low, 0.0), value), high=max(found.high, value))
