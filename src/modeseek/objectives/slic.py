"""SLiC-HF: a hinge on the log-probabilities themselves, held in place by the likelihood of a good response.

Zhao et al. 2023, https://arxiv.org/abs/2305.10425, eq. 3, whose regulariser is the likelihood of the SFT target; pairs
alone do not carry one, so it is the chosen response's here, as the paper's section 3.3 allows.
"""

from dataclasses import dataclass
from typing import ClassVar

from modeseek.batch import PKT, MaskPKT
from modeseek.objectives.base import Axes, Loss, pair_metrics
from modeseek.ops import seq


@dataclass(frozen=True)
class SLiC:
    margin: float = 1.0  # nats by which the chosen response should be likelier than the rejected one
    nll: float = 0.1  # weight of the chosen response's negative log-likelihood

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "max(0, margin - log pi(y_w) + log pi(y_l)) - nll log pi(y_w)"
    source: ClassVar[str] = "https://arxiv.org/abs/2305.10425"

    def __call__(self, logp: PKT, mask: MaskPKT) -> Loss:
        total = seq(logp, mask)  # [P, K]
        hinge = (self.margin - total[:, 0] + total[:, 1]).clamp(min=0)
        return Loss(hinge - self.nll * total[:, 0], pair_metrics(logp, mask))
