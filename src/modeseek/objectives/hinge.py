"""The hinge on DPO's margin: a pair that is far enough apart is left alone.

Liu et al. 2023 (RSO), https://arxiv.org/abs/2309.06657, eq. 10 (hinge-norm). SLiC-HF's own hinge has no reference:
see `slic.py`. TRL, LLaMA-Factory and torchtune call this one hinge or RSO.
"""

from dataclasses import dataclass
from typing import ClassVar

from modeseek.batch import PKT, MaskPKT
from modeseek.objectives.base import Axes, Loss, pair_metrics
from modeseek.ops import seq


@dataclass(frozen=True)
class Hinge:
    beta: float = 0.1  # reward for each nat of log-ratio to the reference; the margin asked for is 1

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "max(0, 1 - beta (h_w - h_l))"
    source: ClassVar[str] = "https://arxiv.org/abs/2309.06657"

    def __call__(self, logp: PKT, ref_logp: PKT, mask: MaskPKT) -> Loss:
        log_ratio = seq(logp - ref_logp, mask)  # [P, K]
        margin = self.beta * (log_ratio[:, 0] - log_ratio[:, 1])
        return Loss((1 - margin).clamp(min=0), pair_metrics(logp, mask, ref_logp, self.beta))
