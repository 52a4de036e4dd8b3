"""Any objective on pairs, and the chosen response's likelihood beside it.

Pang et al. 2024 (iterative reasoning preference optimisation, RPO), https://arxiv.org/abs/2404.19733, eq. 1, which
averages the likelihood over the chosen response's tokens; TRL's `rpo_alpha`. VPO offline
(https://arxiv.org/abs/2405.19320) is DPO with nll = alpha beta and the sum.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from modeseek.batch import PKT, MaskPKT
from modeseek.objectives.base import Axes, LogpReduction, Loss, apply, over_tokens
from modeseek.objectives.contrastive import Contrastive
from modeseek.objectives.dpo import DPO


@dataclass(frozen=True)
class WithSFT:
    inner: Contrastive = DPO()
    nll: float = 1.0  # weight of the chosen response's negative log-likelihood, above 0
    nll_reduction: LogpReduction = "mean"  # of that likelihood over tokens; "mean" is the paper's

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "inner(y_w, y_l) - nll log pi(y_w) / |y_w|"
    source: ClassVar[str] = "https://arxiv.org/abs/2404.19733"

    def __post_init__(self) -> None:
        if self.nll <= 0:
            raise ValueError(f"nll: {self.nll}, expected above 0; without it write the inner objective alone")

    def __call__(self, logp: PKT, mask: MaskPKT, **rest: Tensor) -> Loss:
        pairs = apply(self.inner, {"logp": logp, "mask": mask, **rest})
        nll = -over_tokens(self.nll_reduction, "nll_reduction")(logp, mask)[:, 0]
        return Loss(pairs.per_prompt + self.nll * nll, pairs.metrics | {"nll": nll.detach()})
