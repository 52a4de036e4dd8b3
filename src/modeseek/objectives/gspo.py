"""GSPO: PPO's clip on one ratio per response, the geometric mean of its tokens' ratios.

Zheng et al. 2025, https://arxiv.org/abs/2507.18071, eq. 5 and 7. The ratio stays within a few 1e-4 of 1, and so do the
clips. The response's advantage is the mean of its tokens', which group_mean and group_std make equal.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from modeseek.batch import PKT, MaskPK, MaskPKT
from modeseek.objectives.base import Axes, Loss
from modeseek.ops import present_mean, seq_mean


@dataclass(frozen=True)
class GSPO:
    clip: float = 3e-4  # the ratio is worth no less than 1 - clip
    clip_high: float = 4e-4  # and no more than 1 + clip_high

    axes: ClassVar[Axes] = Axes(on_policy=True, negative_gradient="by_advantage", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "-mean_k min(s A, clip(s) A), s = (pi(y) / pi_old(y))^(1 / |y|)"
    source: ClassVar[str] = "https://arxiv.org/abs/2507.18071"

    def __call__(self, logp: PKT, old_logp: PKT, advantage: PKT, mask: MaskPKT, present: MaskPK) -> Loss:
        ratio = seq_mean(logp - old_logp, mask).exp()  # [P, K]
        worth = seq_mean(advantage, mask)
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip_high)
        gain = torch.minimum(ratio * worth, clipped * worth)
        at_limit = (clipped * worth < ratio * worth).to(ratio.dtype)
        return Loss(-present_mean(gain, present), {"clip_fraction": present_mean(at_limit, present)})
