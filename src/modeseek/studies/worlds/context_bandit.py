"""Worlds R1-contexts and R2-contexts: the bandit of 2404.14367 behind a network that reads a context.

A context is a point of the unit cube in a hundred dimensions, which no reward depends on: what is learnt on some must
carry over to others. The network has the paper's sizes (100, 50 with a normalisation, 256, 256, 100) and a last layer
that starts near zero over the reference's log-probabilities, so that nothing is pretrained. Reward and KL are exact
sums over actions, means over contexts never trained on. https://arxiv.org/abs/2404.14367, section 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from modeseek.batch import PKT, Batch
from modeseek.data import worlds
from modeseek.stages import refer, score
from modeseek.studies.base import Dial, Row
from modeseek.studies.worlds.methods import METHODS, Parts, ends, every, named, play, samples, staged
from modeseek.studies.worlds.table import (
    Ledger,
    Progress,
    forced,
    normal,
    pair_standing,
    rewarded,
    standing,
    streams,
    uniform,
)

SIZES = (100, 50, 256, 256)
TRAINED, JUDGED = 100, 100  # contexts
REWARDS = {"R1-contexts": "R1", "R2-contexts": "R2"}
GRID: Mapping[str, Sequence[Dial]] = {"learning_rate": (1e-4, 3e-4, 1e-3, 3e-3)}
DEFAULTS: Mapping[str, Dial] = {"learning_rate": 1e-3}
OF_METHOD: Mapping[str, Mapping[str, Dial]] = {
    "reinforce": {"beta": 0.0},
    "ppo": {"beta": 0.0},
    "best_of_n_mean": {"beta": 0.3},
    "offline_best_of_n_mean": {"beta": 0.3},
    "best_of_n_complement": {"beta": 0.3},
}


class Networks(nn.Module):
    """A network for each seed; prompt c is its context c, and a batch has equally many prompts of each seed."""

    def __init__(self, seeds: Sequence[int], start: Float[Tensor, " A"]):
        super().__init__()
        rngs, sizes = streams(seeds, "weights"), (*SIZES, len(start))
        self.contexts = uniform(streams(seeds, "contexts"), TRAINED + JUDGED, SIZES[0]).float()  # [S, C, D]
        pairs = list(zip(sizes, sizes[1:], strict=False))
        gains = [2**0.5] * (len(pairs) - 1) + [0.01]
        make = lambda a, b, gain: nn.Parameter((normal(rngs, a, b) * gain * a**-0.5).float())
        self.weights = nn.ParameterList(make(a, b, gain) for (a, b), gain in zip(pairs, gains, strict=True))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(len(seeds), 1, b)) for _, b in pairs[:-1])
        self.last = nn.Parameter(start.float().expand(len(seeds), 1, -1).clone())

    def forward(self, contexts: Int[Tensor, "S N"]) -> Float[Tensor, "S N A"]:
        """log-probability of every action."""
        x = self.contexts[torch.arange(len(contexts))[:, None], contexts]
        for layer, (weight, bias) in enumerate(zip(self.weights, [*self.biases, self.last], strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if layer == 0:
                x = F.layer_norm(x, x.shape[-1:])
            x = F.relu(x) if layer < len(self.biases) else x
        return x.log_softmax(-1)

    def all_logp(self, prompt: Int[Tensor, "P 1"]) -> Float[Tensor, "P A"]:
        """log-probability of every action at each prompt."""
        return self(prompt.view(len(self.contexts), -1)).flatten(0, 1)

    def logp(self, batch: Batch) -> PKT:
        return self.all_logp(batch.prompt).gather(-1, batch.response[..., 0])[..., None]

    @torch.no_grad()
    def sample(self, prompt: Int[Tensor, "P 1"], u: Float[Tensor, "P K"]) -> Batch:
        """The actions at these places of the cumulative distribution: the same `u`, the same luck."""
        logp = self.all_logp(prompt)
        cdf = logp.double().exp().cumsum(-1)
        action = torch.searchsorted(cdf, u.contiguous(), right=True).clamp(max=cdf.shape[-1] - 1)
        everywhere = torch.ones(*action.shape, 1, dtype=torch.bool)
        own = logp.gather(-1, action)[..., None]
        return Batch.own(prompt, torch.ones_like(prompt, dtype=torch.bool), action[..., None], everywhere, old_logp=own)


@dataclass(frozen=True)
class ContextBanditWorld:
    """The bandit with contexts, misaligned (R1-contexts) or aligned (R2-contexts)."""

    name: str = "R1-contexts"
    judged_by: str = "reward"
    checkpoints: int = 12  # after the start

    def methods(self) -> Sequence[str]:
        return tuple(METHODS)

    def grid(self, method: str) -> Mapping[str, Sequence[Dial]]:
        return {name: values for name, values in GRID.items() if name in named(method).dials}

    def run(self, method: str, seeds: Sequence[int], **dials: Dial) -> list[Row]:
        """Exact sums over arms, means over the contexts never trained on, nats for `kl`, `kl_forward` and `entropy`;
        the rest as in `BanditWorld`. ValueError for a dial that the method lacks."""
        settings = named(method).settings(f"{method} in {self.name}", {**DEFAULTS, **OF_METHOD.get(method, {})}, dials)
        problem, parts = worlds.bandit(REWARDS[self.name]), parts_of(self.name, seeds)
        pairs = staged(
            parts.data(settings.prompts, settings.num_generations), [score(parts.reward), refer(parts.reference), ends]
        )
        seed_of = torch.arange(len(seeds)).repeat_interleave(settings.prompts)
        judged = torch.arange(TRAINED, TRAINED + JUDGED).expand(len(seeds), -1)
        with torch.no_grad():
            reference = parts.reference(judged).double()
        ledger = Ledger(seeds, settings.steps, every(settings.steps, self.checkpoints))

        def watch(progress: Progress) -> None:
            if ledger.due(progress.step):
                with torch.no_grad():
                    exact = standing(parts.policy(judged).double(), reference, problem.reward)
                told = pair_standing(parts.policy, pairs, seed_of)
                seen = {"samples": float(samples(method, settings, progress))}
                ledger.add(progress.step, exact | told | seen)

        play(method, settings, parts, seeds, watch)
        return ledger.rows

    def geometry(self) -> Mapping[str, np.ndarray]:
        problem = worlds.bandit(REWARDS[self.name])
        return {"reference": problem.reference.numpy(), "reward": problem.reward.numpy()}


def parts_of(name: str, seeds: Sequence[int]) -> Parts[Networks]:
    """A network for each seed; a prompt is one of its hundred training contexts, drawn alike."""
    problem, S = worlds.bandit(REWARDS[name]), len(seeds)
    policy, reference = (Networks(seeds, problem.reference.log()) for _ in range(2))
    reference.requires_grad_(False)
    luck = streams(seeds, "samples")

    def data(count: int, k: int) -> Batch:
        rngs = streams(seeds, "data")
        prompt = _asked(rngs, count)
        drawn = reference.sample(prompt, uniform(rngs, count, k).flatten(0, 1))
        return forced(drawn.prompt, drawn.response[..., 0])

    def fresh(batch: Batch, k: int) -> Batch:
        return policy.sample(batch.prompt, uniform(luck, len(batch) // S, k).flatten(0, 1))

    def own(count: int, k: int) -> Batch:
        return policy.sample(_asked(luck, count), uniform(luck, count, k).flatten(0, 1))

    return Parts(policy, reference, rewarded(problem.reward[None]), data, own, fresh)


def _asked(rngs: Sequence[torch.Generator], count: int) -> Tensor:
    """So many training contexts of each seed, [S count, 1]."""
    return (uniform(rngs, count) * TRAINED).long().view(-1, 1)
