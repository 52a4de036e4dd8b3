"""A round: the batch being learnt from, how far the loop is in it, and what it looked like."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from modeseek.batch import Batch
from modeseek.ops import seq
from modeseek.stages.base import tied


@dataclass
class Round:
    """The batch being learnt from, and how far we are in it."""

    batch: Batch  # as the stages left it
    drawn: Tensor  # [B] weights of the prompts as drawn, before any stage left one out
    order: Tensor  # [passes, B] the order in which each pass visits them
    at: int = 0  # minibatches visited
    age: int = 0  # optimiser steps taken since it was drawn
    seen: Mapping[str, float] = field(default_factory=dict)  # what the round looked like, for the rows

    def minibatches(self, size: int | None) -> int:
        passes, drawn = self.order.shape
        return passes * math.ceil(drawn / (size or drawn))

    def visit(self, size: int | None) -> tuple[Batch, float]:
        """The next minibatch, and the weight of its prompts as drawn: the divisor."""
        per_pass = self.minibatches(size) // len(self.order)
        row, column = divmod(self.at, per_pass)
        size = size or self.order.shape[1]
        places = self.order[row, column * size : (column + 1) * size]
        part = self.batch.prompts(torch.isin(self.batch["place"].cpu(), places))
        return part, float(self.drawn[places].sum())

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores of it."""
        return {
            "batch": self.batch.tensors(),
            "drawn": self.drawn,
            "order": self.order,
            "at": self.at,
            "age": self.age,
            "seen": dict(self.seen),
        }

    @staticmethod
    def restored(state: Mapping[str, Any], device: torch.device) -> "Round":
        """A round from what a checkpoint stored."""
        batch = Batch.from_tensors(state["batch"]).to(device)
        return Round(batch, state["drawn"], state["order"], state["at"], state["age"], state["seen"])


@torch.no_grad()
def describe(batch: Batch, drawn: int) -> dict[str, float]:
    """What a round looks like before it is learnt from: rewards, KL, lengths, and what was left out."""
    own, row = batch.fresh & batch.present, {}
    left = len(batch["place"].unique()) if "place" in batch else len(batch)  # a stage may make several groups of one
    if left < drawn:
        row["prompts/dropped"] = float(drawn - left)
    if not len(batch):
        return row
    for name in ("raw_reward", "reward"):
        if name in batch and batch.present.any():
            row["reward"] = batch[name][batch.present].mean().item()
            break
    if "reward" in batch and batch.response.shape[1] > 1:
        same = batch["tied"] if "tied" in batch else tied(batch)
        row["frac_reward_zero_std"] = same.float().mean().item()
    if own.any():
        row["completions/mean_length"] = batch.mask.sum(-1)[own].float().mean().item()
        if "finished" in batch:
            row["completions/finished"] = batch["finished"][own].float().mean().item()
        if "ref_logp" in batch and "old_logp" in batch:
            row["kl"] = seq(batch["old_logp"] - batch["ref_logp"], batch.mask)[own].mean().item()
    return row
