"""SPPO: regress each log-ratio to how much more often than half the response beats the policy that wrote it.

Wu et al. 2024, https://arxiv.org/abs/2405.00675, eq. 4.7 (with the normaliser put at one half, as there). The reference
is the policy of the round: let `refer_old` fill ref_logp. Without a `win_rate` a pair is taken at its word, 1 and 0
(the paper's code and TRL's `sppo_hard`, which sum over the pair where this takes the mean).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from modeseek.batch import PK, PKT, MaskPK, MaskPKT
from modeseek.objectives.base import Axes, Loss
from modeseek.ops import clean, present_mean, seq


@dataclass(frozen=True)
class SPPO:
    beta: float = 1e-3  # the paper's 1 / eta: a response that always wins is asked to gain 1 / (2 beta) nats

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "mean_k (h_k - (P(y_k wins) - 1/2) / beta)^2"
    source: ClassVar[str] = "https://arxiv.org/abs/2405.00675"

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta: {self.beta}, expected above 0")

    def __call__(self, logp: PKT, ref_logp: PKT, mask: MaskPKT, present: MaskPK, win_rate: PK | None = None) -> Loss:
        log_ratio = seq(logp - ref_logp, mask)  # [P, K]
        if win_rate is None:
            present = present & (torch.arange(present.shape[1], device=present.device) < 2)
            win_rate = torch.zeros_like(log_ratio)
            win_rate[:, 0] = 1.0
        target = (clean(win_rate, present) - 0.5) / self.beta
        metrics = {"log_ratio": present_mean(log_ratio.detach(), present)}
        return Loss(present_mean((log_ratio - target).square(), present), metrics)
