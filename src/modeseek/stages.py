"""What happens to a batch between being drawn and being learnt from.

A stage is a function from a Batch to a Batch with another column filled or other responses chosen. The usual
order: score, select, refer, recall, shape, baseline. A stage that leaves a prompt out takes its place in the
batch away; the loop counts it, and still divides by the prompts drawn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modeseek.batch import Batch
from modeseek.ops import clean, present_mean, seq
from modeseek.policies.base import Policy

Stage = Callable[[Batch], Batch]
Reward = Callable[[Batch], Tensor]  # [P, K]


def score(reward: Reward) -> Stage:
    """Fill `reward` with what it says of each whole response. A NaN for a present response is an error."""

    @torch.no_grad()
    def stage(batch: Batch) -> Batch:
        said = reward(batch)
        if (said.isnan() & batch.present).any():
            p, k = (said.isnan() & batch.present).nonzero()[0].tolist()
            raise ValueError(f"the reward of prompt {_row(batch, p)}, response {k} is NaN")
        return batch.fill(reward=said)

    return stage


def refer(reference: Policy) -> Stage:
    """Fill `ref_logp` with what the frozen reference says of each token."""
    return torch.no_grad()(lambda batch: batch.fill(ref_logp=reference.logp(batch)))


def recall(policy: Policy) -> Stage:
    """Fill `old_logp` with what the policy says of each token before it takes any step."""
    return torch.no_grad()(lambda batch: batch.fill(old_logp=policy.logp(batch)))


def chosen(batch: Batch) -> Batch:
    """Keep the first response of each group: the preferred one."""
    return batch.take(torch.zeros(len(batch), 1, dtype=torch.long, device=batch.response.device))


def best(batch: Batch) -> Batch:
    """Keep the response with the highest reward; among equals the first."""
    return batch.take(_worth(batch, float("-inf")).argmax(-1, keepdim=True))


def best_worst(batch: Batch) -> Batch:
    """Keep the response with the highest reward and the one with the lowest: a preference, labelled by the reward.

    A prompt whose responses all tie says nothing and is left out.
    """
    high, low = _worth(batch, float("-inf")), _worth(batch, float("inf"))
    pairs = batch.take(torch.stack([high.argmax(-1), low.argmin(-1)], -1))
    return pairs.prompts(high.amax(-1) > low.amin(-1))


def kl_shaped(beta: float) -> Stage:
    """Charge the reward `beta` for each nat of log-ratio to the reference; `raw_reward` keeps what it was."""

    def stage(batch: Batch) -> Batch:
        log_ratio = seq(batch["old_logp"] - batch["ref_logp"], batch.mask)
        return batch.fill(raw_reward=batch["reward"], reward=batch["reward"] - beta * log_ratio)

    return stage


def group_mean(batch: Batch) -> Batch:
    """Advantage: reward less the mean of the group, the same for every token of a response."""
    reward = clean(batch["reward"], batch.present)
    return _advantage(batch, reward - present_mean(reward, batch.present)[:, None])


def group_std(batch: Batch) -> Batch:
    """Divide the advantage by the (unbiased) standard deviation of the group's rewards, as GRPO does.

    A group without variance keeps its advantage of zero.
    """
    reward, count = clean(batch["reward"], batch.present), batch.present.sum(-1)
    centred = clean(reward - present_mean(reward, batch.present)[:, None], batch.present)
    std = (centred.square().sum(-1) / (count - 1).clamp(min=1)).sqrt()  # [P]
    scale = torch.where(std > 0, 1 / (std + 1e-6), torch.zeros_like(std))
    return batch.fill(advantage=batch["advantage"] * scale[:, None, None])


def leave_one_out(batch: Batch) -> Batch:
    """Advantage: reward less the mean of the group's other rewards (RLOO); zero for a group of one."""
    reward, count = clean(batch["reward"], batch.present), batch.present.sum(-1, keepdim=True)
    others = (reward.sum(-1, keepdim=True) - reward) / (count - 1).clamp(min=1)
    return _advantage(batch, torch.where(count > 1, reward - others, torch.zeros_like(reward)))


@dataclass
class RunningKL:
    """Fill `baseline` with the running mean of the fresh samples' log-ratio to the reference, then update it."""

    decay: float = 0.9
    mean: float = 0.0
    seen: int = 0

    def __call__(self, batch: Batch) -> Batch:
        own = batch.fresh & batch.present
        filled = batch.fill(baseline=batch.weight.new_full((len(batch),), self.mean))
        if own.any():
            now = seq(batch["old_logp"] - batch["ref_logp"], batch.mask)[own].mean().item()
            self.mean = now if not self.seen else self.decay * self.mean + (1 - self.decay) * now
            self.seen += 1
        return filled

    def state(self) -> dict[str, Any]:
        return {"mean": self.mean, "seen": self.seen}

    def restore(self, state: dict[str, Any]) -> None:
        self.mean, self.seen = state["mean"], state["seen"]


running_kl = RunningKL


def _worth(batch: Batch, empty: float) -> Tensor:
    return batch["reward"].masked_fill(~batch.present, empty)


def _advantage(batch: Batch, centred: Tensor) -> Batch:
    spread = clean(centred, batch.present)[..., None].expand(batch.response.shape)
    return batch.fill(advantage=spread)


def _row(batch: Batch, p: int) -> int:
    return int(batch["row"][p]) if "row" in batch else p
