"""Direct preference optimisation.

Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, eq. 7; label smoothing ("conservative DPO") from
https://ericmitchell.ai/cdpo.pdf; length normalisation from Lambert et al. 2024 (Tulu 3),
https://arxiv.org/abs/2411.15124, section 5.1. What beta is worth depends on it: on a sum it is the reward of a nat of
the whole response (0.1 is usual), on a mean that of a nat per token (Tulu 3 takes 5). Open-instruct calls the mean
`dpo_norm`, TRL `sigmoid_norm`; OpenRLHF, NeMo-RL and LLaMA-Factory sum.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from modeseek.batch import PKT, MaskPKT
from modeseek.objectives.base import Axes, LogpReduction, Loss, over_tokens, pair_metrics


@dataclass(frozen=True)
class DPO:
    beta: float = 0.1  # reward for each nat of log-ratio to the reference
    label_smoothing: float = 0.0  # share of the labels believed to be flipped, below one half
    logp_reduction: LogpReduction = "sum"  # over a response's tokens; "mean" is Tulu 3's and wants a larger beta

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "-log sigma(beta (h_w - h_l)), h = log pi(y) - log pi_ref(y)"
    source: ClassVar[str] = "https://arxiv.org/abs/2305.18290"

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing: {self.label_smoothing}, expected at least 0 and below 0.5")

    def __call__(self, logp: PKT, ref_logp: PKT, mask: MaskPKT) -> Loss:
        log_ratio = over_tokens(self.logp_reduction)(logp - ref_logp, mask)  # [P, K]
        margin = self.beta * (log_ratio[:, 0] - log_ratio[:, 1])
        flipped = self.label_smoothing
        loss = -(1 - flipped) * F.logsigmoid(margin) - flipped * F.logsigmoid(-margin)
        return Loss(loss, pair_metrics(logp, mask, ref_logp, self.beta, self.logp_reduction))
