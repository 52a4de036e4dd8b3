"""DPO that asks for a larger gap where the chosen response is known to be better by more (ODPO).

Amini et al. 2024, https://arxiv.org/abs/2402.10571, eq. 7. The paper's offset is the logarithm of the reward gap; here
it is the column `margin` as it stands.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from modeseek.batch import P_, PKT, MaskPKT
from modeseek.objectives.base import Axes, Loss, pair_metrics
from modeseek.ops import seq


@dataclass(frozen=True)
class OffsetDPO:
    beta: float = 0.1  # reward for each nat of log-ratio to the reference
    offset: float = 1.0  # reward asked for each unit of the column margin

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "-log sigma(beta (h_w - h_l) - offset margin)"
    source: ClassVar[str] = "https://arxiv.org/abs/2402.10571"

    def __call__(self, logp: PKT, ref_logp: PKT, mask: MaskPKT, margin: P_) -> Loss:
        log_ratio = seq(logp - ref_logp, mask)  # [P, K]
        gap = self.beta * (log_ratio[:, 0] - log_ratio[:, 1]) - self.offset * margin
        return Loss(-F.logsigmoid(gap), pair_metrics(logp, mask, ref_logp, self.beta))
