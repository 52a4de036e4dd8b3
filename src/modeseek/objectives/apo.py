"""APO: each response is anchored by itself, by what is known of the data.

D'Oosterlinck et al. 2024, https://arxiv.org/abs/2408.06266, section 3.2. `zero`: the chosen response is better than the
policy, so it should rise and the rejected one fall. `down`: the policy is better than both, so both should fall, the
rejected one more. The paper's losses are these less one.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from modeseek.batch import PKT, MaskPKT
from modeseek.objectives.base import Axes, Loss, one_of, pair_metrics
from modeseek.ops import seq


@dataclass(frozen=True)
class APO:
    beta: float = 0.1  # reward for each nat of log-ratio to the reference
    anchor: Literal["zero", "down"] = "zero"  # zero: the chosen responses beat the policy; down: they do not

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "zero: 1 - sigma(r_w) + sigma(r_l); down: sigma(r_w) + 1 - sigma(r_w - r_l), r = beta h"
    source: ClassVar[str] = "https://arxiv.org/abs/2408.06266"

    def __call__(self, logp: PKT, ref_logp: PKT, mask: MaskPKT) -> Loss:
        implied = self.beta * seq(logp - ref_logp, mask)  # [P, K]
        won, lost = implied[:, 0], implied[:, 1]
        zero = torch.sigmoid(-won) + torch.sigmoid(lost)
        down = torch.sigmoid(won) + torch.sigmoid(lost - won)
        loss = one_of("anchor", self.anchor, {"zero": zero, "down": down})
        return Loss(loss, pair_metrics(logp, mask, ref_logp, self.beta))
