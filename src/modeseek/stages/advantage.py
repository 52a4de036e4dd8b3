"""Stages from rewards to advantages."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from modeseek.batch import Batch
from modeseek.ops import clean, masked_whiten, present_mean
from modeseek.stages.base import Stage, spread, tied
from modeseek.stages.returns import discounted_returns, generalised_advantage, high_entropy_mask, truncated_ratio


def no_baseline(batch: Batch) -> Batch:
    """Advantage: the reward itself."""
    return batch.fill(advantage=spread(batch, batch["reward"]))


def group_mean(batch: Batch) -> Batch:
    """Advantage: reward less the mean of the group, the same for every token of a response."""
    reward = clean(batch["reward"], batch.present)
    return _ties(batch).fill(advantage=spread(batch, reward - present_mean(reward, batch.present)[:, None]))


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
    return _ties(batch).fill(advantage=spread(batch, torch.where(count > 1, reward - others, torch.zeros_like(reward))))


def _ties(batch: Batch) -> Batch:
    """Fill `tied` where the KL was charged, which unties rewards: less their group's mean they are the charge alone."""
    return batch.fill(tied=tied(batch.fill(reward=batch["uncharged"]))) if "uncharged" in batch else batch


@dataclass
class RunningMean:
    """Advantage: reward less the running mean of earlier rounds' rewards; the first round's own mean at first."""

    decay: float = 0.9
    mean: float = field(default=0.0, init=False)
    seen: int = field(default=0, init=False)

    def __call__(self, batch: Batch) -> Batch:
        now = batch["reward"][batch.present].mean().item()
        baseline = self.mean if self.seen else now
        self.mean = now if not self.seen else self.decay * self.mean + (1 - self.decay) * now
        self.seen += 1
        return batch.fill(advantage=spread(batch, batch["reward"] - baseline))

    def state(self) -> dict[str, Any]:
        return {"mean": self.mean, "seen": self.seen}

    def restore(self, state: dict[str, Any]) -> None:
        self.mean, self.seen = state["mean"], state["seen"]


running_mean = RunningMean


def reward_to_go(gamma: float = 1.0) -> Stage:
    """Advantage: the discounted sum of `token_reward` from the token on (REINFORCE++ before whitening)."""

    def stage(batch: Batch) -> Batch:
        reward = clean(batch["token_reward"], batch.mask)
        nothing = reward.new_zeros(batch.fresh.shape)
        returns = discounted_returns(reward, torch.full_like(reward, gamma), nothing, batch.mask)
        return batch.fill(advantage=returns, returns=returns)

    return stage


def gae(gamma: float = 1.0, lam: float = 0.95, truncated: Literal["bootstrap", "terminal"] = "bootstrap") -> Stage:
    """Advantage and `returns` from `token_reward` and `old_value`.

    A response that the length limit cut off goes on: what follows it is worth `last_value`. `terminal` takes it as
    ended, which teaches the critic that long responses are worth nothing more.
    """

    def stage(batch: Batch) -> Batch:
        reward, value = clean(batch["token_reward"], batch.mask), clean(batch["old_value"], batch.mask)
        after = reward.new_zeros(batch.fresh.shape)
        if truncated == "bootstrap":
            after = batch["last_value"].masked_fill(batch["finished"] | ~batch.present, 0.0)
        discount = torch.full_like(reward, gamma)
        advantage = generalised_advantage(reward, value, discount, lam, after, batch.mask)
        return batch.fill(advantage=advantage, returns=clean(advantage + value, batch.mask))

    return stage


def whiten(batch: Batch) -> Batch:
    """Advantages at mean 0 and (unbiased) variance 1 over all tokens of the round."""
    return batch.fill(advantage=masked_whiten(clean(batch["advantage"], batch.mask), batch.mask))


def truncated_is(high: float = 2.0, low: float = 0.0) -> Stage:
    """Weigh each token's advantage by pi / pi_sampler between `low` and `high`, where the sampler is another engine.

    Yao et al. 2025, https://fengyao.notion.site/off-policy-rl. After `recall`. A positive factor passes through PPO's
    minimum, so a weight of the advantage is a weight of the loss.
    """
    if not 0 <= low < high:
        raise ValueError(f"low: {low}, expected at least 0 and below high ({high})")

    def stage(batch: Batch) -> Batch:
        weight, _ = truncated_ratio(batch["old_logp"], batch["sampler_logp"], batch.mask, low, high)
        return batch.fill(advantage=clean(batch["advantage"], batch.mask) * weight)

    return stage


def high_entropy(policy: Any, quantile: float = 0.8) -> Stage:
    """Keep the advantage of the tokens where the policy was least sure; zero elsewhere.

    Wang et al. 2025, https://arxiv.org/abs/2506.01939, eq. 6, with 0.8: a fifth of the tokens.
    """
    if not 0 < quantile < 1:
        raise ValueError(f"quantile: {quantile}, expected above 0 and below 1")

    @torch.no_grad()
    def stage(batch: Batch) -> Batch:
        kept = high_entropy_mask(policy.entropy(batch), batch.mask, quantile)
        return batch.fill(advantage=batch["advantage"].masked_fill(~kept, 0.0))

    return stage
