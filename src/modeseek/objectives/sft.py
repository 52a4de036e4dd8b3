"""Supervised fine-tuning: raise the likelihood of every response of the group.

On the chosen responses it is Pref-FT; on the best of the policy's own it is best-of-N (RAFT).
2404.14367, section 4, https://arxiv.org/abs/2404.14367. TRL, and whoever trains on token batches, takes the mean over
the tokens of the minibatch.
"""

from dataclasses import dataclass
from typing import ClassVar

from modeseek.batch import P_, PKT, MaskPK, MaskPKT
from modeseek.objectives.base import Axes, Loss, TokenReduction, reduce_tokens
from modeseek.ops import clean, seq


@dataclass(frozen=True)
class SFT:
    logp_reduction: TokenReduction = "sum"  # over a response's tokens; "mean" makes long responses count less

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="never", claimed_kl="mode-covering")
    equation: ClassVar[str] = "-mean_k log pi(y_k)"
    source: ClassVar[str] = "https://arxiv.org/abs/2404.14367"

    def __call__(self, logp: PKT, mask: MaskPKT, present: MaskPK, token_share: P_ | None = None) -> Loss:
        nll = reduce_tokens(-clean(logp, mask), mask, present, self.logp_reduction, token_share)
        return Loss(nll, {"logps/chosen": seq(logp.detach(), mask)[:, 0]})
