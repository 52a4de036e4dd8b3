"""Stages that change a reward or pay it out over the tokens."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from modeseek.batch import Batch
from modeseek.ops import clean, masked_whiten, present_mean, seq
from modeseek.stages.base import Stage, worth


def kl_shaped(beta: float) -> Stage:
    """Charge the reward `beta` for each nat of log-ratio to the reference; `raw_reward` keeps what it was, `uncharged`
    what it was with what earlier stages made of it."""

    def stage(batch: Batch) -> Batch:
        log_ratio = seq(batch["old_logp"] - batch["ref_logp"], batch.mask)
        return _reshaped(batch, batch["reward"] - beta * log_ratio).fill(uncharged=batch["reward"])

    return stage


def kl_per_token(beta: float) -> Stage:
    """Fill `token_reward`: `beta` charged for each nat at its token, the response's reward paid at the last one.

    Stiennon et al. 2020, https://arxiv.org/abs/2009.01325; the sum over tokens is kl_shaped's reward.
    """

    def stage(batch: Batch) -> Batch:
        charge = clean(batch["old_logp"] - batch["ref_logp"], batch.mask)
        return batch.fill(token_reward=_at_the_end(batch) - beta * charge)

    return stage


def paid_at_end(batch: Batch) -> Batch:
    """Fill `token_reward`: the response's reward at its last token, nothing before."""
    return batch.fill(token_reward=_at_the_end(batch))


@dataclass
class AdaptiveKL:
    """Charge for the KL as kl_shaped or kl_per_token do, at a price that steers it towards `target` nats.

    Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, section 2.2: after each round the price changes by at most
    a fifth per `horizon` samples' worth.
    """

    target: float = 6.0  # nats per response
    horizon: float = 10_000.0  # samples; fewer is faster
    beta: float = 0.2  # the price to begin with
    per: Literal["response", "token"] = "token"  # whether to charge the reward or the token's

    def __call__(self, batch: Batch) -> Batch:
        charge = kl_shaped if self.per == "response" else kl_per_token
        charged = charge(self.beta)(batch)
        seen = seq(batch["old_logp"] - batch["ref_logp"], batch.mask)[batch.present]
        error = min(max(seen.mean().item() / self.target - 1, -0.2), 0.2)
        self.beta *= 1 + error * len(seen) / self.horizon
        return charged

    def state(self) -> dict[str, Any]:
        return {"beta": self.beta}

    def restore(self, state: dict[str, Any]) -> None:
        self.beta = state["beta"]


adaptive_kl = AdaptiveKL


def penalise_unfinished(penalty: float = 1.0) -> Stage:
    """Take `penalty` from the reward of each response that the length limit cut off (a missing end token)."""
    return lambda batch: _reshaped(batch, batch["reward"] - penalty * (~batch["finished"]).to(batch["reward"].dtype))


def penalise_length(limit: int, cache: int) -> Stage:
    """Take up to 1 from the reward, in proportion to the tokens beyond `limit` less `cache`.

    DAPO's soft overlong punishment, https://arxiv.org/abs/2503.14476, eq. 13.
    """
    if not 0 < cache <= limit:
        raise ValueError(f"cache: {cache}, expected above 0 and at most limit ({limit})")

    def stage(batch: Batch) -> Batch:
        beyond = batch.mask.sum(-1) - (limit - cache)
        return _reshaped(batch, batch["reward"] - (beyond / cache).clamp(0, 1).to(batch["reward"].dtype))

    return stage


def clip_reward(low: float, high: float) -> Stage:
    """Keep the reward between `low` and `high`."""
    if low >= high:
        raise ValueError(f"low: {low}, expected below high ({high})")
    return lambda batch: _reshaped(batch, batch["reward"].clamp(low, high))


def standardise_reward(batch: Batch) -> Batch:
    """Rewards less their group's mean, over its standard deviation (divided by the count, as 2404.14367's code)."""
    reward = clean(batch["reward"], batch.present)
    centred = clean(reward - present_mean(reward, batch.present)[:, None], batch.present)
    std = present_mean(centred.square(), batch.present).sqrt()[:, None]
    return _reshaped(batch, torch.where(std > 0, centred / (std + 1e-8), torch.zeros_like(centred)))


def whiten_reward(batch: Batch) -> Batch:
    """Rewards at mean 0 and (unbiased) variance 1 over the whole round."""
    return _reshaped(batch, masked_whiten(clean(batch["reward"], batch.present), batch.present))


def win_rate(batch: Batch) -> Batch:
    """Fill `win_rate`: the mean chance, by Bradley-Terry on the rewards, to beat another response of the group.

    One half for a response without rivals. SPPO's code counts the response against itself as well.
    """
    return batch.fill(win_rate=_beats(batch, batch.present))


def duel(batch: Batch) -> Batch:
    """Reward: the chance to beat the rivals, less one half; then the rivals are left out.

    Rivals are the responses that are not fresh (`challenge` puts them behind), and without any the group's own: Nash-MD
    (https://arxiv.org/abs/2312.00886, eq. 7) against the reference, or against itself.
    """
    rivals = batch.present & ~batch.fresh
    own = int(batch.fresh.all(0).sum())
    won = _beats(batch, rivals if rivals.any() else batch.present) - 0.5
    return _reshaped(batch, won).take(torch.arange(own, device=won.device).expand(len(batch), own))


def _beats(batch: Batch, rivals: Tensor) -> Tensor:
    value = clean(batch["reward"], batch.present)
    chance = torch.sigmoid(value[:, :, None] - value[:, None, :])  # [P, K, K]
    there = rivals[:, None, :] & ~torch.eye(value.shape[1], dtype=torch.bool, device=value.device)
    count = there.sum(-1)
    mean = chance.masked_fill(~there, 0.0).sum(-1) / count.clamp(min=1)
    return torch.where(count > 0, mean, torch.full_like(mean, 0.5))


def _at_the_end(batch: Batch) -> Tensor:
    T = batch.response.shape[2]
    end = (batch.mask * torch.arange(1, T + 1, device=batch.mask.device)).amax(-1)  # [P, K]; 0 where it is empty
    last = F.one_hot(end, T + 1)[..., 1:].bool()
    return clean(worth(batch, 0.0)[..., None].expand(last.shape), last)


def _reshaped(batch: Batch, reward: Tensor) -> Batch:
    first = batch["raw_reward"] if "raw_reward" in batch else batch["reward"]
    return batch.fill(raw_reward=first, reward=reward)
