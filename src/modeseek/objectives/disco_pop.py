"""DiscoPOP: a blend of the logistic and the exponential loss that a language model found.

Lu et al. 2024, https://arxiv.org/abs/2406.08414, eq. 6 (log-ratio modulated loss). Not convex: at
beta = tau = 0.05 it lowers the margins that lie between -2.37 and 1.44 nats, those of an untrained policy among them.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from modeseek.batch import PKT, MaskPKT
from modeseek.objectives.base import Axes, Loss, pair_metrics
from modeseek.ops import seq


@dataclass(frozen=True)
class DiscoPOP:
    beta: float = 0.05  # reward for each nat of log-ratio to the reference
    tau: float = 0.05  # margins far below -tau see the logistic loss, far above tau the exponential one

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "-(1 - g) log sigma(m) + g exp(-m), m = beta (h_w - h_l), g = sigma(m / tau)"
    source: ClassVar[str] = "https://arxiv.org/abs/2406.08414"

    def __post_init__(self) -> None:
        if self.tau <= 0:
            raise ValueError(f"tau: {self.tau}, expected above 0")

    def __call__(self, logp: PKT, ref_logp: PKT, mask: MaskPKT) -> Loss:
        log_ratio = seq(logp - ref_logp, mask)  # [P, K]
        margin = self.beta * (log_ratio[:, 0] - log_ratio[:, 1])
        # In one exponent, so that a very negative margin gives exp(m / tau - m) and not zero times infinity.
        blended = torch.exp(F.logsigmoid(margin / self.tau) - margin)
        loss = -torch.sigmoid(-margin / self.tau) * F.logsigmoid(margin) + blended
        return Loss(loss, pair_metrics(logp, mask, ref_logp, self.beta))
