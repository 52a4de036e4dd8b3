"""DPO for a reward that charges length (R-DPO).

Park et al. 2024, https://arxiv.org/abs/2403.19159, eq. 9.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from modeseek.batch import PKT, MaskPKT
from modeseek.objectives.base import Axes, Loss, pair_metrics
from modeseek.ops import seq


@dataclass(frozen=True)
class LengthDPO:
    beta: float = 0.1  # reward for each nat of log-ratio to the reference
    alpha: float = 0.01  # reward charged for each token

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "-log sigma(beta (h_w - h_l) + alpha (|y_w| - |y_l|))"
    source: ClassVar[str] = "https://arxiv.org/abs/2403.19159"

    def __call__(self, logp: PKT, ref_logp: PKT, mask: MaskPKT) -> Loss:
        # The labels are explained by beta h + alpha |y|: what length explains, the policy need not.
        explained = self.beta * seq(logp - ref_logp, mask) + self.alpha * mask.sum(-1, dtype=logp.dtype)  # [P, K]
        return Loss(-F.logsigmoid(explained[:, 0] - explained[:, 1]), pair_metrics(logp, mask, ref_logp, self.beta))
