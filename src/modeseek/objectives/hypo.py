"""HyPO: DPO on the dataset's pairs, plus a reverse-KL pull on fresh samples of the same prompts.

Song et al. 2024, https://arxiv.org/abs/2406.01462, algorithm 1. The group is [chosen, rejected, fresh ...]. The
fresh samples are unlabelled: no reward is read. One update per generation; `fresh_kl.py` says more of the KL term. Not
to be confused with the hybrid DPO of 2602.11902.
"""

from dataclasses import dataclass
from typing import ClassVar

from modeseek.batch import P_, PKT, MaskPK, MaskPKT
from modeseek.objectives.base import Axes, Loss
from modeseek.objectives.dpo import DPO
from modeseek.objectives.fresh_kl import KLBaseline, KLEstimator, check, fresh_kl, rao_blackwell


@dataclass(frozen=True)
class HyPO:
    beta: float = 0.1  # DPO's
    kl: float = 0.01  # weight of KL(pi || pi_ref); search it on a log scale
    kl_baseline: KLBaseline = "none"  # subtracted from a sample's log-ratio
    kl_estimator: KLEstimator = "sample"  # from sampled tokens, or summed over the vocabulary at each of them

    axes: ClassVar[Axes] = Axes(on_policy=True, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "DPO(y_w, y_l) + kl E_{y ~ pi}[(h(y) - b) log pi(y)], h held constant"
    source: ClassVar[str] = "https://arxiv.org/abs/2406.01462"
    max_age: ClassVar[int] = 0

    def __post_init__(self) -> None:
        check(self.kl_baseline, self.kl_estimator)

    @property
    def unread(self) -> frozenset[str]:
        return frozenset() if self.kl_estimator == "rao_blackwell" else frozenset({"kl"})

    def __call__(
        self,
        logp: PKT,
        ref_logp: PKT,
        mask: MaskPKT,
        fresh: MaskPK,
        present: MaskPK,
        baseline: P_ | None = None,
        kl: PKT | None = None,
    ) -> Loss:
        pairs = DPO(self.beta)(logp, ref_logp, mask)
        own = fresh & present
        if not own.any(-1).all():
            raise ValueError("HyPO reads fresh samples of every prompt: use the hybrid source")
        if self.kl_estimator == "rao_blackwell":
            pull, estimate = rao_blackwell(logp, kl, mask, own, self.kl_baseline)
        else:
            pull, estimate = fresh_kl(logp, ref_logp, mask, own, self.kl_baseline, baseline)
        return Loss(pairs.per_prompt + self.kl * pull, pairs.metrics | {"kl": estimate})
