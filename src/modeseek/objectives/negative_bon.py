"""Best-of-N with a negative gradient: raise the best response, lower the others.

The bandit study of 2404.14367, https://arxiv.org/abs/2404.14367, section 5.2 and its code (`negative_gradient_type`).
The group is best first (`ranked`). The likelihood of a loser has no lower bound, so a large weight diverges;
`complement` raises log(1 - pi(y)) instead, which is bounded.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from modeseek.batch import PKT, MaskPK, MaskPKT
from modeseek.objectives.base import Axes, Loss, one_of
from modeseek.ops import present_mean, seq


@dataclass(frozen=True)
class NegativeBoN:
    beta: float = 0.05  # weight of the losers, above 0; without them write SFT after the stage best
    losers: Literal["worst", "mean", "sum", "complement"] = "mean"  # the last one, or all but the first

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "-log pi(y_1) + beta mean_{k > 1} log pi(y_k), best first"
    source: ClassVar[str] = "https://arxiv.org/abs/2404.14367"

    def __post_init__(self) -> None:
        one_of("losers", self.losers, dict.fromkeys(("worst", "mean", "sum", "complement")))
        if self.beta <= 0:
            raise ValueError(f"beta: {self.beta}, expected above 0; without losers write SFT after the stage best")

    def __call__(self, logp: PKT, mask: MaskPKT, present: MaskPK) -> Loss:
        total = seq(logp, mask)  # [P, K]
        place = torch.arange(total.shape[1], device=total.device)
        lost = present & (place > 0)
        if self.losers == "worst":
            lost = lost & (place == present.sum(-1, keepdim=True) - 1)  # what is present comes first
        # -log(1 - pi); a response that is certain, or empty, would be infinitely bad
        complement = -torch.log(-torch.expm1(total.clamp(max=-1e-6)))
        down = present_mean(complement if self.losers == "complement" else total, lost)
        if self.losers in ("sum", "complement"):
            down = down * lost.sum(-1)
        seen = total.detach()
        metrics = {"logps/chosen": seen[:, 0], "logps/rejected": present_mean(seen, lost)}
        return Loss(-total[:, 0] + self.beta * down, metrics)
