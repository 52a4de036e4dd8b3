"""BCO: a classifier of good and bad responses whose logit is the implied reward, less a moving midpoint.

Jung et al. 2024, https://arxiv.org/abs/2404.04656, eq. 11. The midpoint of the mean rewards of the good and of the bad
is a running mean over minibatches (`running_midpoint`). The paper's underlying distribution matching (UDM)
weighs the bad responses by how much likelier their prompt is among the good ones. That ratio is a classifier's, fitted
to embeddings of all prompts before training: it is of no stage, which sees a batch, and so is left out. It is 1 where
every prompt has a good and a bad response, as in pairs; for unpaired rows the column `weight` of the data carries it.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from modeseek.batch import P_, PKT, MaskPK, MaskPKT
from modeseek.objectives.base import Axes, Loss
from modeseek.ops import present_mean, seq


@dataclass(frozen=True)
class BCO:
    beta: float = 0.1  # reward for each nat of log-ratio to the reference

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "good: -log sigma(beta (h - midpoint)), bad: -log sigma(beta (midpoint - h))"
    source: ClassVar[str] = "https://arxiv.org/abs/2404.04656"

    def __call__(self, logp: PKT, ref_logp: PKT, mask: MaskPKT, present: MaskPK, label: MaskPK, midpoint: P_) -> Loss:
        logit = self.beta * (seq(logp - ref_logp, mask) - midpoint[:, None])  # [P, K]
        loss = -F.logsigmoid(torch.where(label, logit, -logit))
        right = ((logit > 0) == label).to(logit.dtype)
        metrics = {"midpoint": midpoint, "rewards/accuracies": present_mean(right, present)}
        return Loss(present_mean(loss, present), metrics)
