"""What a stage is, and what several of them share."""

from collections.abc import Callable

from torch import Tensor

from modeseek.batch import Batch
from modeseek.ops import clean

Stage = Callable[[Batch], Batch]
Reward = Callable[[Batch], Tensor]  # [P, K]


def worth(batch: Batch, empty: float) -> Tensor:
    """The rewards, and `empty` where a group has no response."""
    return batch["reward"].masked_fill(~batch.present, empty)


def tied(batch: Batch) -> Tensor:
    """Whether all rewards of a prompt's group are the same, [P]."""
    return worth(batch, float("-inf")).amax(-1) == worth(batch, float("inf")).amin(-1)


def spread(batch: Batch, value: Tensor) -> Tensor:
    """One number per response, [P, K], as the same number at each of its tokens, [P, K, T]."""
    return clean(value, batch.present)[..., None].expand(batch.response.shape)


def row_of(batch: Batch, p: int) -> int:
    """The row of the data that prompt `p` came from, where it is known."""
    return int(batch["row"][p]) if "row" in batch else p
