"""Whether a round brought something: its policy against the one before it, on held-out prompts.

A judge compares two answers and gives no number: where one evaluates, a policy's reward is how often it beats the
policy of the start (whose own is one half), and the policies of a round meet directly.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from modeseek.batch import PK, Batch
from modeseek.build import context_of, device_of, load_policy, raw_prompts
from modeseek.collect.budget import bind
from modeseek.collect.plan import kept, labeller
from modeseek.collect.rounds import Rounds, policy_of, seed_of
from modeseek.collect.store import Store
from modeseek.config import Run, parse_reward
from modeseek.data.files import load
from modeseek.data.groups import Groups
from modeseek.data.template import Template
from modeseek.data.tokenise import tokenise_prompts
from modeseek.estimate import Estimate, share
from modeseek.evaluate import answer, compare, judged
from modeseek.evaluate.judged import Judged, measure, with_wins
from modeseek.policies.hf import HFPolicy
from modeseek.rewards import AnyReward, Comparison, Judge, Reward, build_reward

SHOWN = 6  # held-out prompts whose answers are kept
ACCOUNT = "iterate"  # what the judge of all rounds draws on


class Parts(NamedTuple):
    """What every round's policy is judged with."""

    template: Template
    first: HFPolicy
    prompts: Groups
    reward: Reward
    comparison: Comparison | None  # a judge's, which gives no reward


def promotes(rule: str, results: dict[str, Estimate], by_judge: bool = False) -> tuple[bool, str]:
    """Whether the new policy takes the place of the one before, and why."""
    gain, wins = results["reward/difference"], results["win_rate"]
    said = "" if by_judge else f"reward {gain.value:+.3g} [{gain.low:.3g}, {gain.high:.3g}], "
    said += f"win rate {wins}"
    match rule:
        case "always":
            return True, said
        case "significant":
            yes = wins.low > 0.5
        case _:
            yes = wins.value > 0.5 if by_judge else gain.value > 0
    return yes, f"{said}: {'promoted' if yes else 'not promoted'}"


@dataclass
class Judging:
    """Held-out answers of the policies so far, each drawn once a process and alike in every process."""

    rounds: Rounds
    answers: dict[int, tuple[Batch, ...]] = field(default_factory=dict)
    _parts: Parts | None = None
    _store: Store | None = None

    def close(self) -> None:
        """Let the store go, where a judge's requests are counted."""
        if self._store is not None:
            self._store.close()

    def judged(self, number: int, current: int) -> dict[str, Any]:
        """The round's policy against the one before it, and against the first."""
        against, first = self._against(number, current), self._against(number, 0)
        promoted, says = promotes(self.rounds.promote, against, self._open().comparison is not None)
        kept = ("reward", "reference/reward", "reward/difference", "win_rate", "completions/mean_length", "kl")
        results = [_plain(name, against[name]) for name in kept if name in against]
        results += [_plain(f"first/{name}", first[name]) for name in ("reward", "reference/reward", "win_rate")]
        return {"promoted": promoted, "says": says, "results": results, "samples": self._samples(number, current)}

    def _against(self, number: int, other: int) -> dict[str, Estimate]:
        ours, theirs = self.answered(number), self.answered(other)
        seed = seed_of(self.rounds, "bootstrap", number)
        found = {e.name: e for e in compare(ours, theirs, seed=seed).estimates()}
        if self._open().comparison is not None:
            wins = self._judged(ours, theirs).wins.numpy()
            found["win_rate"] = share(wins, seed=seed, name="win_rate")
        return found

    def _judged(self, ours: tuple[Batch, ...], theirs: tuple[Batch, ...]) -> Judged:
        parts = self._open()
        assert parts.comparison is not None
        return judged(ours, theirs, parts.comparison, parts.template, raw_prompts(parts.prompts))

    def answered(self, number: int) -> tuple[Batch, ...]:
        """Samples of a round's policy with their reward and their log-ratio to the first."""
        if number not in self.answers:
            parts, told = self._open(), self.rounds.evaluate
            policy = self.policy(policy_of(self.rounds, number), parts.template) if number else parts.first
            made = answer(
                policy,
                parts.prompts,
                parts.reward,
                reference=parts.first,
                samples_per_prompt=told.samples,
                batch_size=told.batch_size,
                seed=seed_of(self.rounds, "answer", number),
            )
            if parts.comparison is not None and number:
                start = self.answered(0)
                made = tuple(with_wins(made, start, self._judged(made, start))[0])
            self.answers[number] = made
        return self.answers[number]

    def _open(self) -> Parts:
        if self._parts is None:
            told, plan = self.rounds.evaluate, self.rounds.collect
            model = policy_of(self.rounds, 0)
            template = Template.load(model, trust_remote_code=plan.trust_remote_code)
            first = self.policy(model, template)
            records = load(told.prompts)[: told.limit or None]
            limit = min(plan.max_length, context_of(first) or plan.max_length)
            prompts = tokenise_prompts(
                records, template, max_length=limit, max_completion_length=plan.max_completion_length
            )
            config = reward_of(self.rounds)
            if isinstance(config, Judge):
                self._parts = Parts(template, first, prompts, even, self._asked(config))
            else:
                reward = build_reward(config, template, raw_prompts(prompts))
                self._parts = Parts(template, first, prompts, reward, None)
        return self._parts

    def _asked(self, config: Judge) -> Comparison:
        """The judge, one budget for labels and evaluation where it does both; one that only evaluates has its own."""
        comparison, rounds = Comparison(config), self.rounds
        self._store = Store(Path(rounds.output_dir) / "preferences.sqlite")
        bind([comparison], self._store, f"{ACCOUNT} evaluation" if rounds.evaluate.reward else ACCOUNT)
        return comparison

    def policy(self, model: str, template: Template) -> HFPolicy:
        """A round's policy, loaded as the rounds say."""
        plan = self.rounds.collect
        run = dataclasses.replace(Run(), dtype=plan.dtype, trust_remote_code=plan.trust_remote_code)
        longest = plan.max_completion_length
        return load_policy(model, template, max_new=longest, run=run, device=device_of(plan.device))

    def _samples(self, number: int, current: int) -> list[dict[str, Any]]:
        template = self._open().template
        first = lambda which: [(b, p) for b in self.answered(which) for p in range(len(b))][:SHOWN]
        read = lambda b, p: {
            "text": template.decode(b.response[p, 0][b.mask[p, 0]].tolist()),
            "reward": float(b["reward"][p, 0]),
        }
        return [
            {
                "prompt": template.decode(b.prompt[p][b.prompt_mask[p]].tolist()),
                "before": read(*old),
                "after": read(b, p),
            }
            for (b, p), old in zip(first(number), first(current), strict=True)
        ]


def reward_of(rounds: Rounds) -> AnyReward:
    """The reward that evaluates: its own, or the one that labels."""
    told = rounds.evaluate.reward
    found = kept(parse_reward(told, "evaluate.reward"), "evaluate.reward") if told else labeller(rounds.collect)
    if found is None:
        raise ValueError("evaluate.reward: none given, and people label; write a reward that can be asked every round")
    return measure(found, "evaluate.reward")


def even(batch: Batch) -> PK:
    """One half for every answer: what the start's are worth where a judge compares with them."""
    return torch.full(batch.fresh.shape, 0.5, device=batch.response.device)


def _plain(name: str, e: Estimate) -> dict[str, Any]:
    return {"name": name, "value": e.value, "low": e.low, "high": e.high, "n": e.n}
