"""The length worlds: a tiny language model of fables, a true reward of length alone, a proxy learnt from preferences.

2404.14367 crosses two conditions: is the reward's peak where the reference is, and do the preference data cover the
reference? `min_length` (apart, covered), `mode_length` (together, covered), `skew_length` (apart, not covered), and the
cell that the paper leaves out, `mode_skew` (together, not covered). Offline methods learn from the data's pairs, which
the true reward labelled; the others are labelled by a reward model fitted to those pairs; the true reward judges all.
https://arxiv.org/abs/2404.14367, section 4 and table 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from modeseek.batch import Batch
from modeseek.objectives import BradleyTerry
from modeseek.stages import refer, score
from modeseek.studies.base import Dial, Row
from modeseek.studies.worlds.bigrams import LIMIT, Bigrams, pretrained
from modeseek.studies.worlds.methods import METHODS, Parts, ends, every, named, play, samples, staged
from modeseek.studies.worlds.table import Ledger, Progress, normal, pair_standing, streams, uniform

SHORT = 6.0  # the mean length at which skewed data are cut, in tokens
PAIRS = 200  # of the preference data: what offline methods and the proxy learn from
GEOMETRY = {  # name: (is the peak where the reference is?, do the data cover the reference?)
    "min_length": (False, True),
    "mode_length": (True, True),
    "skew_length": (False, False),
    "mode_skew": (True, False),
}
GRID: Mapping[str, Sequence[Dial]] = {"learning_rate": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)}
DEFAULTS: Mapping[str, Dial] = {
    "learning_rate": 0.1,
    "prompts": PAIRS,
    "prompts_per_round": 4,
    "num_generations": 8,
}
OFFLINE: Mapping[str, Dial] = {"num_generations": 2, "minibatch": 20}
OF_METHOD: Mapping[str, Mapping[str, Dial]] = {
    "dpo": {"learning_rate": 0.03},
    "ipo": {"learning_rate": 0.03},
    "rwr": {"beta": 1.0},  # a standard deviation of the proxy
    "offline_rwr": {"beta": 0.3},  # a third of the reference's mean length
    "reinforce": {"beta": 0.0},
    "ppo": {"beta": 0.0},
    "best_of_n_mean": {"beta": 0.3},
    "best_of_n_complement": {"beta": 0.3},
}
OMITTED = ("offline_best_of_n", "offline_best_of_n_mean")  # of pairs they are pref_ft and an unbounded DPO


@dataclass(frozen=True)
class LengthWorld:
    """One of the four crossings of peak and coverage; rewards are in mean lengths of the reference."""

    name: str = "min_length"
    judged_by: str = "reward"
    steps: int = 120  # where a cell does not say
    checkpoints: int = 12  # after the start

    def methods(self) -> Sequence[str]:
        return tuple(name for name in METHODS if name not in OMITTED)

    def grid(self, method: str) -> Mapping[str, Sequence[Dial]]:
        return {name: values for name, values in GRID.items() if name in named(method).dials}

    def run(self, method: str, seeds: Sequence[int], **dials: Dial) -> list[Row]:
        """`reward` is the true one; what on-policy methods train on is a reward fitted to each seed's pairs, which
        are 2 responses a prompt in all cases. ValueError for a method left out here, or a dial that it lacks."""
        if method not in self.methods():
            raise ValueError(f"method: {method!r} in {self.name}, expected one of {', '.join(self.methods())}")
        on_policy = named(method).source == "on_policy"
        given = {**DEFAULTS, "steps": self.steps, **({} if on_policy else OFFLINE), **OF_METHOD.get(method, {})}
        settings = named(method).settings(f"{method} in {self.name}", given, dials)
        truth = true_reward(self.name)
        parts = parts_of(self.name, seeds, truth)
        data = staged(parts.data(PAIRS, 2), [score(parts.reward), refer(parts.reference), ends])
        proxy = fitted(data, seeds)
        if on_policy:
            parts = replace(parts, reward=by_length(proxy))
        seed_of = torch.arange(len(seeds)).repeat_interleave(PAIRS)
        ledger = Ledger(seeds, settings.steps, every(settings.steps, self.checkpoints))

        def watch(progress: Progress) -> None:
            if ledger.due(progress.step):
                told = pair_standing(parts.policy, data, seed_of)
                seen = {"samples": float(samples(method, settings, progress))}
                ledger.add(progress.step, standing(parts, truth, proxy) | told | seen)

        play(method, settings, parts, seeds, watch)
        return ledger.rows

    def geometry(self) -> Mapping[str, np.ndarray]:
        """Over lengths of 1 to LIMIT tokens; `data` are the lengths of the preference data of seed 0."""
        parts = parts_of(self.name, [0], truth := true_reward(self.name))
        lengths = parts.data(PAIRS, 2).mask.sum(-1).flatten()
        share = torch.bincount(lengths, minlength=LIMIT + 1)[1:] / len(lengths)
        return {"reference": reference_lengths().numpy(), "reward": truth[0].numpy(), "data": share.numpy()}


def true_reward(name: str) -> Float[Tensor, "1 L"]:
    """What each length from 1 to LIMIT is worth: less the longer, or less the farther from the reference's mode."""
    if name not in GEOMETRY:
        raise ValueError(f"world: {name!r}, expected one of {', '.join(GEOMETRY)}")
    length, usual = torch.arange(1.0, LIMIT + 1), reference_lengths()
    peak = float(usual.argmax() + 1) if GEOMETRY[name][0] else 0.0
    return (-(length - peak).abs() / (length * usual).sum())[None]


def parts_of(name: str, seeds: Sequence[int], truth: Float[Tensor, "1 L"]) -> Parts[Bigrams]:
    """A language model for each seed. The data of the skewed worlds are the reference's, cut short."""
    S = len(seeds)
    policy, reference = (Bigrams(*(w.expand(S, -1, -1) for w in pretrained())) for _ in range(2))
    reference.requires_grad_(False)
    luck = streams(seeds, "samples")
    asked = lambda count: torch.zeros(S * count, 1, dtype=torch.long)
    covered = GEOMETRY[name][1]

    def data(count: int, k: int) -> Batch:
        rngs = streams(seeds, "data")
        batch = reference.sample(asked(count), uniform(rngs, count, k, LIMIT).flatten(0, 1))
        batch = replace(batch, fresh=torch.zeros_like(batch.fresh), columns={})
        return batch if covered else cut(batch, uniform(streams(seeds, "cuts"), count, k).flatten(0, 1))

    def fresh(batch: Batch, k: int) -> Batch:
        return policy.sample(batch.prompt, uniform(luck, len(batch) // S, k, LIMIT).flatten(0, 1))

    def own(count: int, k: int) -> Batch:
        return policy.sample(asked(count), uniform(luck, count, k, LIMIT).flatten(0, 1))

    return Parts(policy, reference, by_length(truth), data, own, fresh)


def cut(batch: Batch, u: Float[Tensor, "P K"]) -> Batch:
    """Responses that end after an exponential number of tokens, SHORT on average, where they would go on."""
    at = (-SHORT * torch.log1p(-u)).ceil().clamp(min=1).long()
    length = torch.minimum(at, batch.mask.sum(-1))
    place = torch.arange(batch.response.shape[-1])
    response = batch.response.masked_fill(place == length[..., None] - 1, 0)  # the end token
    return replace(batch, response=response, mask=place < length[..., None]).trim()


def by_length(worth: Float[Tensor, "R L"]):
    """The reward that is a table of lengths: a row for each seed, or one for all."""

    def reward(batch: Batch) -> Tensor:
        P, R = len(batch), len(worth)
        rows = torch.arange(P) // (P // R)  # seed after seed, equally many prompts of each
        return worth[rows[:, None], batch.mask.sum(-1) - 1]

    return reward


def fitted(pairs: Batch, seeds: Sequence[int], *, hidden: int = 16, steps: int = 300) -> Float[Tensor, "S L"]:
    """The proxy: a small network of the length for each seed, by maximum likelihood on its pairs (Bradley-Terry).

    It sees no other lengths than the data's, and what it says of others is extrapolation. Its scores have mean 0 and
    variance 1 over the data, since Bradley-Terry fixes neither and temperatures are in their unit.
    """
    rngs, S = streams(seeds, "proxy"), len(seeds)
    first, second = (normal(rngs, *shape).float() for shape in ((2, hidden), (hidden, 1)))
    weights = [w.requires_grad_() for w in (first, torch.zeros(S, 1, hidden), second / hidden**0.5)]
    length = torch.arange(1.0, LIMIT + 1)
    features = torch.stack([length / LIMIT, length.log() / np.log(LIMIT)], -1)  # [L, 2]
    told = pairs.mask.sum(-1).view(S, -1) - 1
    keep = pairs.weight.view(S, -1)

    def scores() -> Float[Tensor, "S L"]:
        return (torch.tanh(features @ weights[0] + weights[1]) @ weights[2])[..., 0]

    optimiser = torch.optim.Adam(weights, lr=0.03)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = BradleyTerry()(scores().gather(1, told).view(-1, 2)).per_prompt
        ((loss * keep.flatten()).view(S, -1).mean(-1).sum() + 1e-3 * sum(w.square().sum() for w in weights)).backward()
        optimiser.step()
    raw = scores().detach()
    seen = raw.gather(1, told)
    return (raw - seen.mean(-1, keepdim=True)) / seen.std(-1, keepdim=True)


@torch.no_grad()
def standing(parts: Parts[Bigrams], truth: Float[Tensor, "1 L"], proxy: Float[Tensor, "S L"]) -> dict[str, Tensor]:
    """Exact expectations of each seed: true and learnt reward, mean length in tokens, KL and entropy in nats."""
    lengths, kl, entropy = parts.policy.walk(parts.reference)
    at = torch.arange(1.0, LIMIT + 1)
    return {
        "reward": (lengths * truth).sum(-1),
        "proxy": (lengths * proxy).sum(-1),
        "length": (lengths * at).sum(-1),
        "kl": kl,
        "entropy": entropy,
    }


@cache
def reference_lengths() -> Float[Tensor, " L"]:
    """The probability of each length under the reference."""
    model = Bigrams(*(w[None] for w in pretrained()))
    return model.walk(model)[0][0]
