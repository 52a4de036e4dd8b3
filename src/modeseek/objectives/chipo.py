"""chi-squared PO: DPO whose reward also counts the probability ratio itself, which keeps the policy near the data.

Huang et al. 2024, https://arxiv.org/abs/2407.13399, algorithm 1. The link log(z) + z belongs to the chi-squared
divergence mixed with the KL; the paper clips the margin at twice the largest reward and, in its experiments, the
exponent.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from modeseek.batch import PKT, MaskPKT
from modeseek.objectives.base import Axes, Loss, pair_metrics, reward_metrics
from modeseek.ops import seq

HIGHEST = 20.0  # nats: above it the ratio is taken as e^20, lest it overflow


@dataclass(frozen=True)
class ChiPO:
    beta: float = 0.1  # scale of the reward
    clip: float | None = None  # largest margin of reward that counts (the paper's 2 R_max); unset: any

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "-log sigma(clip(beta (phi(h_w) - phi(h_l)))), phi(h) = exp(h) + h"
    source: ClassVar[str] = "https://arxiv.org/abs/2407.13399"

    def __call__(self, logp: PKT, ref_logp: PKT, mask: MaskPKT) -> Loss:
        log_ratio = seq(logp - ref_logp, mask)  # [P, K]
        implied = self.beta * (torch.exp(log_ratio.clamp(max=HIGHEST)) + log_ratio)
        margin = implied[:, 0] - implied[:, 1]
        if self.clip is not None:
            margin = margin.clamp(-self.clip, self.clip)
        return Loss(-F.logsigmoid(margin), pair_metrics(logp, mask) | reward_metrics(implied))
