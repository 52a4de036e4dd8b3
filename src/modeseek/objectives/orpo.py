"""ORPO: SFT on the chosen response with a penalty on the odds of the rejected one; no reference.

Hong et al. 2024, https://arxiv.org/abs/2403.07691, eq. 6 and 7. The odds are of the geometric mean of a response's
token probabilities. The authors' code takes the likelihood over prompt and response; here, as in the paper, the
response alone.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from modeseek.batch import PKT, MaskPKT
from modeseek.objectives.base import Axes, Loss, pair_metrics
from modeseek.ops import in_order, seq_mean


@dataclass(frozen=True)
class ORPO:
    beta: float = 0.1  # weight of the odds-ratio term (the paper's lambda)

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-covering")
    equation: ClassVar[str] = "-l_w - beta log sigma(log o_w - log o_l), l = log pi(y) / |y|, o = e^l / (1 - e^l)"
    source: ClassVar[str] = "https://arxiv.org/abs/2403.07691"

    def __call__(self, logp: PKT, mask: MaskPKT) -> Loss:
        mean = seq_mean(logp, mask)  # [P, K]
        # A response that is certain, or empty, has infinite odds; the bound keeps their gradient finite.
        bounded = mean.clamp(max=-1e-6)
        odds = bounded - torch.log(-torch.expm1(bounded))
        ratio = odds[:, 0] - odds[:, 1]
        return Loss(-mean[:, 0] - self.beta * F.logsigmoid(ratio), pair_metrics(logp, mask) | _odds(ratio))


def _odds(ratio: torch.Tensor) -> dict[str, torch.Tensor]:
    seen = ratio.detach()
    return {"log_odds_ratio": seen, "rewards/accuracies": in_order(seen)}
