"""Reward-weighted regression: SFT in which each response counts exp(reward / beta).

Peters & Schaal 2007, https://doi.org/10.1145/1273496.1273590; as in 2404.14367 the weights are clipped from
above and are not normalised, so the scale of the reward is also a scale of the learning rate. The paper's bandits take
rewards raw or, after the stage standardise_reward, per prompt at mean 0 and variance 1, and do not clip (clip: .inf);
its language models clip at 20 and average over tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

from modeseek.batch import PK, PKT, MaskPK, MaskPKT
from modeseek.objectives.base import Axes, LogpReduction, Loss, over_tokens
from modeseek.ops import clean, present_mean


@dataclass(frozen=True)
class RWR:
    beta: float = 1.0  # temperature: the reward that multiplies a response's weight by e
    clip: float = 20.0  # no response weighs more than this
    logp_reduction: LogpReduction = "sum"  # over a response's tokens; "mean" makes long responses count less

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="never", claimed_kl="mode-covering")
    equation: ClassVar[str] = "-mean_k min(exp(r_k / beta), clip) log pi(y_k)"
    source: ClassVar[str] = "https://arxiv.org/abs/2404.14367"

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta: {self.beta}, expected above 0")

    def __call__(self, logp: PKT, reward: PK, mask: MaskPKT, present: MaskPK) -> Loss:
        weight = (clean(reward, present) / self.beta).exp().clamp(max=self.clip)
        loss = -present_mean(weight * over_tokens(self.logp_reduction)(logp, mask), present)
        at_limit = (weight >= self.clip).to(weight.dtype)
        return Loss(loss, {"weight": present_mean(weight, present), "weight_clipped": present_mean(at_limit, present)})
