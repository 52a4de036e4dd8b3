"""SimPO: the mean log-probability of a token is the reward, a target margin stands in for the reference.

Meng et al. 2024, https://arxiv.org/abs/2405.14734, eq. 6. TRL asks for gamma / beta instead (`simpo_gamma` is gamma);
label smoothing is TRL's and torchtune's addition.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from modeseek.batch import PKT, MaskPKT
from modeseek.objectives.base import Axes, Loss, pair_metrics, reward_metrics
from modeseek.ops import seq_mean


@dataclass(frozen=True)
class SimPO:
    beta: float = 2.0  # reward for each nat per token
    gamma: float = 0.5  # margin of reward asked for
    label_smoothing: float = 0.0  # share of the labels believed to be flipped, below one half

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "-log sigma(beta (log pi(y_w) / |y_w| - log pi(y_l) / |y_l|) - gamma)"
    source: ClassVar[str] = "https://arxiv.org/abs/2405.14734"

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing: {self.label_smoothing}, expected at least 0 and below 0.5")

    def __call__(self, logp: PKT, mask: MaskPKT) -> Loss:
        implied = self.beta * seq_mean(logp, mask)  # [P, K]
        margin = implied[:, 0] - implied[:, 1] - self.gamma
        flipped = self.label_smoothing
        loss = -(1 - flipped) * F.logsigmoid(margin) - flipped * F.logsigmoid(-margin)
        return Loss(loss, pair_metrics(logp, mask) | reward_metrics(implied))
