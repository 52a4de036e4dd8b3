"""An objective of pairs, meant over every pair of a ranked group: each response is computed once for all its pairs.

The bandits of 2404.14367 train on all N (N - 1) / 2 pairs of a prompt. The stage `all_pairs` makes a group of each,
which is the same loss at N - 1 times the work of a policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from modeseek.batch import PK, PKT, MaskPK, MaskPKT
from modeseek.objectives import DPO, IPO, SFT, Loss
from modeseek.objectives.base import Axes, apply


@dataclass(frozen=True)
class AllPairs:
    """Groups are best first (`ranked`); a pair that ties is left out, and a prompt's pairs share its weight."""

    inner: DPO | IPO | SFT
    keep: int = 2  # of each pair; 1: the chosen response alone, for SFT

    axes: ClassVar[Axes] = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation: ClassVar[str] = "mean_{i < j} inner(y_i, y_j), best first"
    source: ClassVar[str] = "https://arxiv.org/abs/2404.14367"

    def __call__(self, logp: PKT, mask: MaskPKT, present: MaskPK, reward: PK, ref_logp: PKT | None = None) -> Loss:
        P, K, _ = logp.shape
        at = torch.triu_indices(K, K, 1).T  # [pairs, 2]
        cut = lambda x: x[:, at[:, : self.keep]].flatten(0, 1)  # [P pairs, keep, ...]
        given = {"logp": cut(logp), "mask": cut(mask), "present": cut(present)}
        if ref_logp is not None:
            given["ref_logp"] = cut(ref_logp)
        each = apply(self.inner, given).per_prompt.view(P, -1)
        differ = reward[:, at[:, 0]] > reward[:, at[:, 1]]
        return Loss(each.masked_fill(~differ, 0.0).sum(-1) / differ.sum(-1).clamp(min=1))
