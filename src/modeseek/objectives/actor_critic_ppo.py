"""PPO whose critic learns in the same step, from `value` and the returns of `gae`.

Schulman et al. 2017, https://arxiv.org/abs/1707.06347, eq. 9; the clipped value loss is from the authors' code
(https://github.com/openai/baselines, `ppo2`) and not in the paper. TRL and OpenRLHF weigh the critic by 0.1.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from modeseek.batch import P_, PKT, MaskPK, MaskPKT
from modeseek.objectives.base import Axes, Loss, TokenReduction, reduce_tokens
from modeseek.objectives.ppo import surrogate
from modeseek.ops import clean, present_mean, seq_mean


@dataclass(frozen=True)
class ActorCriticPPO:
    clip: float = 0.2  # the ratio is worth no more than 1 + clip, and no less than 1 - clip
    clip_high: float | None = None  # another limit from above; unset: clip
    value_weight: float = 0.1  # weight of half the squared error of the value, above 0
    value_clip: float | None = None  # the value earns nothing further from what it was; above 0 it reads old_value
    logp_reduction: TokenReduction = "sum"  # of tokens to a prompt's loss

    axes: ClassVar[Axes] = Axes(on_policy=True, negative_gradient="by_advantage", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "PPO + c max((v - R)^2, (v_old + clip(v - v_old) - R)^2) / 2"
    source: ClassVar[str] = "https://arxiv.org/abs/1707.06347"

    def __post_init__(self) -> None:
        if self.value_weight <= 0:
            raise ValueError(f"value_weight: {self.value_weight}, expected above 0; without a critic write PPO")

    def __call__(
        self,
        logp: PKT,
        value: PKT,
        old_logp: PKT,
        advantage: PKT,
        returns: PKT,
        mask: MaskPKT,
        present: MaskPK,
        old_value: PKT | None = None,
        token_share: P_ | None = None,
    ) -> Loss:
        cost, at_limit = surrogate(logp, old_logp, advantage, mask, self.clip, self.clip_high)
        value, returns = clean(value, mask), clean(returns, mask)
        error = (value - returns).square()
        if self.value_clip is not None:
            if old_value is None:
                raise ValueError("value_clip reads old_value: add recall_value to the stages, or leave it out")
            old = clean(old_value, mask)
            near = old + (value - old).clamp(-self.value_clip, self.value_clip)
            error = torch.maximum(error, (near - returns).square())
        loss = reduce_tokens(cost + self.value_weight * error / 2, mask, present, self.logp_reduction, token_share)
        metrics = {"clip_fraction": present_mean(seq_mean(at_limit, mask), present)}
        return Loss(loss, metrics | {"value_error": present_mean(seq_mean(error.detach(), mask), present)})
