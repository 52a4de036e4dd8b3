"""Stages that choose responses, and so leave some or whole prompts out.

A stage that makes several groups of one prompt shares the prompt's weight among them, so that no prompt counts more.
"""

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from modeseek.batch import Batch
from modeseek.stages.base import Stage, worth


def chosen(batch: Batch) -> Batch:
    """Keep the first response of each group: the preferred one."""
    return batch.take(torch.zeros(len(batch), 1, dtype=torch.long, device=batch.response.device))


def best(batch: Batch) -> Batch:
    """Keep the response with the highest reward; among equals the first."""
    return batch.take(worth(batch, float("-inf")).argmax(-1, keepdim=True))


def best_worst(batch: Batch) -> Batch:
    """Keep the response with the highest reward and the one with the lowest: a preference, labelled by the reward.

    A prompt whose responses all tie says nothing and is left out.
    """
    high, low = worth(batch, float("-inf")), worth(batch, float("inf"))
    return _pairs(batch, high.argmax(-1), low.argmin(-1))


def best_second(batch: Batch) -> Batch:
    """Keep the best response and the next one that is worse: the hardest preference. Ties are left out."""
    value = worth(batch, float("-inf"))
    lower = value.masked_fill(value >= value.amax(-1, keepdim=True), float("-inf"))
    return _pairs(batch, value.argmax(-1), lower.argmax(-1))


def best_sigma(sigmas: float = 2.0) -> Stage:
    """Keep the best response and the one nearest to the mean less `sigmas` standard deviations.

    Xiao et al. 2025, https://arxiv.org/abs/2502.16825: the very worst response teaches less than a plausible one.
    """

    def stage(batch: Batch) -> Batch:
        count = batch.present.sum(-1, keepdim=True).clamp(min=1)
        value = worth(batch, 0.0)
        mean = value.sum(-1, keepdim=True) / count
        std = ((value - mean).square() * batch.present).sum(-1, keepdim=True).div(count).sqrt()
        far = (value - (mean - sigmas * std)).abs().masked_fill(~batch.present, float("inf"))
        return _pairs(batch, worth(batch, float("-inf")).argmax(-1), far.argmin(-1))

    return stage


@dataclass
class BestRandom:
    """Keep the best response and a random other one. Ties are left out."""

    seed: int = 0
    _rng: Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._rng = Generator().manual_seed(self.seed)

    def __call__(self, batch: Batch) -> Batch:
        top = worth(batch, float("-inf")).argmax(-1)
        luck = torch.rand(batch.fresh.shape, generator=self._rng).to(batch.response.device)
        luck = luck.masked_fill(~batch.present, -1.0).scatter(-1, top[:, None], -1.0)
        return _pairs(batch, top, luck.argmax(-1))

    def state(self) -> dict[str, Tensor]:
        return {"rng": self._rng.get_state()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self._rng.set_state(state["rng"])


best_random = BestRandom


def all_pairs(gap: float = 0.0) -> Stage:
    """Every pair of a group whose rewards differ by more than `gap`, better one first: K (K - 1) / 2 at most.

    2404.14367's bandits train on all of them.
    """

    def stage(batch: Batch) -> Batch:
        value = worth(batch, float("nan"))  # a NaN is above nothing
        above = value[:, :, None] - value[:, None, :] > gap  # [P, K, K]
        p, first, second = above.nonzero().unbind(-1)
        return _groups(batch, p, torch.stack([first, second], -1))

    return stage


def ranked(batch: Batch) -> Batch:
    """Order each group by reward, best first, what is absent last; equals stay in their order."""
    return batch.take(worth(batch, float("-inf")).argsort(dim=-1, descending=True, stable=True))


def keep_varied(batch: Batch) -> Batch:
    """Leave out the prompts whose rewards are all the same (DAPO's dynamic sampling, without drawing more)."""
    return batch.prompts(worth(batch, float("-inf")).amax(-1) > worth(batch, float("inf")).amin(-1))


def keep_good(batch: Batch) -> Batch:
    """Keep the responses that are labelled good (Binary FeedMe); a prompt without one is left out."""
    present = batch.present & batch["label"]
    kept = dataclasses.replace(batch, present=present, mask=batch.mask & present[..., None])
    return kept.prompts(present.any(-1))


def keep_finished(batch: Batch) -> Batch:
    """Leave out responses that the length limit cut off (DAPO's overlong filtering), and prompts of nothing else."""
    present = batch.present & batch["finished"]
    kept = dataclasses.replace(batch, present=present, mask=batch.mask & present[..., None])
    return kept.prompts(present.any(-1))


def against_own(batch: Batch) -> Batch:
    """Pair the data's first response with the policy's first (SPIN, https://arxiv.org/abs/2401.01335)."""
    own = batch.fresh & batch.present
    at = torch.stack([torch.zeros_like(own[:, 0], dtype=torch.long), own.int().argmax(-1)], -1)
    return batch.take(at).prompts(own.any(-1))


def mixed_pairs(share: float = 0.5) -> Stage:
    """Two groups of each prompt: the data's pair, and the best and worst of the fresh responses.

    `share` of the prompt's weight goes to the fresh pair; where its rewards tie the data's pair has all of it.
    """
    if not 0 < share < 1:
        raise ValueError(f"share: {share}, expected above 0 and below 1")

    def stage(batch: Batch) -> Batch:
        own = batch.fresh & batch.present
        high = batch["reward"].masked_fill(~own, float("-inf"))
        low = batch["reward"].masked_fill(~own, float("inf"))
        split = high.amax(-1) > low.amin(-1)  # [P]
        told = dataclasses.replace(batch, weight=torch.where(split, (1 - share) * batch.weight, batch.weight))
        fresh = dataclasses.replace(batch, weight=share * batch.weight)
        first = torch.tensor([[0, 1]], device=batch.response.device).expand(len(batch), 2)
        pairs = fresh.take(torch.stack([high.argmax(-1), low.argmin(-1)], -1)).prompts(split)
        return _joined(told.take(first), pairs)

    return stage


def _pairs(batch: Batch, first: Tensor, second: Tensor) -> Batch:
    """These two responses of each group, with the gap of their rewards; equal ones are left out."""
    pairs = batch.take(torch.stack([first, second], -1))
    gap = pairs["reward"][:, 0] - pairs["reward"][:, 1]
    return pairs.fill(margin=gap).prompts((gap > 0) & pairs.present.all(-1))


def _groups(batch: Batch, p: Tensor, at: Tensor) -> Batch:
    """Group i has the responses `at[i]` of prompt `p[i]`, and its share of that prompt's weight."""
    count = torch.bincount(p, minlength=len(batch)).clamp(min=1)
    groups = dataclasses.replace(batch, weight=batch.weight / count).prompts(p).take(at)
    if "reward" in batch and at.shape[1] == 2:
        groups = groups.fill(margin=groups["reward"][:, 0] - groups["reward"][:, 1])
    return groups


def _joined(a: Batch, b: Batch) -> Batch:
    left, right = a.tensors(), b.tensors()
    return Batch.from_tensors({name: torch.cat([x, right[name]]) for name, x in left.items()})
