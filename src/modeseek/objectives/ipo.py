"""Identity preference optimisation: regress the gap of log-ratios to a constant.

Azar et al. 2023, https://arxiv.org/abs/2310.12036, eq. 17. Libraries differ: the paper, OpenRLHF and TRL's
online trainers sum the log-probabilities over a response's tokens, TRL's DPO trainer and LLaMA-Factory average
them, and tau means another thing then. The official code of 2404.14367 gives the margin 1 / (2 tau) itself.
"""

from dataclasses import dataclass
from typing import ClassVar

from modeseek.batch import PKT, MaskPKT
from modeseek.objectives.base import Axes, LogpReduction, Loss, over_tokens, pair_metrics


@dataclass(frozen=True)
class IPO:
    tau: float = 0.1  # the gap is asked to be 1 / (2 tau) nats
    logp_reduction: LogpReduction = "sum"  # over a response's tokens; "sum" is the paper's

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "(h_w - h_l - 1 / (2 tau))^2"
    source: ClassVar[str] = "https://arxiv.org/abs/2310.12036"

    def __post_init__(self) -> None:
        if self.tau <= 0:
            raise ValueError(f"tau: {self.tau}, expected above 0")

    def __call__(self, logp: PKT, ref_logp: PKT, mask: MaskPKT) -> Loss:
        log_ratio = over_tokens(self.logp_reduction)(logp - ref_logp, mask)
        gap = log_ratio[:, 0] - log_ratio[:, 1]
        return Loss((gap - 1 / (2 * self.tau)) ** 2, pair_metrics(logp, mask, ref_logp, self.tau, self.logp_reduction))
