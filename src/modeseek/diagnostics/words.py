# ruff: noqa: E501 - a sentence a line
"""Each number in a plain sentence, for somebody who knows DPO and has not read the papers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from modeseek.diagnostics.tails import Found, Refused

# {v}: the value; {p}: as a percentage; {t}: what the name ends in. A name, or its part before the last "/".
SENTENCES: Mapping[str, str] = {
    "pit": "By likelihood per token, {t} responses rank at {p} among own samples; 50% if the model wrote them.",
    "ks": "The ranks of {t} responses among own samples are {v} away from even (0 if it wrote them).",
    "near_zero_support": (
        "{p} of {t} responses lie more than 3 standard deviations below what the model typically writes."
    ),
    "typicality": "{T} responses lie {v} standard deviations below the model's typical response.",
    "same/logp": "Both responses of a pair together: their likelihood ranks are {v} away from even.",
    "same/length": "Both responses of a pair together: their length ranks among own samples are {v} away from even.",
    "longer_by_tokens": "Data responses are {a} tokens {longer} than own samples (cut off at the same limit).",
    "classifier_auc": "A linear classifier ranks a data response above an own one {p} of the time; 50% is chance.",
    "support_gap": "{T} responses cost the model {v} nats a token more than its own samples.",
    "rare_tokens": "{p} of the tokens of {t} responses get less than 1 in 1000 from the model.",
    "linear_coverage": (
        "In the direction where the pairs tell least, own pairs vary {v} times as much as the data's (1: covered)."
    ),
    "leverage": "A linear reward learnt from the pairs is {v} times as uncertain on own pairs as on the data's.",
    "leverage/95%": "For one own pair in twenty it is {v} times as uncertain, or more.",
    "effective_dimension": "Differences between the responses of a pair ({t}) spread over about {v} directions.",
    "outside_data": "{p} of the model's own samples lie outside the data; about 5% would if the data were its own.",
    "profile": "{p} of own samples are at least {t} times as likely under the model as under the reference.",
    "kl/k1": "The model is {v} nats from the reference (plain average of log-ratios).",
    "kl/k2": "Half the mean squared log-ratio is {v} (a biased KL whose gradient is right).",
    "kl/k3": "The model is {v} nats from the reference (the estimator that cannot be negative).",
    "kl/rao_blackwell": "The model is {v} nats from the reference (exact at each token: trust this one).",
    "kl/forward": "The reference is {v} nats from the model, the other way round.",
    "ess": "A sample of the model is worth {p} of a sample of the reference.",
    "reward/own": "Own samples have a mean reward of {v}.",
    "reward/chosen_less_own": "Chosen responses are worth {v} more than own samples.",
    "reward/rejected_less_own": "Rejected responses are worth {v} more than own samples.",
    "best_of": "The best of {t} own samples has a mean reward of {v}.",
    "reach": "The best of {t} own samples is as good as the chosen response for {p} of prompts.",
    "peak_rank": (
        "The best own sample is more likely than {p} of the others; well below 50%, reward lies where the "
        "model rarely goes."
    ),
    "target_kl": "What RL would aim at ({t}) is {v} nats away.",
    "target_ess": "A sample of the model is worth {p} of a sample of what RL would aim at ({t}).",
    "reward_linear_r2": "{p} of the reward's differences between answers are linear in the model's features.",
    "pessimistic": "In {p} of pairs the reference finds the rejected response the more likely one (45% is usual).",
    "reference_accuracy": "Per token, the reference already prefers the chosen response in {p} of pairs.",
    "ches": "Chosen and rejected overlap by {v} in hidden states (CHES; higher: more likelihood displacement).",
    "ches/length_normalised": (
        "Per token their overlap less the chosen's own length is {v} (nearer 0 from below: more displacement)."
    ),
    "edit_similarity": "Chosen and rejected share {p} of their tokens in order.",
    "drift/index": "At the first step, mass leaves the pairs at rate {v} (below zero: it gathers on them).",
    "drift/outside_after": (
        "A contrastive run to its end would put {p} of the mass outside the data (a ranking, not a forecast)."
    ),
    "longer_is_chosen": "The chosen response is the longer one in {p} of pairs: what length alone would learn.",
    "first_token_accuracy": "The first token alone tells the chosen response in {p} of pairs.",
    "margin_accuracy": "The implied reward already orders {p} of pairs rightly.",
    "margin_calibration_error": "Its confidence is off by {v} on average.",
    "margin_saturated": "{p} of pairs have an implied margin above 5 and hardly teach any more.",
    "displaced": "{p} of chosen responses are less likely than under the reference: displacement.",
}
LABELS: Mapping[str, str] = {
    "pit": "mean rank",
    "ks": "rank distance",
    "same/logp": "rank distance, pair",
    "same/length": "length distance, pair",
    "near_zero_support": "near-zero support",
    "longer_by_tokens": "longer than own",
    "classifier_auc": "classifier AUC",
    "outside_data": "own samples outside the data",
    "profile": "coverage profile",
    "ess": "effective sample size",
    "ches": "CHES",
    "ches/length_normalised": "CHES, per token",
    "drift/index": "drift index",
    "drift/outside_after": "drift, predicted",
    "reward_linear_r2": "reward linear in features (R2)",
}
SHARES = frozenset(stem for stem, sentence in SENTENCES.items() if "{p}" in sentence) | {
    "ks",
    "same/logp",
    "same/length",
}


class Words(NamedTuple):
    """How a number is shown."""

    label: str
    sentence: str
    share: bool  # between 0 and 1: can be drawn on that scale


def words(found: Found) -> Words:
    """The label and the sentence of a number, or of its refusal."""
    stem, tail = _stem(found.name)
    label = LABELS.get(stem, stem.replace("_", " ").replace("/", ": "))
    label = label if not tail else f"{label}{' ' if tail.isdigit() else ', '}{tail.removeprefix('source=')}"
    if isinstance(found, Refused):
        return Words(label, f"Not given: {found.reason}.", False)
    source = tail.removeprefix("source=")
    if source != tail:
        sentence = f"What {source} wrote ranks at {found.value:.0%} by likelihood among own samples; 50% if the model wrote it."
        return Words(label, sentence, True)
    shown = {"v": f"{found.value:.3g}", "a": f"{abs(found.value):.3g}", "p": f"{found.value:.0%}"}
    shown |= {"t": tail, "T": tail[:1].upper() + tail[1:], "longer": "longer" if found.value >= 0 else "shorter"}
    return Words(label, SENTENCES[stem].format(**shown), stem in SHARES)


def _stem(name: str) -> tuple[str, str]:
    if name in SENTENCES:
        return name, ""
    stem, _, tail = name.partition("/")
    if "source=" in name or stem in SENTENCES:
        return stem, tail
    return name, ""
