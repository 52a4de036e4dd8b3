"""What a run is doing, from its logged rows: its state, and what shows it. No torch.

A margin grows in a healthy run and in a sick one alike (2410.08847: both responses fall; 2406.01462: mass leaves
the data where nothing was compared). Four more numbers tell them apart: the chosen responses' log-probability; the
entropy of fresh samples; their surprise, -log pi_ref, which is entropy + KL; and a score that is not trained on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modeseek.diagnostics.series import Rows, change, finite, late, mean, named, noise, rise, series
from modeseek.diagnostics.states import State, Verdict, refuse_unknown

# Tuned on the worlds of `tuned_on` in `tests/diagnostics/run_worlds.py`, judged on those of `judged_on`.
FALL = 0.15  # nats (and this share of the margin's growth in nats) that chosen responses may lose in health
FALL_SHARE = 0.01  # of the chosen's own log-probability: whole texts have hundreds of nats
NOISY = 3.0  # standard errors of the fall
SURPRISE = 0.2  # of the start's surprise, and half a nat: more, and fresh samples are what the reference hardly writes
ENTROPY = 0.3  # of the start's entropy, or of the start's length: less, and the policy has collapsed
LOSS_OF_SCORE = 0.15  # of its range, and three standard errors: the held-out score has turned
TIES = 0.9  # share of groups whose samples all have one reward

SCORES = ("eval/gold_reward", "eval/win_rate", "eval/reward")  # not trained on, the surest first


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
    trained = series(rows, "reward", bare=True) or series(rows, "rewards/margins", bare=True)
    if name is None or len(trained) < 3:
        return None
    values = named(rows, name)
    w = max(2, len(values) // 4)
    means = [mean(values[i : i + w]) for i in range(len(values) - w + 1)]
    if len(means) < 3:
        return None
    best, now = max(means), means[-1]
    chance = noise(values) * math.sqrt(2 / w)  # the standard error of a difference of two means
    turned = best - now > max(LOSS_OF_SCORE * (best - min(means)), 3 * chance) > 0
    if turned and rise(trained) > 0 and means.index(best) < len(means) - 1:
        return "over-optimisation", (
            f"{name} fell from {best:.3g} to {now:.3g} while what is trained on rose by {rise(trained):.3g}",
        )
    return None


def _collapsed(rows: Rows) -> tuple[State, tuple[str, ...]] | None:
    entropy = _entropy(rows)
    if len(entropy) >= 3 and entropy[0] > 0 and late(entropy) < ENTROPY * entropy[0]:
        return "collapse", (f"the entropy of fresh samples fell from {entropy[0]:.3g} to {late(entropy):.3g} nats",)
    length = series(rows, "completions/mean_length")
    if len(length) >= 3 and late(length) < ENTROPY * length[0]:
        return "collapse", (f"fresh samples shrank from {length[0]:.3g} to {late(length):.3g} tokens",)
    ties = series(rows, "frac_reward_zero_std", bare=True)
    if len(ties) >= 5 and late(ties) > TIES and ties[0] < TIES / 2:
        return "collapse", (f"in {late(ties):.0%} of groups all samples have the same reward",)
    return None


def _drifted(rows: Rows) -> tuple[State, tuple[str, ...]] | None:
    """Fresh samples that the reference hardly writes, and that are not the chosen ones: their log-ratio, the KL, has
    left that of the chosen behind."""
    surprise, chosen, kl = _surprise(rows), series(rows, "logps/chosen"), series(rows, "kl")
    if min(len(surprise), len(kl), len(chosen)) < 3:
        return None
    climb, gained = late(surprise) - surprise[0], max(0.0, change(chosen))
    if climb > max(0.5, SURPRISE * abs(surprise[0])) and late(kl) - gained > 0.5:
        said = f"fresh samples cost the reference {climb:.3g} nats more than its own ({late(surprise):.3g})"
        moved = _chosen_moved(rows)
        return "drift", (
            said,
            f"{moved}, the samples by {late(kl):.3g}" if moved else f"their KL is {late(kl):.3g} nats",
        )
    return None


def _displaced(rows: Rows) -> tuple[State, tuple[str, ...]] | None:
    chosen = series(rows, "logps/chosen")
    if len(chosen) >= 3 and rise(series(rows, "rewards/margins")) > 0 and _falls(rows, chosen):
        return "displacement", (
            f"margins grew by {rise(series(rows, 'rewards/margins')):.3g}",
            f"yet the chosen responses lost {-change(chosen):.3g} nats",
        )
    return None


def _healthy(rows: Rows) -> tuple[State, tuple[str, ...]] | None:
    margins = series(rows, "rewards/margins")
    if len(margins) >= 3 and rise(margins) > 2 * noise(margins) / math.sqrt(max(1, len(margins) // 4)):
        said = (f"margins grew by {rise(margins):.3g}", _chosen_moved(rows))
        return "healthy", ("; ".join(filter(None, said)),)
    reward = series(rows, "reward")
    if len(reward) >= 3 and rise(reward) > 2 * noise(reward) / math.sqrt(max(1, len(reward) // 4)):
        return "healthy", (f"the reward grew by {rise(reward):.3g}",)
    return None


def _chosen_moved(rows: Rows) -> str:
    """How far the chosen moved, where they are the data's in every row. Nothing where they may be fresh samples, of
    which each round has others: then a reward chose them, or no pair was told."""
    trained = len(named(rows, "eval/logps/chosen")) < 3  # as `series` has it
    if trained and any("sample_age" in row and ("reward" in row or "rewards/margins" not in row) for row in rows):
        return ""
    chosen = series(rows, "logps/chosen")
    return f"the chosen moved by {change(chosen):+.3g} nats" if chosen else ""


def _falls(rows: Rows, chosen: Sequence[float]) -> bool:
    """Whether the chosen fell by more than a little: in nats, of their size, of their distance to the rejected, and of
    what rows differ by, for each training row has other pairs."""
    if len(chosen) < 4:
        return False
    rejected = series(rows, "logps/rejected")
    apart = abs(change(chosen) - change(rejected)) if len(rejected) >= 3 else 0.0
    last, first = max(1, len(chosen) // 4), max(1, len(chosen) // 10)  # rows of each mean
    chance = NOISY * noise(chosen) * math.sqrt(1 / last + 1 / first)
    return -change(chosen) > max(FALL, FALL * apart, FALL_SHARE * abs(chosen[0]), chance)


def _rewarded(rows: Rows) -> bool:
    """Whether a reward of its own samples is what the run learns from. It may leave the pairs: neither its samples'
    surprise nor the chosen's fall is a sickness."""
    return any("sample_age" in row and "reward" in row for row in rows)


def _score_name(rows: Rows) -> str | None:
    """A held-out score; where a reward is trained on, that reward on held-out prompts is none."""
    trained_on_reward = bool(series(rows, "reward", bare=True))
    for name in SCORES:
        if len(named(rows, name)) >= 5 and not (name == "eval/reward" and trained_on_reward):
            return name
    return None


def _no_score(rows: Rows) -> str:
    missing = "over-optimisation: no held-out score that is not trained on (gold_reward, or eval/win_rate)"
    return "" if _score_name(rows) else missing


def _no_samples(rows: Rows) -> str:
    return "" if len(_surprise(rows)) >= 3 else "drift and collapse: no eval/surprise and eval/kl of fresh samples"


def _surprise(rows: Rows) -> list[float]:
    """-log pi_ref of fresh responses, in nats."""
    return series(rows, "surprise")


def _entropy(rows: Rows) -> list[float]:
    """Of fresh responses: as logged, or surprise - KL, in nats."""
    both = [
        row["eval/surprise"] - row["eval/kl"]
        for row in rows
        if finite(row.get("eval/surprise")) and finite(row.get("eval/kl"))
    ]
    return both if len(both) >= 3 else series(rows, "entropy")
