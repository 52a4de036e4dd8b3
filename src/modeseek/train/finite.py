"""What is not finite, and where it came from: the first thing that went wrong, in the order of computation."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from modeseek.batch import Batch
from modeseek.distributed.team import whole
from modeseek.objectives import Loss, Objective, may_read, reads
from modeseek.train.seam import LIVE


class NotFinite(RuntimeError):
    """A NaN or an infinity, with what is needed to find out why."""

    def __init__(self, tensor: str, step: int, rows: list[int], batch: Batch):
        self.tensor, self.step, self.rows, self.batch = tensor, step, rows, batch
        where = f" in rows {rows[:8]}{' and more' if len(rows) > 8 else ''}" if rows else ""
        super().__init__(f"{tensor} is not finite at step {step}{where}")

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), (self.tensor, self.step, self.rows, self.batch)  # from a worker process


def in_forward(
    model: nn.Module, objective: Objective, micros: Iterable[Batch], loss: Loss | None, step: int
) -> NotFinite | None:
    """What went wrong up to the loss of these micro-batches of a minibatch; `loss` is None where it is finite."""
    at = 0
    for micro in micros:
        bad = None if loss is None else ~loss.per_prompt[at : at + len(micro)].isfinite()
        at += len(micro)
        if bad is not None and not bad.any():
            continue
        error = _read_or_said(model, objective, micro, step)
        if error is None and bad is not None:
            error = NotFinite("loss", step, _rows(bad, micro), micro)
        if error is not None:
            return error
    return None


def in_gradients(trainable: Mapping[str, nn.Parameter], part: Batch, step: int) -> NotFinite:
    """The first parameter whose gradient is not finite, else the norm of all gradients."""
    for name, parameter in trainable.items():
        if parameter.grad is not None and not whole(parameter.grad).isfinite().all():
            return NotFinite(f"the gradient of {name}", step, [], part)
    return NotFinite("the gradient's norm", step, [], part)


def _read_or_said(model: nn.Module, objective: Objective, part: Batch, step: int) -> NotFinite | None:
    """A column that the objective reads, or what the model says of the batch."""
    for name in sorted((reads(objective) | may_read(objective)) & part.columns.keys()):
        column = part[name]
        if column.is_floating_point():
            bad = _bad(column, part)
            if bad.any():
                return NotFinite(name, step, _rows(bad, part), part)
    with torch.no_grad():
        for name in sorted(reads(objective) & LIVE):
            bad = _bad(getattr(model, name)(part), part)
            if bad.any():
                return NotFinite(f"the model's {name}", step, _rows(bad, part), part)
    return None


def _rows(bad: Tensor, part: Batch) -> list[int]:
    """Of the data, where the batch says which they are."""
    return [int(part["row"][p]) if "row" in part else p for p in bad.nonzero()[:, 0].tolist()]


def _bad(x: Tensor, batch: Batch) -> Tensor:
    where = {1: torch.ones_like(batch.weight, dtype=torch.bool), 2: batch.present, 3: batch.mask}[x.ndim]
    return (~x.isfinite() & where).flatten(1).any(1) if x.ndim > 1 else ~x.isfinite()
