"""One evaluation from the policies' names to what was found: sample each once, score, judge, compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from modeseek.batch import Batch
from modeseek.estimate import Estimate
from modeseek.evaluate.compare import answer
from modeseek.evaluate.exhibit import exhibit, row, rows
from modeseek.evaluate.frontier import BestOf, best_of_n
from modeseek.evaluate.judged import judged, measure, with_wins
from modeseek.evaluate.several import Several, several
from modeseek.evaluate.sides import Side, as_asked, measured
from modeseek.policies.base import Policy
from modeseek.rewards import AnyReward, Comparison, Decoder, Judge, Prompts, Reward, build_reward
from modeseek.sources import Data

HARDLY = 0.1  # share of a policy's responses that end by themselves, up to which a note says so


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a trial found. `rows` are for printing, `notes` what a reader should know of them."""

    several: Several
    rows: list[dict[str, Any]]
    best_of: tuple[BestOf, ...] = ()
    judge: Mapping[str, int] | None = None
    notes: tuple[str, ...] = ()
    cut_off: tuple[str, ...] = ()  # whose responses hardly ever end by themselves


@dataclass(kw_only=True)
class Trial:
    """Policies against baselines on the same prompts. Only the reference and one other model are in memory at a time.

    `opened` loads a policy by its name; `reference` is the first baseline, already open.
    """

    policies: Sequence[str]
    baselines: Sequence[str]
    opened: Callable[[str], Policy]
    reference: Policy
    prompts: Data
    texts: Prompts
    decoder: Decoder
    reward: AnyReward
    gold: AnyReward | None = None
    together: str = "seeds"
    samples_per_prompt: int = 1
    best_of: int = 0
    batch_size: int = 32
    seed: int = 0
    temperature: float = 1.0
    sides: Mapping[str, Side] = field(default_factory=dict)  # of those that read otherwise than the first baseline
    found: Found | None = field(default=None, init=False)

    def run(self) -> Found:
        """Sample, score and compare; the result stays in `found`."""
        self._refuse()
        # The baselines' samples depend on no policy, and all streams are apart: common ones would make ties.
        places = np.random.SeedSequence(self.seed).generate_state(len(self.policies) + len(self.baselines) + 1)
        seeds = [int(x) for x in places]
        total = len(self.prompts) * (len(self.policies) + len(self.baselines) + (self.best_of > 0))
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("sampling", total=total)
            tick = lambda n: bar.advance(task, n)
            theirs = {b: self._answers(b, s, tick) for b, s in zip(self.baselines, seeds[1:], strict=False)}
            at = [seeds[0], *seeds[1 + len(self.baselines) : -1]]
            ours = {p: self._answers(p, s, tick, kl=True) for p, s in zip(self.policies, at, strict=True)}
            curves = self._best_of(theirs[self.baselines[0]], seeds[-1], tick) if self.best_of else ()
        wins, counts = dict[tuple[str, str], np.ndarray](), None
        if isinstance(self.reward, Judge):
            ours, theirs, wins, counts = self._judged(ours, theirs)
        compared = several(
            ours,
            theirs,
            together=self.together,
            gold="gold" if self.gold else "",
            seed=self.seed,
            wins=wins,
        )
        told = rows(compared, judged=counts is not None) + _curve_rows(curves)
        cut, notes = tuple(self._cut_off(told)), self._notes(compared, counts)
        if cut:
            notes.append(
                f"{', '.join(cut)}: nearly all responses are cut off at the limit of tokens: rewards, lengths are of "
                "pieces; raise max_completion_length"
            )
        self.found = Found(several=compared, rows=told, best_of=curves, judge=counts, notes=tuple(notes), cut_off=cut)
        return self.found

    def exhibit(self, title: str, told: Mapping[str, Any], tasks: Sequence[Estimate] = ()) -> dict[str, Any]:
        """All that a page shows, after `run`."""
        assert self.found is not None
        return exhibit(
            self.found.several,
            self.decoder,
            title=title,
            told=told,
            best_of=self.found.best_of,
            tasks=tasks,
            judge=self.found.judge,
            our_decoder=self._decoder(self.policies[0]),
        ) | {"cut_off": list(self.found.cut_off)}

    def _refuse(self) -> None:
        for key, config in (("reward", self.reward), ("gold", self.gold)):
            if config is not None:
                measure(config, key)
        if self.together == "checkpoints" and (others := [p for p in self.policies if p in self.sides]):
            raise ValueError(
                f"together: {others[0]} reads other tokens than {self.baselines[0]}, so that no KL between them is"
                " known; write seeds, or compare it alone"
            )
        if isinstance(self.gold, Judge):
            raise ValueError("gold: a judge compares, it gives no number; write it as --reward")
        if isinstance(self.reward, Judge) and self.best_of:
            raise ValueError("best_of: a judge gives no number to choose the best by; write a rule or a reward model")
        if isinstance(self.reward, Judge) and self.together == "checkpoints":
            raise ValueError("together: checkpoints are points of a reward, and a judge gives none; write seeds")

    def _answers(
        self, name: str, seed: int, tick: Callable[[int], object], *, kl: bool = False, samples: int = 0
    ) -> tuple[Batch, ...]:
        policy = self.reference if name == self.baselines[0] else self.opened(name)
        score = self._none if isinstance(self.reward, Judge) else self._built(self.reward, name)
        side = self.sides.get(name)
        made = answer(
            policy,
            side.prompts if side else self.prompts,
            score,
            reference=self.reference if kl and side is None else None,
            samples_per_prompt=samples or self.samples_per_prompt,
            batch_size=self.batch_size,
            seed=seed,
            temperature=self.temperature,
            watch=tick,
        )
        if self.gold is not None:
            believed = self._built(self.gold, name)
            made = tuple(batch.fill(gold=believed(batch)) for batch in made)
        if self.sides:
            made = tuple(measured(made, self._decoder(name)))
        return made if side is None else tuple(as_asked(made, self.prompts))

    def _built(self, config: AnyReward, name: str) -> Reward:
        side = self.sides.get(name)
        return build_reward(config, self._decoder(name), side.texts if side else self.texts)

    def _decoder(self, name: str) -> Decoder:
        return self.sides[name].decoder if name in self.sides else self.decoder

    @staticmethod
    def _none(batch: Batch) -> torch.Tensor:
        return torch.zeros(batch.fresh.shape)

    def _best_of(self, reference: Sequence[Batch], seed: int, tick: Callable[[int], object]) -> tuple[BestOf, ...]:
        made = self._answers(self.baselines[0], seed, tick, samples=self.best_of)
        column = lambda batches, name: torch.cat([b[name].double() for b in batches]).numpy()
        believed = "gold" if self.gold else "reward"
        gold = column(made, "gold") if self.gold else None
        return best_of_n(column(made, "reward"), gold=gold, reference=column(reference, believed), seed=self.seed)

    def _judged(self, ours: Mapping[str, Sequence[Batch]], theirs: Mapping[str, Sequence[Batch]]) -> tuple[Any, ...]:
        assert isinstance(self.reward, Judge)
        comparison = Comparison(self.reward)
        wins, filled, others = dict[tuple[str, str], np.ndarray](), dict[str, Any](), dict[str, Any]()
        for p, mine in ours.items():
            for b, other in theirs.items():
                found = judged(mine, other, comparison, self._decoder(p), self.texts, self._decoder(b))
                wins[p, b] = found.wins.numpy()
                if p not in filled or b not in others:  # the page's samples are the first pair's
                    a, c = with_wins(mine, other, found)
                    filled.setdefault(p, a)
                    others.setdefault(b, c)
        return filled, others, wins, dict(comparison.counts)

    def _notes(self, found: Several, judge: Mapping[str, int] | None) -> list[str]:
        notes = []
        if self.temperature != 1:
            notes.append("the KL is measured at temperature 1 only")
        for name in self.sides:
            notes.append(
                f"{name} reads other tokens than {self.baselines[0]}: each was asked in its own, lengths are in its own"
                " (in characters where they are controlled), and there is no KL between them"
            )
        if judge is not None:
            notes.append("the judge: " + ", ".join(f"{n} {name}" for name, n in sorted(judge.items())))
        for (p, b), c in found.controlled.items():
            if c.extreme:
                notes.append(
                    f"{p} against {b}: the length-controlled win rate is far from the raw one"
                    f" ({c.estimate.value:.3g} and {c.raw:.3g}); look at the lengths before believing it"
                )
        if self.together == "seeds" and len(self.policies) > 1 and not found.over_seeds:
            notes.append("one prompt says nothing over seeds")
        if (over := found.overoptimised) is not None and over.happened:
            notes.append(
                f"over-optimised: the gold reward is highest at {over.peak} and {over.drop.value:.3g} lower at"
                f" {over.last}, where the reward that was optimised is highest"
            )
        return notes

    def _cut_off(self, told: Sequence[Mapping[str, Any]]) -> list[str]:
        """Whose responses hardly ever end: what they are worth is then that of pieces."""
        sides = {
            "completions/finished": ("policy", self.policies),
            "reference/completions/finished": ("against", self.baselines),
        }
        cut = [row for row in told if row["name"] in sides and row["value"] <= HARDLY]
        return list(dict.fromkeys(str(row.get(key, names[0])) for row in cut for key, names in [sides[row["name"]]]))


def _curve_rows(curves: Sequence[BestOf]) -> list[dict[str, Any]]:
    return [row(e) for c in curves for e in (c.proxy, c.gold, c.win_rate) if e is not None]
