"""The reward of a bandit: a number for every context and action."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from modeseek.batch import PK, Batch


@dataclass(frozen=True)
class Table:
    """A reward for every context (rows) and action (columns) of a bandit."""

    values: tuple[tuple[float, ...], ...]  # one row for each context

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.values}
        if len(widths) != 1 or 0 in widths:
            raise ValueError(f"reward.values: found rows of {sorted(widths)} numbers, expected rows of one length")
        if not all(math.isfinite(x) for row in self.values for x in row):
            raise ValueError("reward.values: found a number that is not finite")


def table(values: Float[Tensor, "contexts actions"]) -> Callable[[Batch], PK]:
    """The reward that looks each response up: the context is the prompt's one token, the action the response's."""

    def reward(batch: Batch) -> PK:
        if batch.prompt.shape[1] != 1 or batch.response.shape[2] != 1:
            raise ValueError(
                f"reward.type: table reads a bandit, whose prompts and responses are one token each; found prompts of"
                f" {batch.prompt.shape[1]} tokens and responses of {batch.response.shape[2]}"
            )
        context, action = batch.prompt.expand(batch.present.shape), batch.response[..., 0]  # [P, K]
        for name, ids, known in (("context", context, values.shape[0]), ("action", action, values.shape[1])):
            out = batch.present & ((ids < 0) | (ids >= known))
            if out.any():
                raise ValueError(f"reward.values: {name} {int(ids[out][0])} is outside the table, which has {known}")
        known = values.to(batch.response.device)
        absent = ~batch.present
        return known[context.masked_fill(absent, 0), action.masked_fill(absent, 0)].masked_fill(absent, float("nan"))

    return reward
