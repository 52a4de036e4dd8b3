"""Worlds R1-tokens and R2-tokens: the bandit of 2404.14367 with responses of nine tokens, written by a small GPT.

The reward is the mean over the generated tokens of the bandit's bump; the paper's code also counts the prompt's token,
which no method can change. Log-probabilities are those of the sampling distribution, which the paper's code misses by
one place. The start draws every token from the bandit's reference, up to small random weights. Reward and KL are means
over sampled prefixes of exact sums over the vocabulary. https://arxiv.org/abs/2404.14367, section 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from modeseek.batch import Batch
from modeseek.data import worlds
from modeseek.stages import refer, score
from modeseek.studies.base import Dial, Row
from modeseek.studies.worlds.gpts import Gpts
from modeseek.studies.worlds.methods import METHODS, Parts, ends, every, named, play, samples, staged
from modeseek.studies.worlds.table import Ledger, Progress, pair_standing, streams, uniform

TOKENS = 9  # of a response
EVALUATED = 32  # prompts at each checkpoint, one response each
REWARDS = {"R1-tokens": "R1", "R2-tokens": "R2"}
GRID: Mapping[str, Sequence[Dial]] = {"learning_rate": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)}
DEFAULTS: Mapping[str, Dial] = {"learning_rate": 3e-3}
OF_METHOD: Mapping[str, Mapping[str, Dial]] = {
    "dpo": {"learning_rate": 1e-3},
    "ipo": {"learning_rate": 1e-3},
    "offline_best_of_n": {"learning_rate": 1e-2},
    "reinforce": {"beta": 0.0},
    "ppo": {"beta": 0.0},
    "best_of_n_mean": {"beta": 0.3},
    "offline_best_of_n_mean": {"beta": 0.3, "learning_rate": 1e-2},
    "best_of_n_complement": {"beta": 0.3},
}


@dataclass(frozen=True)
class TokenBanditWorld:
    """The token bandit, misaligned (R1-tokens) or aligned (R2-tokens)."""

    name: str = "R1-tokens"
    judged_by: str = "reward"
    steps: int = 120  # where a cell does not say
    checkpoints: int = 12  # after the start

    def methods(self) -> Sequence[str]:
        return tuple(METHODS)

    def grid(self, method: str) -> Mapping[str, Sequence[Dial]]:
        return {name: values for name, values in GRID.items() if name in named(method).dials}

    def run(self, method: str, seeds: Sequence[int], **dials: Dial) -> list[Row]:
        """What `standing` says, in nats a response but for the reward, with the data's pairs and `samples` as in
        `BanditWorld`. ValueError for a dial that the method lacks."""
        given = {**DEFAULTS, "steps": self.steps, **OF_METHOD.get(method, {})}
        settings = named(method).settings(f"{method} in {self.name}", given, dials)
        parts = parts_of(self.name, seeds)
        data = parts.data(settings.prompts, settings.num_generations)
        pairs = staged(data, [score(parts.reward), refer(parts.reference), ends])
        seed_of = torch.arange(len(seeds)).repeat_interleave(settings.prompts)
        ledger = Ledger(seeds, settings.steps, every(settings.steps, self.checkpoints))

        def watch(progress: Progress) -> None:
            if ledger.due(progress.step):
                told = pair_standing(parts.policy, pairs, seed_of)
                seen = {"samples": float(samples(method, settings, progress))}
                ledger.add(progress.step, self.standing(parts, seeds) | told | seen)

        play(method, settings, parts, seeds, watch)
        return ledger.rows

    @torch.no_grad()
    def standing(self, parts: Parts[Gpts], seeds: Sequence[int]) -> dict[str, Tensor]:
        """Expected reward per token, and KL to the start and entropy of a response in nats; the same luck each time."""
        rngs, S = streams(seeds, "evaluation"), len(seeds)
        prompt, luck = asked(rngs, EVALUATED), uniform(rngs, EVALUATED, 1, TOKENS).flatten(0, 1)
        batch = parts.policy.sample(prompt, luck)
        logp = parts.policy.logits(batch).log_softmax(-1)
        away = logp - parts.reference.logits(batch).log_softmax(-1)
        p, worth = logp.exp(), worlds.bandit(REWARDS[self.name]).reward.to(logp.dtype)
        of_seed = lambda x: x.view(S, -1).mean(-1)
        return {
            "reward": of_seed((p * worth).sum(-1).mean(-1)),
            "kl": of_seed((p * away).sum(-1).sum(-1)),
            "entropy": of_seed(-(p * logp).sum(-1).sum(-1)),
        }

    def geometry(self) -> Mapping[str, np.ndarray]:
        problem = worlds.bandit(REWARDS[self.name])
        return {"reference": problem.reference.numpy(), "reward": problem.reward.numpy()}


def parts_of(name: str, seeds: Sequence[int]) -> Parts[Gpts]:
    """A GPT for each seed; a prompt is one token, drawn alike from the vocabulary."""
    problem, S = worlds.bandit(REWARDS[name]), len(seeds)
    policy, reference = (Gpts(seeds, problem.reference.log(), length=TOKENS) for _ in range(2))
    reference.requires_grad_(False)
    worth, luck = problem.reward.float(), streams(seeds, "samples")

    def data(count: int, k: int) -> Batch:
        rngs = streams(seeds, "data")
        prompt = asked(rngs, count)
        batch = reference.sample(prompt, uniform(rngs, count, k, TOKENS).flatten(0, 1))
        return replace(batch, fresh=torch.zeros_like(batch.fresh), columns={})

    def fresh(batch: Batch, k: int) -> Batch:
        return policy.sample(batch.prompt, uniform(luck, len(batch) // S, k, TOKENS).flatten(0, 1))

    def own(count: int, k: int) -> Batch:
        return policy.sample(asked(luck, count), uniform(luck, count, k, TOKENS).flatten(0, 1))

    reward = lambda batch: worth[batch.response].mean(-1)
    return Parts(policy, reference, reward, data, own, fresh)


def asked(rngs: Sequence[torch.Generator], count: int) -> Tensor:
    """So many prompts of each seed, [S count, 1]."""
    return (uniform(rngs, count) * worlds.ARMS).long().view(-1, 1)
