"""HyPO: DPO on the dataset's pairs, plus a reverse-KL pull on fresh samples of the same prompts.

Song et al. 2024, https://arxiv.org/abs/2406.01462, algorithm 1. The group is [chosen, rejected, fresh ...]. The
fresh samples are unlabelled: no reward is read. One update per generation, at temperature 1 over the whole
vocabulary, else the KL term is biased. Not to be confused with the hybrid DPO of 2602.11902.

When the baseline pays is a fact about the run, not a rule: at initialisation the KL is zero and leave-one-out
only adds variance; once KL^2 outgrows Var(log-ratio) / (k - 1) it removes most of it. A running mean serves both.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from modeseek.batch import P_, PKT, MaskPK, MaskPKT
from modeseek.objectives.base import Axes, Loss
from modeseek.objectives.dpo import DPO
from modeseek.ops import present_mean, seq


@dataclass(frozen=True)
class HyPO:
    beta: float = 0.1  # DPO's
    kl: float = 0.01  # weight of KL(pi || pi_ref); search it on a log scale
    kl_baseline: Literal["none", "leave_one_out", "running_mean"] = "none"  # subtracted from a sample's log-ratio

    axes: ClassVar[Axes] = Axes(on_policy=True, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "DPO(y_w, y_l) + kl E_{y ~ pi}[(h(y) - b) log pi(y)], h held constant"
    source: ClassVar[str] = "https://arxiv.org/abs/2406.01462"
    max_age: ClassVar[int] = 0

    def __call__(
        self,
        logp: PKT,
        ref_logp: PKT,
        mask: MaskPKT,
        fresh: MaskPK,
        present: MaskPK,
        baseline: P_ | None = None,
    ) -> Loss:
        pairs = DPO(self.beta)(logp, ref_logp, mask)
        own = fresh & present
        if not own.any(-1).all():
            raise ValueError("HyPO reads fresh samples of every prompt: use the hybrid source")
        # Score-function gradient of KL(pi || pi_ref): the log-ratio acts as a cost, so no gradient.
        cost = seq((logp - ref_logp).detach(), mask)
        advantage = cost - self._baseline(cost, own, baseline)
        kl = present_mean(advantage * seq(logp, mask), own)
        return Loss(pairs.per_prompt + self.kl * kl, pairs.metrics | {"kl": present_mean(cost, own)})

    def _baseline(self, cost: torch.Tensor, own: MaskPK, baseline: P_ | None) -> torch.Tensor:
        if self.kl_baseline == "none":
            return torch.zeros_like(cost)
        if self.kl_baseline == "running_mean":
            if baseline is None:
                raise ValueError("kl_baseline: running_mean reads `baseline`: add running_kl to the stages")
            return baseline[:, None]
        count = own.sum(-1, keepdim=True)
        if (count < 2).any():
            raise ValueError("kl_baseline: leave_one_out needs num_generations of at least 2")
        return (cost.masked_fill(~own, 0.0).sum(-1, keepdim=True) - cost) / (count - 1)
