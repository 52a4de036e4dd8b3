"""The score-function gradient of expected reward. REINFORCE and RLOO are its stages, not other objectives.

Williams 1992, https://doi.org/10.1007/BF00992696; Ahmadian et al. 2024 (RLOO), https://arxiv.org/abs/2402.14740.
Right only on samples of the current policy, so a sample is used once unless a `correction` is named.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from modeseek.batch import PKT, MaskPK, MaskPKT
from modeseek.objectives.base import Axes, Loss, one_of
from modeseek.ops import clean, present_mean, seq


@dataclass(frozen=True)
class PolicyGradient:
    correction: Literal["none", "clip", "ratio"] | None = None
    """What to do about samples older than one step: `ratio` weighs a response by pi / pi_old, `clip` by that but
    at most 1 (truncated importance sampling), `none` by nothing, which is biased. Unset: no older sample."""

    axes: ClassVar[Axes] = Axes(on_policy=True, negative_gradient="by_advantage", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "-mean_k sum_t A_t log pi(y_t)"
    source: ClassVar[str] = "https://arxiv.org/abs/2402.14740"

    def __post_init__(self) -> None:
        one_of("correction", self.correction or "none", dict.fromkeys(("none", "clip", "ratio")))

    @property
    def max_age(self) -> int | None:
        return 0 if self.correction is None else None

    def __call__(self, logp: PKT, advantage: PKT, mask: MaskPKT, present: MaskPK, old_logp: PKT | None = None) -> Loss:
        gain = seq(clean(logp, mask) * clean(advantage, mask), mask)  # [P, K]
        if self.correction not in (None, "none"):
            if old_logp is None:
                raise ValueError(f"correction: {self.correction} reads old_logp: add recall to the stages")
            ratio = seq((logp - old_logp).detach(), mask).exp()  # of the whole response
            gain = gain * (ratio.clamp(max=1.0) if self.correction == "clip" else ratio)
        return Loss(-present_mean(gain, present), {"logps/own": present_mean(seq(logp.detach(), mask), present)})
