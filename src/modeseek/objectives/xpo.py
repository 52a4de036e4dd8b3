"""XPO: online DPO that pushes the reference's own responses down a little, and so explores.

Xie et al. 2024, https://arxiv.org/abs/2405.21046, algorithm 1. The pair is one fresh response and one that the
reference wrote (`challenge`), in the order of their rewards; what is not fresh is the reference's. The optimism of
SELM (https://arxiv.org/abs/2405.19332) and of VPO online (https://arxiv.org/abs/2405.19320) is this term with alpha
written as alpha beta; VPO offline has the opposite sign and is WithSFT.
"""

from dataclasses import dataclass
from typing import ClassVar

from modeseek.batch import PKT, MaskPK, MaskPKT
from modeseek.objectives.base import Axes, Loss
from modeseek.objectives.dpo import DPO
from modeseek.ops import present_mean, seq


@dataclass(frozen=True)
class XPO:
    beta: float = 0.1  # DPO's
    alpha: float = 1e-5  # weight of the reference's responses' log-likelihood

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "DPO(y_w, y_l) + alpha log pi(y~), y~ ~ pi_ref"
    source: ClassVar[str] = "https://arxiv.org/abs/2405.21046"

    def __call__(self, logp: PKT, ref_logp: PKT, mask: MaskPKT, fresh: MaskPK, present: MaskPK) -> Loss:
        pairs = DPO(self.beta)(logp, ref_logp, mask)
        theirs = present & ~fresh
        if not theirs.any(-1).all():
            raise ValueError("XPO reads a response of the reference to every prompt: add challenge to the stages")
        return Loss(pairs.per_prompt + self.alpha * present_mean(seq(logp, mask), theirs), pairs.metrics)
