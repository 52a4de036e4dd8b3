"""Hybrid-DPO: DPO that takes the reference as neutral on pairs which the reference has the wrong way round.

Yuan et al. 2026, https://arxiv.org/abs/2602.11902. On such pairs DPO's gradient fades as soon as the policy is less
wrong than the reference. The paper also calls it HyPO; it samples nothing and is not the HyPO of 2406.01462.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from modeseek.batch import PKT, MaskPKT
from modeseek.objectives.base import Axes, Loss, pair_metrics
from modeseek.ops import clean, seq


@dataclass(frozen=True)
class HybridDPO:
    beta: float = 0.1  # reward for each nat of log-ratio to the reference

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "-log sigma(beta (s_w - s_l - max(0, s_ref_w - s_ref_l))), s = log pi(y)"
    source: ClassVar[str] = "https://arxiv.org/abs/2602.11902"

    def __call__(self, logp: PKT, ref_logp: PKT, mask: MaskPKT) -> Loss:
        total, reference = seq(logp, mask), seq(clean(ref_logp, mask), mask)  # [P, K]
        told = reference[:, 0] - reference[:, 1]
        margin = self.beta * (total[:, 0] - total[:, 1] - told.clamp(min=0))
        pessimistic = (told < 0).to(margin.dtype)
        metrics = pair_metrics(logp, mask, ref_logp, self.beta) | {"pessimistic": pessimistic}
        return Loss(-F.logsigmoid(margin), metrics)
