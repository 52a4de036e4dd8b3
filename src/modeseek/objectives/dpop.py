"""DPO-Positive: DPO that is charged for every nat by which the chosen response falls below the reference.

Pal et al. 2024, https://arxiv.org/abs/2402.13228, eq. 3.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from modeseek.batch import PKT, MaskPKT
from modeseek.objectives.base import Axes, Loss, pair_metrics
from modeseek.ops import seq


@dataclass(frozen=True)
class DPOP:
    beta: float = 0.1  # reward for each nat of log-ratio to the reference; the paper takes 0.3
    penalty: float = 50.0  # the paper's lambda: nats of margin lost for each nat that the chosen response has lost

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "-log sigma(beta (h_w - h_l - penalty max(0, -h_w)))"
    source: ClassVar[str] = "https://arxiv.org/abs/2402.13228"

    def __call__(self, logp: PKT, ref_logp: PKT, mask: MaskPKT) -> Loss:
        log_ratio = seq(logp - ref_logp, mask)  # [P, K]
        lost = (-log_ratio[:, 0]).clamp(min=0)
        margin = self.beta * (log_ratio[:, 0] - log_ratio[:, 1] - self.penalty * lost)
        return Loss(-F.logsigmoid(margin), pair_metrics(logp, mask, ref_logp, self.beta) | {"nats_lost": lost.detach()})
