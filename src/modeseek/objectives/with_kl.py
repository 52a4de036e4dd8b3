"""Any objective on pairs, and HyPO's reverse-KL pull on fresh samples beside it.

Song et al. 2024, https://arxiv.org/abs/2406.01462, whose remark that the pull is not tied to DPO this carries out. The
group is [chosen, rejected, fresh ...]; around DPO it is HyPO.
"""

from dataclasses import dataclass
from typing import ClassVar

from modeseek.objectives.contrastive import Contrastive
from modeseek.objectives.fresh_kl import FreshKL
from modeseek.objectives.ipo import IPO


@dataclass(frozen=True)
class WithKL(FreshKL):
    inner: Contrastive = IPO()

    equation: ClassVar[str] = "inner(y_w, y_l) + kl E_{y ~ pi}[(h(y) - b) log pi(y)], h held constant"
