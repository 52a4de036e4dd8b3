"""EXO for pairs: the reverse KL from the policy's preference to the smoothed label, where DPO takes the forward one.

Ji et al. 2024, https://arxiv.org/abs/2402.00856, eq. 18 (EXO-pref, K = 2). TRL: `exo_pair`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from modeseek.batch import PKT, MaskPKT
from modeseek.objectives.base import Axes, Loss, pair_metrics
from modeseek.ops import seq


@dataclass(frozen=True)
class EXO:
    beta: float = 0.1  # reward for each nat of log-ratio to the reference
    label_smoothing: float = 1e-3  # mass of the label on the rejected response; 0 would make the KL infinite

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "s (log s - log(1 - e)) + (1 - s) (log(1 - s) - log e), s = sigma(beta (h_w - h_l))"
    source: ClassVar[str] = "https://arxiv.org/abs/2402.00856"

    def __post_init__(self) -> None:
        if not 0 < self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing: {self.label_smoothing}, expected above 0 and below 0.5")

    def __call__(self, logp: PKT, ref_logp: PKT, mask: MaskPKT) -> Loss:
        log_ratio = seq(logp - ref_logp, mask)  # [P, K]
        margin = self.beta * (log_ratio[:, 0] - log_ratio[:, 1])
        told, flipped = math.log1p(-self.label_smoothing), math.log(self.label_smoothing)
        first = torch.sigmoid(margin) * (F.logsigmoid(margin) - told)
        second = torch.sigmoid(-margin) * (F.logsigmoid(-margin) - flipped)
        return Loss(first + second, pair_metrics(logp, mask, ref_logp, self.beta))
