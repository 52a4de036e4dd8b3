"""f-DPO: DPO for another divergence to the reference than the reverse KL.

Wang et al. 2023, https://arxiv.org/abs/2309.16240, table 1: the reward is beta f'(pi / pi_ref). alpha = 1 is the
forward KL, alpha towards 0 the reverse KL of DPO. Constants of f' cancel in a pair and are left out.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from modeseek.batch import PKT, MaskPKT
from modeseek.objectives.base import Axes, Loss, one_of, pair_metrics, reward_metrics
from modeseek.ops import seq

HIGHEST = 20.0  # nats: beyond it a power of the ratio is taken as e^20, lest it overflow


@dataclass(frozen=True)
class FDPO:
    beta: float = 0.1  # scale of the reward
    divergence: Literal["jensen_shannon", "alpha"] = "jensen_shannon"
    alpha: float | None = None  # of the alpha divergence, above 0; 1 is the forward KL

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-covering")
    equation: ClassVar[str] = "-log sigma(beta (g_w - g_l)); JS: g = h - log(1 + e^h); alpha: g = -exp(-a h) / a"
    source: ClassVar[str] = "https://arxiv.org/abs/2309.16240"

    def __post_init__(self) -> None:
        one_of("divergence", self.divergence, {"jensen_shannon": None, "alpha": None})
        if (self.divergence == "alpha") != (self.alpha is not None):
            raise ValueError(
                f"alpha: {self.alpha} with divergence: {self.divergence}; alpha, and only alpha, needs one"
            )
        if self.alpha is not None and self.alpha <= 0:
            raise ValueError(f"alpha: {self.alpha}, expected above 0; for the reverse KL write DPO")

    def __call__(self, logp: PKT, ref_logp: PKT, mask: MaskPKT) -> Loss:
        log_ratio = seq(logp - ref_logp, mask)  # [P, K]
        if self.alpha is None:
            slope = F.logsigmoid(log_ratio)  # h - log(1 + e^h)
        else:
            slope = -torch.exp((-self.alpha * log_ratio).clamp(max=HIGHEST)) / self.alpha
        implied = self.beta * slope
        return Loss(-F.logsigmoid(implied[:, 0] - implied[:, 1]), pair_metrics(logp, mask) | reward_metrics(implied))
