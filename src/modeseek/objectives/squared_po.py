"""SquaredPO: DPO whose reward bends back, so that probability cannot be paid for by driving both responses to zero.

Pipano et al. 2026, https://arxiv.org/abs/2602.06788: f-DPO with the non-convex f(t) = (log t)^2 / 2, hence the reward
beta f'(t) = beta log(t) / t of the probability ratio t = pi / pi_ref. It is largest at t = e and falls without bound
towards t = 0.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from modeseek.batch import PKT, MaskPKT
from modeseek.objectives.base import Axes, Loss, pair_metrics, reward_metrics
from modeseek.ops import seq

LOWEST = -20.0  # nats: below it exp(-h) would overflow, so the reward goes on as a constant


@dataclass(frozen=True)
class SquaredPO:
    beta: float = 0.1  # scale of the reward

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "-log sigma(beta (h_w exp(-h_w) - h_l exp(-h_l)))"
    source: ClassVar[str] = "https://arxiv.org/abs/2602.06788"

    def __call__(self, logp: PKT, ref_logp: PKT, mask: MaskPKT) -> Loss:
        log_ratio = seq(logp - ref_logp, mask).clamp(min=LOWEST)  # [P, K]
        implied = self.beta * log_ratio * torch.exp(-log_ratio)
        loss = -F.logsigmoid(implied[:, 0] - implied[:, 1])
        return Loss(loss, pair_metrics(logp, mask) | reward_metrics(implied))
