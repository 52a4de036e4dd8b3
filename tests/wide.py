"""Objectives that only the tests use: they prove that the shape carries more than what is shipped.

KTO needs a statistic of the whole minibatch under the current weights, DAPO a token mean over the minibatch, PPO with
a critic a second live output. Each gets it from a stage that runs before the micro-batches are cut.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from modeseek.batch import P_, PKT, Batch, MaskPK, MaskPKT
from modeseek.objectives import Axes, Loss
from modeseek.ops import clean, present_mean, seq


@dataclass(frozen=True)
class KTO:
    """Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306, eq. 8."""

    beta: float = 0.1

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "1 - sigma(+-(beta h - z0))"
    source: ClassVar[str] = "https://arxiv.org/abs/2402.01306"

    def __call__(self, logp: PKT, ref_logp: PKT, mask: MaskPKT, present: MaskPK, label: MaskPK, z0: P_) -> Loss:
        value = self.beta * (seq(logp - ref_logp, mask) - z0[:, None])
        return Loss(present_mean(1 - torch.sigmoid(torch.where(label, value, -value)), present))


def kl_of_mismatched(policy: nn.Module, reference: nn.Module):
    """KTO's live z0: the mean log-ratio of each prompt with its neighbour's responses, at least zero."""

    @torch.no_grad()
    def stage(batch: Batch) -> Batch:
        order = torch.roll(torch.arange(len(batch)), 1)
        wrong = Batch.own(batch.prompt, batch.prompt_mask, batch.response[order], batch.mask[order])
        ratio = seq(policy.logp(wrong) - reference.logp(wrong), wrong.mask)
        return batch.fill(z0=ratio.mean().clamp(min=0).expand(len(batch)).clone())

    return stage


@dataclass(frozen=True)
class DAPO:
    """Token mean over the minibatch: https://arxiv.org/abs/2503.14476, eq. 8, one group of tokens for all prompts."""

    axes: ClassVar[Axes] = Axes(on_policy=True, negative_gradient="by_advantage", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "-sum_k sum_t rho A / (tokens of the minibatch)"
    source: ClassVar[str] = "https://arxiv.org/abs/2503.14476"

    def __call__(
        self, logp: PKT, old_logp: PKT, advantage: PKT, mask: MaskPKT, present: MaskPK, token_share: P_
    ) -> Loss:
        ratio = (clean(logp, mask) - clean(old_logp, mask)).exp()
        gain = seq(ratio * clean(advantage, mask), mask).masked_fill(~present, 0.0)
        return Loss(-gain.sum(-1) * token_share)


def share_tokens(batch: Batch) -> Batch:
    """Fill token_share so that the loop's mean over prompts becomes a mean over the minibatch's tokens."""
    share = batch.weight.sum() / batch.mask.sum().clamp(min=1)
    return batch.fill(token_share=share.expand(len(batch)).clone())


@dataclass(frozen=True)
class ActorCriticPPO:
    """PPO whose critic shares the step: clipped surrogate plus the squared error of `value`."""

    clip: float = 0.2
    value_weight: float = 0.1

    axes: ClassVar[Axes] = Axes(on_policy=True, negative_gradient="by_advantage", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "PPO + c (value - returns)^2"
    source: ClassVar[str] = "https://arxiv.org/abs/1707.06347"

    def __call__(
        self,
        logp: PKT,
        value: PKT,
        old_logp: PKT,
        advantage: PKT,
        returns: PKT,
        mask: MaskPKT,
        present: MaskPK,
    ) -> Loss:
        logp, advantage = clean(logp, mask), clean(advantage, mask)
        ratio = (logp - clean(old_logp, mask)).exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - self.clip, 1 + self.clip) * advantage)
        error = F.mse_loss(clean(value, mask), clean(returns, mask), reduction="none")
        return Loss(present_mean(seq(self.value_weight * error - gain, mask), present))


class WithValue(nn.Module):
    """A policy with a critic: the value of the state before token t, here of the prompt's last token alone."""

    def __init__(self, policy: nn.Module, prompts: int):
        super().__init__()
        self.policy = policy
        self.table = nn.Parameter(torch.randn(prompts, dtype=torch.float64))

    def logp(self, batch: Batch) -> torch.Tensor:
        return self.policy.logp(batch)

    def value(self, batch: Batch) -> torch.Tensor:
        return self.table[batch.prompt[:, -1]][:, None, None].expand(batch.response.shape)

    def sample(self, *args, **kwargs) -> Batch:
        return self.policy.sample(*args, **kwargs)
