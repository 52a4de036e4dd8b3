"""DPO made unbiased for labels that are flipped at a known rate.

Chowdhury et al. 2024, https://arxiv.org/abs/2403.00409, eq. 12. Over the flips its mean is DPO on clean labels, which
label smoothing's is not; the price is variance, and a loss without lower bound.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from modeseek.batch import PKT, MaskPKT
from modeseek.objectives.base import Axes, Loss, pair_metrics
from modeseek.ops import seq


@dataclass(frozen=True)
class RobustDPO:
    beta: float = 0.1  # reward for each nat of log-ratio to the reference
    label_smoothing: float = 0.1  # share of the labels that are flipped, above 0 and below one half

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "(-(1 - e) log sigma(m) + e log sigma(-m)) / (1 - 2 e), m = beta (h_w - h_l)"
    source: ClassVar[str] = "https://arxiv.org/abs/2403.00409"

    def __post_init__(self) -> None:
        if not 0 < self.label_smoothing < 0.5:
            raise ValueError(
                f"label_smoothing: {self.label_smoothing}, expected above 0 and below 0.5; without flips write DPO"
            )

    def __call__(self, logp: PKT, ref_logp: PKT, mask: MaskPKT) -> Loss:
        log_ratio = seq(logp - ref_logp, mask)  # [P, K]
        margin = self.beta * (log_ratio[:, 0] - log_ratio[:, 1])
        flipped = self.label_smoothing
        loss = (flipped * F.logsigmoid(-margin) - (1 - flipped) * F.logsigmoid(margin)) / (1 - 2 * flipped)
        return Loss(loss, pair_metrics(logp, mask, ref_logp, self.beta))
