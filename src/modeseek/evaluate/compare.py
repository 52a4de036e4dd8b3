"""Two policies on the same prompts: what each is worth, how often ours wins, how far it went from the other.

`evaluate` samples from both and compares; its two halves stand alone, so that several policies can be compared
with one set of the reference's samples: `answer` (once a policy), `compare` (once a pair).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from modeseek import estimate
from modeseek.batch import Batch
from modeseek.estimate import Estimate
from modeseek.ops import seq
from modeseek.policies.base import Policy
from modeseek.sources import Data, Sampler
from modeseek.stages import Reward, recall, refer, score


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `compare` found. Lengths are in tokens, the end token included."""

    reward: Estimate
    reference_reward: Estimate
    reward_difference: Estimate
    win_rate: Estimate
    kl: Estimate | None  # None where the samples do not tell: no reference log-probs, or temperature not 1
    length: Estimate
    reference_length: Estimate
    finished: Estimate  # the share of responses that ended by themselves
    reference_finished: Estimate
    ours: tuple[Batch, ...] = field(repr=False)  # the samples, with their `reward`
    theirs: tuple[Batch, ...] = field(repr=False)

    def estimates(self) -> list[Estimate]:
        """All of them, in the order to print."""
        found = [
            self.reward,
            self.reference_reward,
            self.reward_difference,
            self.win_rate,
            self.kl,
            self.length,
            self.reference_length,
            self.finished,
            self.reference_finished,
        ]
        return [e for e in found if e is not None]


def evaluate(
    policy: Policy,
    reference: Policy,
    prompts: Data,
    reward: Reward,
    *,
    samples_per_prompt: int = 1,
    batch_size: int = 32,
    seed: int = 0,
    temperature: float = 1.0,
    level: float = 0.95,
) -> Evaluation:
    """Sample from both policies and compare; the KL is to the reference, on the policy's own samples.

    Every prompt counts the same: a weight is for training, and is not read here.
    """
    # Two streams: a win rate is that of independent samples, and common random numbers would make ties of them.
    own_seed, their_seed = (int(x) for x in np.random.SeedSequence(seed).generate_state(2))
    ours = answer(
        policy,
        prompts,
        reward,
        reference=reference,
        samples_per_prompt=samples_per_prompt,
        batch_size=batch_size,
        seed=own_seed,
        temperature=temperature,
    )
    theirs = answer(
        reference,
        prompts,
        reward,
        samples_per_prompt=samples_per_prompt,
        batch_size=batch_size,
        seed=their_seed,
        temperature=temperature,
    )
    return compare(ours, theirs, level=level, seed=seed)


def answer(
    policy: Policy,
    prompts: Data,
    reward: Reward,
    *,
    reference: Policy | None = None,
    samples_per_prompt: int = 1,
    batch_size: int = 32,
    seed: int = 0,
    temperature: float = 1.0,
    watch: Callable[[int], object] | None = None,
) -> tuple[Batch, ...]:
    """Samples of the policy with their `reward`, in the order of the prompts, on the CPU.

    Where a reference is named and the temperature is 1, `old_logp` is what the policy itself says of its samples
    (not what its sampler said) and `ref_logp` what the reference does: enough for the KL. Which samples are drawn
    depends on the seed and on `batch_size`. `watch` hears how many prompts each batch answered.
    """
    for key, found in (("samples_per_prompt", samples_per_prompt), ("batch_size", batch_size)):
        if found < 1:
            raise ValueError(f"{key}: found {found}, expected 1 or more")
    if len(prompts) == 0:
        raise ValueError("prompts: found none, expected at least one")
    draw = Sampler(policy=policy, k=samples_per_prompt, temperature=temperature)
    learn = [score(reward), *([recall(policy), refer(reference)] if reference is not None and temperature == 1 else [])]
    device = _device(policy)
    rng = torch.Generator(device).manual_seed(seed)
    answered = []
    for index in torch.arange(len(prompts)).split(batch_size):
        own = draw(prompts.prompts(index).to(device), rng)
        for stage in learn:
            own = stage(own)
        if own["reward"].shape != own.fresh.shape:
            found, expected = list(own["reward"].shape), list(own.fresh.shape)
            raise ValueError(f"reward: found shape {found}, expected one number a response, {expected}")
        answered.append(own.to("cpu"))
        if watch is not None:
            watch(len(index))
    return tuple(answered)


def compare(ours: Sequence[Batch], theirs: Sequence[Batch], *, level: float = 0.95, seed: int = 0) -> Evaluation:
    """The statistics of two policies' answers to the same prompts; `seed` is of the bootstrap."""
    _check_same_prompts(ours, theirs)
    our_reward, their_reward = (_column(x, lambda b: b["reward"]) for x in (ours, theirs))
    known = all("ref_logp" in batch for batch in ours)
    log_ratio = lambda b: seq(b["old_logp"] - b["ref_logp"], b.mask)
    return Evaluation(
        reward=estimate.mean(our_reward, level=level, name="reward"),
        reference_reward=estimate.mean(their_reward, level=level, name="reference/reward"),
        reward_difference=estimate.mean_difference(our_reward, their_reward, level=level, name="reward/difference"),
        win_rate=estimate.win_rate(our_reward, their_reward, level=level, seed=seed),
        kl=estimate.kl(_column(ours, log_ratio), level=level) if known else None,
        length=estimate.mean(_column(ours, _length), level=level, name="completions/mean_length"),
        reference_length=estimate.mean(_column(theirs, _length), level=level, name="reference/completions/mean_length"),
        finished=estimate.share(
            _column(ours, lambda b: b["finished"]), level=level, seed=seed, name="completions/finished"
        ),
        reference_finished=estimate.share(
            _column(theirs, lambda b: b["finished"]),
            level=level,
            seed=seed,
            name="reference/completions/finished",
        ),
        ours=tuple(ours),
        theirs=tuple(theirs),
    )


def _length(batch: Batch) -> Float[Tensor, "P K"]:
    return batch.mask.sum(-1).float()


def _column(batches: Sequence[Batch], read: Callable[[Batch], Tensor]) -> Float[np.ndarray, "P K"]:
    """One row a prompt, whatever batches it was drawn in."""
    return torch.cat([read(batch).double() for batch in batches]).numpy()


def _check_same_prompts(ours: Sequence[Batch], theirs: Sequence[Batch]) -> None:
    a, b = (
        [row[real].tolist() for x in batches for row, real in zip(x.prompt, x.prompt_mask, strict=True)]
        for batches in (ours, theirs)
    )
    if a != b:
        raise ValueError(
            f"ours and theirs: found answers to different prompts ({len(a)} and {len(b)}), expected the same prompts "
            "in the same order"
        )


def _device(policy: Policy) -> torch.device:
    parameter = next(iter(policy.parameters()), None)
    return torch.device("cpu") if parameter is None else parameter.device
