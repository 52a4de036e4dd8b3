"""AOT without pairs: the sorted log-ratios of the chosen should dominate those of the rejected.

Melnyk et al. 2024, https://arxiv.org/abs/2406.05882, section 3 (unpaired). A rank joins one prompt's chosen response to
another's rejected one, and both move. `rank_log_ratios` gives each the other's log-ratio under the current weights
as a constant, so the gradient is the paper's; the value counts each of its pairs from both ends and is twice as large.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from modeseek.batch import PK, PKT, MaskPKT
from modeseek.objectives.base import Axes, Loss, pair_metrics
from modeseek.ops import seq


@dataclass(frozen=True)
class UnpairedAOT:
    beta: float = 0.1  # reward for each nat of log-ratio to the reference

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "-log sigma(beta (h_w - partner_w)) - log sigma(beta (partner_l - h_l))"
    source: ClassVar[str] = "https://arxiv.org/abs/2406.05882"

    def __call__(self, logp: PKT, ref_logp: PKT, mask: MaskPKT, partner: PK) -> Loss:
        log_ratio = seq(logp - ref_logp, mask)  # [P, K]
        won = F.logsigmoid(self.beta * (log_ratio[:, 0] - partner[:, 0]))
        lost = F.logsigmoid(self.beta * (partner[:, 1] - log_ratio[:, 1]))
        return Loss(-won - lost, pair_metrics(logp, mask, ref_logp, self.beta))
