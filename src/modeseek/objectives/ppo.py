"""PPO's clipped surrogate, so that one set of samples can serve several steps; GRPO is its stages and its KL.

Schulman et al. 2017, https://arxiv.org/abs/1707.06347, eq. 7; GRPO: Shao et al. 2024,
https://arxiv.org/abs/2402.03300, eq. 3, which averages over a response's tokens and adds the k3 estimate of the
KL to the loss; Dr. GRPO (https://arxiv.org/abs/2503.20783) sums, after group_mean without group_std; DAPO
(https://arxiv.org/abs/2503.14476) sets clip_high and averages over all tokens. With one step per round the ratio is 1
and this is PolicyGradient. On samples k3 alone has the gradient of the forward KL; times the ratio, as in DeepSeek-V3.2
(https://arxiv.org/abs/2512.02556) and by default in TRL 1.16, it has the reverse one's at any age of the samples.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from modeseek.batch import P_, PKT, MaskPK, MaskPKT
from modeseek.objectives.base import Axes, Loss, TokenReduction, reduce_tokens
from modeseek.ops import clean, kl_k3, present_mean, seq, seq_mean


@dataclass(frozen=True)
class PPO:
    clip: float = 0.2  # the ratio is worth no more than 1 + clip, and no less than 1 - clip
    clip_high: float | None = None  # another limit from above (DAPO's clip-higher); unset: clip
    kl: float = 0.0  # weight of the k3 estimate of KL(pi || pi_ref) in the loss; above 0 it reads ref_logp
    logp_reduction: TokenReduction = "sum"  # of tokens to a prompt's loss; "mean" is GRPO's, the group's DAPO's
    entropy: float = 0.0  # weight of the policy's entropy at each token, a bonus; above 0 it reads entropy
    kl_by_ratio: bool = False  # weigh each token's KL by pi / pi_old: the gradient is the reverse KL's then

    axes: ClassVar[Axes] = Axes(on_policy=True, negative_gradient="by_advantage", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "-mean_k sum_t min(rho A, clip(rho) A) + kl k3(pi, pi_ref), rho = pi / pi_old"
    source: ClassVar[str] = "https://arxiv.org/abs/1707.06347"

    def __post_init__(self) -> None:
        if self.kl_by_ratio and self.kl <= 0:
            raise ValueError(f"kl_by_ratio: true with kl: {self.kl}; it weighs a KL above 0 only")

    @property
    def unread(self) -> frozenset[str]:
        return frozenset() if self.entropy > 0 else frozenset({"entropy"})

    def __call__(
        self,
        logp: PKT,
        old_logp: PKT,
        advantage: PKT,
        mask: MaskPKT,
        present: MaskPK,
        ref_logp: PKT | None = None,
        token_share: P_ | None = None,
        entropy: PKT | None = None,
    ) -> Loss:
        cost, at_limit = surrogate(logp, old_logp, advantage, mask, self.clip, self.clip_high)
        metrics = {"clip_fraction": present_mean(seq_mean(at_limit, mask), present)}
        if self.kl > 0:
            if ref_logp is None:
                raise ValueError("kl above 0 reads ref_logp: add refer to the stages, or set objective.kl to 0")
            penalty = kl_k3(clean(logp, mask), clean(ref_logp, mask))
            weight = (clean(logp, mask) - clean(old_logp, mask)).exp() if self.kl_by_ratio else 1.0
            cost = cost + self.kl * penalty * weight  # the gradient goes through the weight
            metrics["kl_k3"] = present_mean(seq(penalty.detach(), mask), present)
        if self.entropy > 0:
            if entropy is None:
                raise ValueError("entropy above 0 reads the model's entropy; set objective.entropy to 0")
            cost = cost - self.entropy * clean(entropy, mask)
            metrics["entropy"] = present_mean(seq_mean(entropy.detach(), mask), present)
        return Loss(reduce_tokens(cost, mask, present, self.logp_reduction, token_share), metrics)


def surrogate(
    logp: PKT, old_logp: PKT, advantage: PKT, mask: MaskPKT, clip: float, clip_high: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cost of each token, and whether the clip is what decides it."""
    logp, advantage = clean(logp, mask), clean(advantage, mask)
    ratio = (logp - clean(old_logp, mask)).exp()
    clipped = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    cost = -torch.minimum(ratio * advantage, clipped * advantage)
    return cost, (clipped * advantage < ratio * advantage).to(logp.dtype)
