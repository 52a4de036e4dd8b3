"""The first screen: four questions, each answered from the numbers. Thresholds are ours, and stand here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from modeseek.diagnostics.tails import Found
from modeseek.estimate import Estimate

ALARM = 0.01  # p-value below which data are called off-policy: one false alarm in a hundred
FAR_RANKS, FAR_SUPPORT, FAR_AUC = 0.5, 0.25, 0.9  # any of them: far off-policy
COVERED, HOLED = 0.15, 0.5  # share of own samples outside the data
APART, UNLIKE = 0.98, 0.85  # classifier AUC: supports that hardly meet; that meet in part
PESSIMISTIC, ALIKE, LENGTH, FIRST, LEAVES = 0.55, 0.7, 0.62, 0.65, 0.15
REACHED, UNREACHED = 0.5, 0.25
LINEAR = 0.1

Level = Literal["good", "mixed", "bad"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A question that a practitioner asks, the answer in a word or two, and why."""

    question: str
    level: Level
    answer: str
    why: tuple[str, ...]


def answers(found: Sequence[Found], p_value: float) -> list[Answer]:
    """The four answers."""
    known = {f.name: f.value for f in found if isinstance(f, Estimate)}
    own = on_policy(known, p_value)
    covered = covers(known)
    return [own, covered, contrastive(known, own, covered), next_step(known, own, covered)]


def on_policy(known: Mapping[str, float], p_value: float) -> Answer:
    """Is my data on-policy?"""
    question = "Is my data on-policy?"
    ranks, auc = known["same/logp"], known.get("classifier_auc", 0.5)
    support = max(known.get(f"near_zero_support/{side}", 0.0) for side in ("chosen", "rejected"))
    chance = f"p = {p_value:.2g}" if p_value > 0.001 else "p at most 0.001"
    if p_value >= ALARM:
        why = f"Likelihood and length of the data rank among the model's own samples as its own would ({chance})."
        return Answer(question=question, level="good", answer="Yes, as far as can be told", why=(why,))
    said = (
        f"If your model had written the data, ranks this uneven would not occur ({chance}).",
        f"{support:.0%} of the responses have next to no support under your model; a classifier tells data from own "
        f"samples {auc:.0%} of the time.",
    )
    far = ranks >= FAR_RANKS or support >= FAR_SUPPORT or abs(auc - 0.5) + 0.5 >= FAR_AUC
    if far:
        return Answer(question=question, level="bad", answer="No: far off-policy", why=said)
    return Answer(question=question, level="mixed", answer="Not quite", why=said)


def covers(known: Mapping[str, float]) -> Answer:
    """Does it cover my model?"""
    question = "Does it cover what my model writes?"
    out = known.get("outside_data")
    if out is None:
        return Answer(question=question, level="mixed", answer="Cannot be told", why=("Too few prompts.",))
    why = [f"{out:.0%} of your model's own samples lie outside the data (5% would if it had written them)."]
    if (lever := known.get("leverage")) is not None:
        why.append(f"A reward learnt from these pairs is {lever:.2g} times as uncertain on your model's responses.")
    auc = abs(known.get("classifier_auc", 0.5) - 0.5) + 0.5
    if auc >= UNLIKE:
        why.append(f"A classifier tells the two apart {auc:.0%} of the time: few of its samples look like the data.")
    level: Level = "bad" if out > HOLED or auc >= APART else "mixed" if out > COVERED or auc >= UNLIKE else "good"
    answer = {"good": "Yes", "mixed": "In part", "bad": "No"}[level]
    return Answer(question=question, level=level, answer=answer, why=tuple(why))


def contrastive(known: Mapping[str, float], own: Answer, covered: Answer) -> Answer:
    """What may go wrong with a contrastive run?"""
    question = "What may go wrong with DPO on it?"
    if "pessimistic" not in known:
        return Answer(
            question=question, level="mixed", answer="There are no pairs", why=("DPO compares two responses.",)
        )
    after, now = known.get("drift/outside_after", 0.0), known.get("outside_data", 0.0)
    signs = {
        "Drift": (
            own.level == "bad" or covered.level == "bad" or after - now > LEAVES,
            "the pairs do not say what your model's own responses are worth, and DPO never looks at them: probability "
            "may leave the data for text that nobody compared",
        ),
        "Displacement": (known["edit_similarity"] > ALIKE or known["pessimistic"] > PESSIMISTIC, _displaces(known)),
        "Length": (
            abs(known["longer_is_chosen"] - 0.5) > LENGTH - 0.5,
            f"length alone tells the label of {abs(known['longer_is_chosen'] - 0.5) + 0.5:.0%} of pairs",
        ),
        "A shortcut": (
            known["first_token_accuracy"] > FIRST,
            f"the first token alone tells the label of {known['first_token_accuracy']:.0%} of pairs",
        ),
    }
    raised = {name: why for name, (sign, why) in signs.items() if sign}
    if not raised:
        why = "Chosen and rejected differ, neither length nor the first word gives the label away, and mass stays."
        return Answer(question=question, level="good", answer="Nothing stands out", why=(why,))
    names = " and ".join(", ".join(raised).lower().rsplit(", ", 1)).capitalize()
    level: Level = "bad" if "Drift" in raised else "mixed"
    return Answer(
        question=question, level=level, answer=names, why=tuple(f"{name}: {why}." for name, why in raised.items())
    )


def _displaces(known: Mapping[str, float]) -> str:
    """Why the chosen may fall with the rejected."""
    if known["edit_similarity"] > ALIKE:
        return (
            f"chosen and rejected share {known['edit_similarity']:.0%} of their tokens: pushing the rejected down "
            "pulls the chosen along"
        )
    return (
        f"{known['pessimistic']:.0%} of chosen responses start less likely than their rejected (45% is usual): margins "
        "can grow for long by pushing down alone"
    )


def next_step(known: Mapping[str, float], own: Answer, covered: Answer) -> Answer:
    """What to do next?"""
    question = "What should I do next?"
    reach = _largest(known, "reach/")
    if own.level == "good":
        steps = ("Train DPO; tune beta and when to stop before anything else (`modeseek train dpo`).",)
        return Answer(question=question, level="good", answer="DPO on these pairs", why=steps)
    notes = []
    if (r2 := known.get("reward_linear_r2")) is not None and r2 < LINEAR:
        notes.append(
            "Your reward is not linear in the model's features: a separate reward model and RL suit it better."
        )
    if own.level == "mixed" and covered.level != "bad":
        steps = (
            "HyPO keeps the model near the reference with its own unlabelled samples (`modeseek train hypo`).",
            "Or DPO with a larger beta, and watch the chosen responses' log-probability.",
            *notes,
        )
        return Answer(question=question, level="mixed", answer="HyPO, or a cautious DPO", why=steps)
    if reach is not None and reach >= REACHED:
        steps = (
            f"The best of your model's samples matches the chosen for {reach:.0%} of prompts, and you have a reward.",
            "Sample from your model and label that (`modeseek train online_dpo`, `rloo`): these pairs add little.",
            *notes,
        )
        return Answer(question=question, level="mixed", answer="Learn from its own samples", why=steps)
    why = "The chosen responses are ones that your model would hardly ever write."
    if reach is not None and reach < UNREACHED:
        why = f"Even the best of its samples matches the chosen response for {reach:.0%} of prompts only."
    steps = (
        f"{why} Fine-tune on them (`modeseek train pref_ft`) and run this again.",
        "Then collect pairs from the model's own samples (`modeseek collect`), or use HyPO in place of DPO.",
        *notes,
    )
    return Answer(question=question, level="bad", answer="SFT on the chosen responses first", why=steps)


def _largest(known: Mapping[str, float], prefix: str) -> float | None:
    sizes = [int(name.removeprefix(prefix)) for name in known if name.startswith(prefix)]
    return known[f"{prefix}{max(sizes)}"] if sizes else None
