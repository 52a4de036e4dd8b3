"""DPO on a ranking: each response should beat all that come after it.

Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, eq. 20 (appendix A.3). The group is best first (`ranked` orders
it by reward); with two responses it is DPO. Ties have to be left out before: an order of equals is noise.
"""

from dataclasses import dataclass
from typing import ClassVar

from modeseek.batch import PKT, MaskPK, MaskPKT
from modeseek.objectives.base import Axes, Loss, pair_metrics
from modeseek.ops import seq


@dataclass(frozen=True)
class PlackettLuce:
    beta: float = 0.1  # reward for each nat of log-ratio to the reference

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "-sum_k (r_k - log sum_{j >= k} exp(r_j)), r = beta h, best first"
    source: ClassVar[str] = "https://arxiv.org/abs/2305.18290"

    def __call__(self, logp: PKT, ref_logp: PKT, mask: MaskPKT, present: MaskPK) -> Loss:
        implied = self.beta * seq(logp - ref_logp, mask)  # [P, K]
        # An absent response has no weight in any sum; the finite number keeps the gradient of the sum defined.
        left = implied.masked_fill(~present, -1e9).flip(-1).logcumsumexp(-1).flip(-1)
        loss = (left - implied).masked_fill(~present, 0.0).sum(-1)
        return Loss(loss, pair_metrics(logp, mask, ref_logp, self.beta))
