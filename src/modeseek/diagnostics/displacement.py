"""What a run is doing, from its logged rows: a state, what shows it, and the remedy. No torch.

A margin grows in a healthy run and in a sick one alike (2410.08847: both responses fall; 2406.01462: mass leaves
the data where nothing was compared). Four more numbers tell them apart: the chosen responses' log-probability; the
entropy of fresh samples; their surprise, -log pi_ref, which is entropy + KL; and a score that is not trained on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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

# Tuned on the worlds of `tuned_on` in `tests/diagnostics/run_worlds.py`, judged on those of `judged_on`.
FALL = 0.15  # nats (and this share of the margin's growth in nats) that chosen responses may lose in health
FALL_SHARE = 0.01  # of the chosen's own log-probability: whole texts have hundreds of nats
NOISY = 3.0  # standard errors of the fall
SURPRISE = 0.2  # of the start's surprise, and half a nat: more, and fresh samples are what the reference hardly writes
ENTROPY = 0.3  # of the start's entropy, or of the start's length: less, and the policy has collapsed
LOSS_OF_SCORE = 0.15  # of its range, and three standard errors: the held-out score has turned
TIES = 0.9  # share of groups whose samples all have one reward

SCORES = ("eval/gold_reward", "eval/win_rate", "eval/reward")  # not trained on, the surest first
Rows = Sequence[Mapping[str, Any]]


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


@dataclass
class Watch:
    """Name the state as a run goes on; asked to, stop it once a sick state has been named several times running.

    It is a watch of `train.fit`; a resumed run gives it its earlier `rows`. A row with held-out numbers is judged at
    once, others each time that the rows have grown by a fiftieth, so that a long run does not pay for every step.
    """

    stop_on: tuple[str, ...] = ()  # sick states that end a run
    patience: int = 3  # verdicts of the same state before the run is stopped
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    verdict: Verdict | None = None
    _named: int = 0
    _judged: int = 0  # rows at the last verdict

    def __post_init__(self) -> None:
        refuse_unknown(self.stop_on)

    def __call__(self, loop: object, row: Mapping[str, Any]) -> bool:
        self.rows.append(dict(row))
        if not any(name.startswith("eval/") for name in row) and len(self.rows) < self._judged * 1.02:
            return False
        self._judged = len(self.rows)
        found = name_state(self.rows)
        same = self.verdict is not None and found.state == self.verdict.state
        self._named = self._named + 1 if same else 1
        self.verdict = found
        return found.state in self.stop_on and self._named >= self.patience


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


def name_state(rows: Rows) -> Verdict:
    """The state of a run from its rows so far (`record.read(path).rows`, or what a watch was given).

    Held-out numbers (`eval/...`) are taken where there are three of them, else those of training. The surest sign goes
    first: a held-out score that falls while the trained one rises, then the samples, then the pairs.
    """
    step = max((int(row["step"]) for row in rows), default=0)
    of_pairs = () if _rewarded(rows) else (_drifted, _displaced)
    checks = (_over_optimised, _collapsed, *of_pairs, _healthy)
    blind = tuple(text for text in (_no_score(rows), _no_samples(rows)) if text)
    for check in checks:
        if (found := check(rows)) is not None:
            state, evidence = found
            return Verdict(state=state, step=step, evidence=evidence, blind=blind)
    return Verdict(state="too early", step=step, evidence=(), blind=blind)


def _over_optimised(rows: Rows) -> tuple[State, tuple[str, ...]] | None:
    name = _score_name(rows)
    trained = _series(rows, "reward", bare=True) or _series(rows, "rewards/margins", bare=True)
    if name is None or len(trained) < 3:
        return None
    values = _named(rows, name)
    w = max(2, len(values) // 4)
    means = [_mean(values[i : i + w]) for i in range(len(values) - w + 1)]
    if len(means) < 3:
        return None
    best, now = max(means), means[-1]
    noise = _noise(values) * math.sqrt(2 / w)
    turned = best - now > max(LOSS_OF_SCORE * (best - min(means)), 3 * noise) > 0
    if turned and _rise(trained) > 0 and means.index(best) < len(means) - 1:
        return "over-optimisation", (
            f"{name} fell from {best:.3g} to {now:.3g} while what is trained on rose by {_rise(trained):.3g}",
        )
    return None


def _collapsed(rows: Rows) -> tuple[State, tuple[str, ...]] | None:
    entropy = _entropy(rows)
    if len(entropy) >= 3 and entropy[0] > 0 and _late(entropy) < ENTROPY * entropy[0]:
        return "collapse", (f"the entropy of fresh samples fell from {entropy[0]:.3g} to {_late(entropy):.3g} nats",)
    length = _series(rows, "completions/mean_length")
    if len(length) >= 3 and _late(length) < ENTROPY * length[0]:
        return "collapse", (f"fresh samples shrank from {length[0]:.3g} to {_late(length):.3g} tokens",)
    ties = _series(rows, "frac_reward_zero_std", bare=True)
    if len(ties) >= 5 and _late(ties) > TIES and ties[0] < TIES / 2:
        return "collapse", (f"in {_late(ties):.0%} of groups all samples have the same reward",)
    return None


def _drifted(rows: Rows) -> tuple[State, tuple[str, ...]] | None:
    """Fresh samples that the reference hardly writes, and that are not the chosen ones: their log-ratio, the KL, has
    left that of the chosen behind."""
    surprise, chosen, kl = _surprise(rows), _series(rows, "logps/chosen"), _series(rows, "kl")
    if min(len(surprise), len(kl), len(chosen)) < 3:
        return None
    rise, gained = _late(surprise) - surprise[0], max(0.0, _change(chosen))
    if rise > max(0.5, SURPRISE * abs(surprise[0])) and _late(kl) - gained > 0.5:
        said = f"fresh samples cost the reference {rise:.3g} nats more than its own ({_late(surprise):.3g})"
        return "drift", (said, f"the chosen moved by {_change(chosen):+.3g} nats, the samples by {_late(kl):.3g}")
    return None


def _displaced(rows: Rows) -> tuple[State, tuple[str, ...]] | None:
    chosen = _series(rows, "logps/chosen")
    if len(chosen) >= 3 and _rise(_series(rows, "rewards/margins")) > 0 and _falls(rows, chosen):
        return "displacement", (
            f"margins grew by {_rise(_series(rows, 'rewards/margins')):.3g}",
            f"yet the chosen responses lost {-_change(chosen):.3g} nats",
        )
    return None


def _healthy(rows: Rows) -> tuple[State, tuple[str, ...]] | None:
    margins, chosen = _series(rows, "rewards/margins"), _series(rows, "logps/chosen")
    if len(margins) >= 3 and _rise(margins) > 2 * _noise(margins) / math.sqrt(max(1, len(margins) // 4)):
        kept = f"; the chosen moved by {_change(chosen):+.3g} nats" if chosen else ""
        return "healthy", (f"margins grew by {_rise(margins):.3g}{kept}",)
    reward = _series(rows, "reward")
    if len(reward) >= 3 and _rise(reward) > 2 * _noise(reward) / math.sqrt(max(1, len(reward) // 4)):
        return "healthy", (f"the reward grew by {_rise(reward):.3g}",)
    return None


def _falls(rows: Rows, chosen: Sequence[float]) -> bool:
    """Whether the chosen fell by more than a little: in nats, of their size, of their distance to the rejected, and of
    what rows differ by, for each training row has other pairs."""
    if len(chosen) < 4:
        return False
    rejected = _series(rows, "logps/rejected")
    apart = abs(_change(chosen) - _change(rejected)) if len(rejected) >= 3 else 0.0
    late, early = max(1, len(chosen) // 4), max(1, len(chosen) // 10)
    chance = NOISY * _noise(chosen) * math.sqrt(1 / late + 1 / early)
    return -_change(chosen) > max(FALL, FALL * apart, FALL_SHARE * abs(chosen[0]), chance)


def _rewarded(rows: Rows) -> bool:
    """Whether a reward of its own samples is what the run learns from. It may leave the pairs: neither its samples'
    surprise nor the chosen's fall is a sickness."""
    return any("sample_age" in row and "reward" in row for row in rows)


def _score_name(rows: Rows) -> str | None:
    """A held-out score; where a reward is trained on, that reward on held-out prompts is none."""
    trained_on_reward = bool(_series(rows, "reward", bare=True))
    for name in SCORES:
        if len(_named(rows, name)) >= 5 and not (name == "eval/reward" and trained_on_reward):
            return name
    return None


def _no_score(rows: Rows) -> str:
    missing = "over-optimisation: no held-out score that is not trained on (gold_reward, or eval/win_rate)"
    return "" if _score_name(rows) else missing


def _no_samples(rows: Rows) -> str:
    return "" if len(_surprise(rows)) >= 3 else "drift and collapse: no eval/surprise and eval/kl of fresh samples"


def _surprise(rows: Rows) -> list[float]:
    """-log pi_ref of fresh responses, in nats."""
    return _series(rows, "surprise")


def _entropy(rows: Rows) -> list[float]:
    """Of fresh responses: as logged, or surprise - KL, in nats."""
    both = [
        row["eval/surprise"] - row["eval/kl"]
        for row in rows
        if _finite(row.get("eval/surprise")) and _finite(row.get("eval/kl"))
    ]
    return both if len(both) >= 3 else _series(rows, "entropy")


def _series(rows: Rows, name: str, *, bare: bool = False) -> list[float]:
    held = [] if bare else _named(rows, f"eval/{name}")
    return held if len(held) >= 3 else _named(rows, name)


def _named(rows: Rows, name: str) -> list[float]:
    return [float(row[name]) for row in rows if _finite(row.get(name))]


def _finite(x: Any) -> bool:
    return isinstance(x, int | float) and math.isfinite(x)


def _late(x: Sequence[float]) -> float:
    """The mean of the last quarter."""
    return _mean(x[-max(1, len(x) // 4) :])


def _change(x: Sequence[float]) -> float:
    """From the start to the last quarter."""
    return _late(x) - _early(x)


def _early(x: Sequence[float]) -> float:
    """The mean of the first tenth, at least of one."""
    return _mean(x[: max(1, len(x) // 10)])


def _rise(x: Sequence[float]) -> float:
    return _change(x) if len(x) >= 3 else 0.0


def _noise(x: Sequence[float]) -> float:
    """The standard deviation of a point about its neighbours, from second differences, whose variance is 6 sigma^2."""
    if len(x) < 4:
        return 0.0
    second = [x[i] - 2 * x[i + 1] + x[i + 2] for i in range(len(x) - 2)]
    return math.sqrt(_mean([s * s for s in second]) / 6)


def _mean(x: Sequence[float]) -> float:
    return sum(x) / len(x)
