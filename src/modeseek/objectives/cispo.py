"""CISPO: the clipped ratio weighs a token's gradient, so that no token is left out of it.

MiniMax 2025 (MiniMax-M1), https://arxiv.org/abs/2506.13585, eq. 4 and 5. The paper has no limit from below.
"""

from dataclasses import dataclass
from typing import ClassVar

from modeseek.batch import P_, PKT, MaskPK, MaskPKT
from modeseek.objectives.base import Axes, Loss, TokenReduction, reduce_tokens
from modeseek.ops import clean, present_mean, seq_mean


@dataclass(frozen=True)
class CISPO:
    clip: float | None = None  # the weight is no less than 1 - clip; unset: any
    clip_high: float = 0.2  # the weight is no more than 1 + clip_high
    logp_reduction: TokenReduction = "group_mean"  # of tokens to a prompt's loss; the group's mean is the paper's

    axes: ClassVar[Axes] = Axes(on_policy=True, negative_gradient="by_advantage", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "-mean over the group's tokens of clip(rho) A log pi(y_t), clip(rho) held constant"
    source: ClassVar[str] = "https://arxiv.org/abs/2506.13585"

    def __call__(
        self,
        logp: PKT,
        old_logp: PKT,
        advantage: PKT,
        mask: MaskPKT,
        present: MaskPK,
        token_share: P_ | None = None,
    ) -> Loss:
        logp, advantage = clean(logp, mask), clean(advantage, mask)
        ratio = (logp - clean(old_logp, mask)).detach().exp()  # a weight: no gradient goes through it
        weight = ratio.clamp(0.0 if self.clip is None else 1 - self.clip, 1 + self.clip_high)
        metrics = {"clip_fraction": present_mean(seq_mean((weight != ratio).to(logp.dtype), mask), present)}
        cost = -weight * advantage * logp
        return Loss(reduce_tokens(cost, mask, present, self.logp_reduction, token_share), metrics)
