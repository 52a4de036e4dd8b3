"""CPO: DPO with a uniform reference, and the chosen response's likelihood in its place.

Xu et al. 2024, https://arxiv.org/abs/2401.08417, eq. 5. The paper sums the likelihood over tokens; the authors' code
and TRL (`cpo_alpha`) average it over the tokens of the batch.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from modeseek.batch import PKT, MaskPKT
from modeseek.objectives.base import Axes, LogpReduction, Loss, over_tokens, pair_metrics, reward_metrics
from modeseek.ops import seq


@dataclass(frozen=True)
class CPO:
    beta: float = 0.1  # reward for each nat of log-probability
    nll: float = 1.0  # weight of the chosen response's negative log-likelihood, above 0
    nll_reduction: LogpReduction = "sum"  # of that likelihood over tokens; "sum" is the paper's

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "-log sigma(beta (log pi(y_w) - log pi(y_l))) - nll log pi(y_w)"
    source: ClassVar[str] = "https://arxiv.org/abs/2401.08417"

    def __post_init__(self) -> None:
        if self.nll <= 0:
            raise ValueError(f"nll: {self.nll}, expected above 0: without it nothing holds the policy")

    def __call__(self, logp: PKT, mask: MaskPKT) -> Loss:
        implied = self.beta * seq(logp, mask)  # [P, K]
        reduce = over_tokens(self.nll_reduction, "nll_reduction")
        loss = -F.logsigmoid(implied[:, 0] - implied[:, 1]) - self.nll * reduce(logp, mask)[:, 0]
        return Loss(loss, pair_metrics(logp, mask) | reward_metrics(implied))
