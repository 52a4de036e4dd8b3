"""AOT on pairs: the policy's margins, sorted over the minibatch, should dominate the reference's, sorted as well.

Melnyk et al. 2024, https://arxiv.org/abs/2406.05882, section 3 (paired), logistic surrogate. The reference margin of
the same rank is a constant, so a stage finds it (`rank_margins`) and the loss stays one prompt's. TRL: `aot`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from modeseek.batch import P_, PKT, MaskPKT
from modeseek.objectives.base import Axes, Loss, pair_metrics
from modeseek.ops import seq


@dataclass(frozen=True)
class AOT:
    beta: float = 0.1  # reward for each nat of margin
    label_smoothing: float = 0.0  # share of the labels believed to be flipped, below one half

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "-log sigma(beta (s_w - s_l - the reference margin of the same rank))"
    source: ClassVar[str] = "https://arxiv.org/abs/2406.05882"

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing: {self.label_smoothing}, expected at least 0 and below 0.5")

    def __call__(self, logp: PKT, mask: MaskPKT, ranked_margin: P_) -> Loss:
        total = seq(logp, mask)  # [P, K]
        gap = self.beta * (total[:, 0] - total[:, 1] - ranked_margin)
        flipped = self.label_smoothing
        loss = -(1 - flipped) * F.logsigmoid(gap) - flipped * F.logsigmoid(-gap)
        return Loss(loss, pair_metrics(logp, mask) | {"rewards/margins": gap.detach()})
