"""HyPO: DPO on the dataset's pairs, plus a reverse-KL pull on fresh samples of the same prompts.

Song et al. 2024, https://arxiv.org/abs/2406.01462, algorithm 1. The group is [chosen, rejected, fresh ...]. The
fresh samples are unlabelled: no reward is read. One update per generation; `fresh_kl.py` says more of the KL term. Not
to be confused with the hybrid DPO of 2602.11902.
"""

from dataclasses import dataclass
from typing import ClassVar

from modeseek.objectives.dpo import DPO
from modeseek.objectives.fresh_kl import FreshKL


@dataclass(frozen=True)
class HyPO(FreshKL):
    beta: float = 0.1  # DPO's

    equation: ClassVar[str] = "DPO(y_w, y_l) + kl E_{y ~ pi}[(h(y) - b) log pi(y)], h held constant"

    @property
    def inner(self) -> DPO:
        return DPO(self.beta)
