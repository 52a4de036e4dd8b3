"""Reward modelling: the preferred response should score higher, by the logistic link.

Bradley & Terry 1952, https://doi.org/10.2307/2334029. Trained by the same loop as a policy. The margin is Touvron et
al. 2023 (Llama 2), https://arxiv.org/abs/2307.09288, eq. 2; centring is Eisenstein et al. 2023,
https://arxiv.org/abs/2312.09244.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from modeseek.batch import P_, PK
from modeseek.objectives.base import Axes, Loss
from modeseek.ops import in_order


@dataclass(frozen=True)
class BradleyTerry:
    margin_weight: float = 0.0  # score asked for each unit of the column margin; above 0 it reads margin
    ties: bool = False  # a margin of exactly 0 is a tie, of which both orders count half; reads margin
    centre: float = 0.0  # weight of (score_w + score_l)^2, which keeps the scores around zero

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-covering")
    equation: ClassVar[str] = "-log sigma(score_w - score_l)"
    source: ClassVar[str] = "https://doi.org/10.2307/2334029"

    @property
    def unread(self) -> frozenset[str]:
        return frozenset() if self.margin_weight > 0 or self.ties else frozenset({"margin"})

    def __call__(self, score: PK, margin: P_ | None = None) -> Loss:
        gap = score[:, 0] - score[:, 1]
        asked = gap
        if (self.margin_weight > 0 or self.ties) and margin is None:
            raise ValueError("margin_weight and ties read margin, which the data has not; leave them out")
        if self.margin_weight > 0 and margin is not None:
            asked = gap - self.margin_weight * margin
        loss = -F.logsigmoid(asked)
        if self.ties and margin is not None:
            loss = torch.where(margin == 0, -(F.logsigmoid(gap) + F.logsigmoid(-gap)) / 2, loss)
        if self.centre > 0:
            loss = loss + self.centre * (score[:, 0] + score[:, 1]).square()
        seen = gap.detach()
        return Loss(loss, {"rewards/margins": seen, "rewards/accuracies": in_order(seen)})
