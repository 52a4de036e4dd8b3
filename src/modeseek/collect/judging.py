"""Whether a round brought something: its policy against the one before it, on held-out prompts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from modeseek.batch import Batch
from modeseek.build import context_of, device_of, load_policy, raw_prompts
from modeseek.collect.plan import labeller
from modeseek.collect.rounds import Rounds, policy_of, seed_of
from modeseek.config import Run, parse_reward
from modeseek.data.files import load
from modeseek.data.tokenise import Groups, Template
from modeseek.estimate import Estimate
from modeseek.evaluate import answer, compare
from modeseek.policies.hf import HFPolicy
from modeseek.rewards import AnyReward, Reward, build_reward

SHOWN = 6  # held-out prompts whose answers are kept


def promotes(rule: str, results: dict[str, Estimate]) -> tuple[bool, str]:
    """Whether the new policy takes the place of the one before, and why."""
    gain, wins = results["reward/difference"], results["win_rate"]
    said = f"reward {gain.value:+.3g} [{gain.low:.3g}, {gain.high:.3g}], win rate {wins}"
    match rule:
        case "always":
            return True, said
        case "significant":
            yes = wins.low > 0.5
        case _:
            yes = gain.value > 0
    return yes, f"{said}: {'promoted' if yes else 'not promoted'}"


@dataclass
class Judging:
    """Held-out answers of the policies so far, each drawn once a process and alike in every process."""

    rounds: Rounds
    answers: dict[int, tuple[Batch, ...]] = field(default_factory=dict)
    _parts: tuple[Template, HFPolicy, Groups, Reward] | None = None

    def judged(self, number: int, current: int) -> dict[str, Any]:
        """The round's policy against the one before it, and against the first."""
        ours = self.answered(number)
        seed = seed_of(self.rounds, "bootstrap", number)
        against = {e.name: e for e in compare(ours, self.answered(current), seed=seed).estimates()}
        first = {e.name: e for e in compare(ours, self.answered(0), seed=seed).estimates()}
        promoted, says = promotes(self.rounds.promote, against)
        kept = ("reward", "reference/reward", "reward/difference", "win_rate", "completions/mean_length", "kl")
        results = [_plain(name, against[name]) for name in kept if name in against]
        results += [_plain(f"first/{name}", first[name]) for name in ("reward", "reference/reward", "win_rate")]
        return {"promoted": promoted, "says": says, "results": results, "samples": self._samples(number, current)}

    def answered(self, number: int) -> tuple[Batch, ...]:
        """Samples of a round's policy with their reward and their log-ratio to the first."""
        if number not in self.answers:
            template, first, prompts, reward = self._open()
            told = self.rounds.evaluate
            policy = self.policy(policy_of(self.rounds, number), template) if number else first
            self.answers[number] = answer(
                policy,
                prompts,
                reward,
                reference=first,
                samples_per_prompt=told.samples,
                batch_size=told.batch_size,
                seed=seed_of(self.rounds, "answer", number),
            )
        return self.answers[number]

    def _open(self) -> tuple[Template, HFPolicy, Groups, Reward]:
        if self._parts is None:
            told, plan = self.rounds.evaluate, self.rounds.collect
            model = policy_of(self.rounds, 0)
            template = Template.load(model, trust_remote_code=plan.trust_remote_code)
            first = self.policy(model, template)
            records = load(told.prompts)[: told.limit or None]
            limit = min(plan.max_length, context_of(first) or plan.max_length)
            prompts = Groups.from_prompts(
                records, template, max_length=limit, max_completion_length=plan.max_completion_length
            )
            reward = build_reward(reward_of(self.rounds), template, raw_prompts(prompts))
            self._parts = (template, first, prompts, reward)
        return self._parts

    def policy(self, model: str, template: Template) -> HFPolicy:
        """A round's policy, loaded as the rounds say."""
        plan = self.rounds.collect
        run = dataclasses.replace(Run(), dtype=plan.dtype, trust_remote_code=plan.trust_remote_code)
        longest = plan.max_completion_length
        return load_policy(model, template, max_new=longest, run=run, device=device_of(plan.device))

    def _samples(self, number: int, current: int) -> list[dict[str, Any]]:
        template = self._open()[0]
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
    if rounds.evaluate.reward:
        return parse_reward(rounds.evaluate.reward, "evaluate.reward")
    found = labeller(rounds.collect)
    if found is None:
        raise ValueError("evaluate.reward: none given, and people label; write a reward that can be asked every round")
    return found


def _plain(name: str, e: Estimate) -> dict[str, Any]:
    return {"name": name, "value": e.value, "low": e.low, "high": e.high, "n": e.n}
