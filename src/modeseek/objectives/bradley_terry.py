"""Reward modelling: the preferred response should score higher, by the logistic link.

Bradley & Terry 1952, https://doi.org/10.2307/2334029. Trained by the same loop as a policy.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from modeseek.batch import PK
from modeseek.objectives.base import Axes, Loss


@dataclass(frozen=True)
class BradleyTerry:
    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-covering")
    equation: ClassVar[str] = "-log sigma(score_w - score_l)"
    source: ClassVar[str] = "https://doi.org/10.2307/2334029"

    def __call__(self, score: PK) -> Loss:
        margin = score[:, 0] - score[:, 1]
        seen = margin.detach()
        return Loss(-F.logsigmoid(margin), {"rewards/margins": seen, "rewards/accuracies": (seen > 0).to(seen.dtype)})
