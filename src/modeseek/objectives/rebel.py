"""REBEL: regress the change of the log-probability gap to the gap of the rewards.

Gao et al. 2024, https://arxiv.org/abs/2404.16767, eq. 9. The first two responses of the group, in any order; the
policy that the change is counted from is the one that `recall` asked, at the start of the round.
"""

from dataclasses import dataclass
from typing import ClassVar

from modeseek.batch import PK, PKT, MaskPKT
from modeseek.objectives.base import Axes, Loss
from modeseek.ops import seq


@dataclass(frozen=True)
class REBEL:
    eta: float = 1.0  # nats of gap for each unit of reward: the step size of the outer loop

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "((h_1 - h_2) / eta - (r_1 - r_2))^2, h = log pi(y) - log pi_old(y)"
    source: ClassVar[str] = "https://arxiv.org/abs/2404.16767"

    def __post_init__(self) -> None:
        if self.eta <= 0:
            raise ValueError(f"eta: {self.eta}, expected above 0")

    def __call__(self, logp: PKT, old_logp: PKT, reward: PK, mask: MaskPKT) -> Loss:
        change = seq(logp - old_logp, mask)  # [P, K]
        gap = (change[:, 0] - change[:, 1]) / self.eta
        error = gap - (reward[:, 0] - reward[:, 1])
        return Loss(error.square(), {"rewards/margins": gap.detach()})
