"""FSDP's own collectives, each told to the other ranks before it begins: whoever waits in one is then further than a
rank that hangs outside it, in the backward pass too, where nothing else can be seen of it.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from modeseek.distributed.pulse import Pulse

# Their names of torch 2.13 and of before.
GATHER: Any = vars(dist).get("all_gather_single") or vars(dist)["all_gather_into_tensor"]
SCATTER: Any = vars(dist).get("reduce_scatter_single") or vars(dist)["reduce_scatter_tensor"]


class ToldGather:
    """Pieces of a layer's weights to all ranks."""

    def __init__(self, pulse: Pulse):
        self._pulse = pulse

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> Any:
        self._pulse.breathe("gathering weights")
        return GATHER(output_tensor, input_tensor, group=group, async_op=async_op)


class ToldScatter:
    """A layer's gradients summed, a piece to each rank."""

    def __init__(self, pulse: Pulse):
        self._pulse = pulse

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False) -> Any:
        self._pulse.breathe("adding gradients up")
        return SCATTER(output_tensor, input_tensor, op=op, group=group, async_op=async_op)
