"""LD-DPO: the tokens by which one response is longer than the other count less.

Liu et al. 2024, https://arxiv.org/abs/2409.06411, eq. 10. The shorter length of the two is common; what a response has
beyond it is weighed by alpha, for policy and reference alike (LLaMA-Factory weighs the policy alone).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from modeseek.batch import PKT, MaskPKT
from modeseek.objectives.base import Axes, Loss, pair_metrics
from modeseek.ops import seq


@dataclass(frozen=True)
class LDDPO:
    beta: float = 0.1  # reward for each nat of log-ratio to the reference
    alpha: float = 0.5  # weight of the tokens beyond the common length: 1 is DPO, 0 does not see them

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "-log sigma(beta (h_w - h_l)), h = sum_t a_t h_t, a_t = alpha for t > min(|y_w|, |y_l|)"
    source: ClassVar[str] = "https://arxiv.org/abs/2409.06411"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < 1:
            raise ValueError(f"alpha: {self.alpha}, expected at least 0 and below 1; for 1 write DPO")

    def __call__(self, logp: PKT, ref_logp: PKT, mask: MaskPKT) -> Loss:
        pair = mask[:, :2]
        common = pair.sum(-1).amin(-1)  # [P]
        beyond = pair.cumsum(-1) > common[:, None, None]
        told = (logp - ref_logp)[:, :2]
        log_ratio = seq(torch.where(beyond, self.alpha * told, told), pair)  # [P, 2]
        margin = self.beta * (log_ratio[:, 0] - log_ratio[:, 1])
        return Loss(-F.logsigmoid(margin), pair_metrics(logp, mask, ref_logp, self.beta))
