"""Several rewards as one: their mean, their sum, the worst of them, or their mean less what they disagree by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from modeseek.batch import PK, Batch
from modeseek.rewards.judge import Judge
from modeseek.rewards.pretrained import Model
from modeseek.rewards.rules import JsonValid, Keyword, Length, Python, Regex
from modeseek.rewards.table import Table

AnyMember = Length | Regex | Keyword | JsonValid | Python | Table | Model | Judge
Combine = Literal["mean", "sum", "min", "disagreement"]


@dataclass(frozen=True)
class Ensemble:
    """Rewards of the same response. Each member's `scale` says how much it counts."""

    members: tuple[AnyMember, ...]
    combine: Combine = "mean"  # min: the worst case; disagreement: the mean less penalty times the variance
    penalty: float | None = None  # with combine: disagreement; unset: 1

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise ValueError(f"reward.members: found {len(self.members)}, expected two rewards or more")
        if self.penalty is not None and self.combine != "disagreement":
            raise ValueError(f"reward.penalty: found {self.penalty} with combine: {self.combine}, which has none")
        if self.penalty is not None and not 0 < self.penalty < math.inf:
            raise ValueError(f"reward.penalty: found {self.penalty}, expected a number above 0")


@dataclass(frozen=True)
class EnsembleReward:
    """Of the variance over members (not over samples): Coste et al. 2023, https://arxiv.org/abs/2310.02743, UWO."""

    members: Sequence[Callable[[Batch], Tensor]]
    combine: Combine = "mean"
    penalty: float = 1.0

    def __call__(self, batch: Batch) -> PK:
        said = self.each(batch)
        match self.combine:
            case "mean":
                return said.mean(0)
            case "sum":
                return said.sum(0)
            case "min":
                return said.amin(0)
            case "disagreement":
                return said.mean(0) - self.penalty * said.var(0, correction=0)

    def each(self, batch: Batch) -> Tensor:
        """What every member says, one above the other: the only place with an axis before the prompts."""
        return torch.stack([member(batch) for member in self.members])
