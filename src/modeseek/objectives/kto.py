"""KTO: single responses called good or bad, against the policy's distance from the reference.

Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306, eq. 7 and 8, with z0 estimated on mismatched pairs of the
minibatch (`mismatched_kl`), no gradient through it. Weigh the rarer of the two labels up so that desirable x good
is between 1 and 4/3 of undesirable x bad (the paper's section 4.2).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from modeseek.batch import P_, PKT, MaskPK, MaskPKT
from modeseek.objectives.base import Axes, Loss
from modeseek.ops import present_mean, seq


@dataclass(frozen=True)
class KTO:
    beta: float = 0.1  # how fast the value of a nat of log-ratio saturates
    desirable: float = 1.0  # weight of the responses that are called good
    undesirable: float = 1.0  # weight of those that are called bad

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "good: w_d (1 - sigma(beta (h - z0))), bad: w_u (1 - sigma(beta (z0 - h)))"
    source: ClassVar[str] = "https://arxiv.org/abs/2402.01306"

    def __call__(self, logp: PKT, ref_logp: PKT, mask: MaskPKT, present: MaskPK, label: MaskPK, z0: P_) -> Loss:
        value = self.beta * (seq(logp - ref_logp, mask) - z0[:, None])  # [P, K]
        good, bad = self.desirable * torch.sigmoid(-value), self.undesirable * torch.sigmoid(value)
        right = ((value > 0) == label).to(value.dtype)
        return Loss(
            present_mean(torch.where(label, good, bad), present),
            {"z0": z0, "rewards/accuracies": present_mean(right, present)},
        )
