"""PPO's clipped surrogate, so that one set of samples can serve several steps; GRPO is its stages and its KL.

Schulman et al. 2017, https://arxiv.org/abs/1707.06347, eq. 7; GRPO: Shao et al. 2024,
https://arxiv.org/abs/2402.03300, eq. 3, which averages over a response's tokens and adds the k3 estimate of the
KL to the loss. With one step per round the ratio is 1 and this is PolicyGradient.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from modeseek.batch import PKT, MaskPK, MaskPKT
from modeseek.objectives.base import Axes, LogpReduction, Loss
from modeseek.ops import clean, kl_k3, present_mean, seq, seq_mean


@dataclass(frozen=True)
class PPO:
    clip: float = 0.2  # the ratio is worth no more than 1 + clip, and no less than 1 - clip
    clip_high: float | None = None  # another limit from above (DAPO's clip-higher); unset: clip
    kl: float = 0.0  # weight of the k3 estimate of KL(pi || pi_ref) in the loss; above 0 it reads ref_logp
    logp_reduction: LogpReduction = "sum"  # over a response's tokens; "mean" is GRPO's

    axes: ClassVar[Axes] = Axes(on_policy=True, negative_gradient="by_advantage", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "-mean_k sum_t min(rho A, clip(rho) A) + kl k3(pi, pi_ref), rho = pi / pi_old"
    source: ClassVar[str] = "https://arxiv.org/abs/1707.06347"

    def __call__(
        self,
        logp: PKT,
        old_logp: PKT,
        advantage: PKT,
        mask: MaskPKT,
        present: MaskPK,
        ref_logp: PKT | None = None,
    ) -> Loss:
        logp, advantage = clean(logp, mask), clean(advantage, mask)
        ratio = (logp - clean(old_logp, mask)).exp()
        high = self.clip if self.clip_high is None else self.clip_high
        clipped = ratio.clamp(1 - self.clip, 1 + high)
        cost = -torch.minimum(ratio * advantage, clipped * advantage)
        at_limit = (clipped * advantage < ratio * advantage).to(logp.dtype)
        metrics = {"clip_fraction": present_mean(seq_mean(at_limit, mask), present)}
        if self.kl > 0:
            if ref_logp is None:
                raise ValueError("kl above 0 reads ref_logp: add refer to the stages, or set objective.kl to 0")
            penalty = kl_k3(logp, clean(ref_logp, mask))
            cost = cost + self.kl * penalty
            metrics["kl_k3"] = present_mean(seq(penalty.detach(), mask), present)
        reduce = seq if self.logp_reduction == "sum" else seq_mean
        return Loss(present_mean(reduce(cost, mask), present), metrics)
