"""NCA for pairs: noise contrast of each response by itself, so that the chosen one's likelihood does not fall.

Chen et al. 2024, https://arxiv.org/abs/2402.05369, eq. 13 with K = 2 and a hard label. TRL: `nca_pair`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from modeseek.batch import PKT, MaskPKT
from modeseek.objectives.base import Axes, Loss, pair_metrics
from modeseek.ops import seq


@dataclass(frozen=True)
class NCA:
    beta: float = 0.1  # reward for each nat of log-ratio to the reference

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "-log sigma(beta h_w) - (log sigma(-beta h_w) + log sigma(-beta h_l)) / 2"
    source: ClassVar[str] = "https://arxiv.org/abs/2402.05369"

    def __call__(self, logp: PKT, ref_logp: PKT, mask: MaskPKT) -> Loss:
        implied = self.beta * seq(logp - ref_logp, mask)[:, :2]  # [P, 2]
        loss = -F.logsigmoid(implied[:, 0]) - F.logsigmoid(-implied).mean(-1)
        return Loss(loss, pair_metrics(logp, mask, ref_logp, self.beta))
