"""The states of a run, in words: what each is called, the remedy, and what a run must measure to show it. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["too early", "healthy", "displacement", "drift", "collapse", "over-optimisation"]

TITLES: Mapping[str, str] = {
    "too early": "too early to say",
    "healthy": "healthy margin growth",
    "displacement": "likelihood displacement",
    "drift": "drift out of distribution",
    "collapse": "collapse",
    "over-optimisation": "over-optimisation of the proxy",
}
REMEDIES: Mapping[str, str] = {
    "too early": "go on; held-out evaluation every few steps (eval_steps) shows more",
    "healthy": "go on",
    "displacement": "add an SFT term on the chosen (DPOP, RPO), drop the pairs of highest CHES, or sample on policy",
    "drift": "add reverse KL on fresh samples (HyPO), raise beta, or stop and collect pairs of the model's own samples",
    "collapse": "lower the learning rate, add KL or entropy, or go back to the last checkpoint before it",
    "over-optimisation": "go back to the checkpoint where the held-out score was best; more KL, or a new reward model",
}
SICK = ("displacement", "drift", "collapse", "over-optimisation")
OF_PAIRS = ("displacement", "drift")  # states of runs that learn from pairs


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the rows up to `step` say."""

    state: State
    step: int
    evidence: tuple[str, ...]  # sentences
    blind: tuple[str, ...] = ()  # what could not be seen, and which metric would show it

    @property
    def title(self) -> str:
        """The state in words."""
        return TITLES[self.state]

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return REMEDIES[self.state]

    def __str__(self) -> str:
        shown = "; ".join(self.evidence)
        return f"{self.title}: {shown}. {self.remedy[:1].upper()}{self.remedy[1:]}." if shown else self.title


def told(verdict: Verdict) -> dict[str, Any]:
    """A state as a run's card and diagnosis.json keep it."""
    return {
        "state": verdict.state,
        "title": verdict.title,
        "step": verdict.step,
        "evidence": list(verdict.evidence),
        "blind": list(verdict.blind),
        "remedy": verdict.remedy,
    }


def refuse_unknown(stop_on: Sequence[str]) -> None:
    """Refuse what is no sick state."""
    if unknown := sorted(set(stop_on) - set(SICK)):
        raise ValueError(f"stop_on: {unknown[0]!r}, expected some of {', '.join(SICK)}")


def refuse_blind(stop_on: Sequence[str], *, pairs: bool, samples: bool, score: bool, rewarded: bool = False) -> None:
    """Refuse to end a run on a state that it will not show. `pairs`: held-out pairs or trained ones are measured;
    `samples`: held-out prompts are answered, against a reference; `score`: by what is not trained on; `rewarded`: the
    run learns from a reward of its own samples."""
    needs = {
        "displacement": (pairs, "pairs to measure; the data have one response to a prompt"),
        "drift": (pairs and samples, "pairs, eval_steps, eval_prompts and measure_kl"),
        "collapse": (samples, "held-out samples; write eval_steps and eval_prompts above 0, and measure_kl: true"),
        "over-optimisation": (score and samples, "a held-out score that is not trained on; write --gold-reward SPEC"),
    }
    for state in stop_on:
        if rewarded and state in OF_PAIRS:
            raise ValueError(
                f"stop_on: {state} is not named in this run: it learns from a reward of its own samples, and may leave"
                " the pairs; write collapse or over-optimisation"
            )
        seen, missing = needs[state]
        if not seen:
            raise ValueError(f"stop_on: {state} cannot be seen in this run, which lacks {missing}")
