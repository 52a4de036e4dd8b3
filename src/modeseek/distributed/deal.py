"""Weights dealt out to a model that was cut up empty: a rank is given its pieces and never holds the whole.

The leading rank has read the model into its host memory, once. Each tensor goes from there to the ranks' host memory in
pieces, and each piece to its device. So a device holds pieces only; the leading rank's host memory holds the whole
model beside them, another's one piece of one tensor.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from modeseek.distributed.team import Team

Take = Callable[[str], Tensor]  # the leading rank's weights by name


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, those too that no checkpoint holds; what is tied under its first name."""
    return {name: x.detach() for named in (model.named_parameters(), model.named_buffers()) for name, x in named}


def deal(model: nn.Module, team: Team, device: str, take: Take) -> None:
    """Give a model without weights, already cut, its pieces. `take` is asked on the leading rank only.

    Raises ValueError for a model that keeps a tensor where neither parameters nor buffers are.
    """
    first: dict[int, Tensor] = {}  # of tied weights
    with torch.no_grad():
        for name, owner, key, x in _slots(model):
            team.at(f"dealing out {name}")
            if id(x) not in first:
                first[id(x)] = _given(x, team, device, take(name) if team.leads else None)
            owner[key] = first[id(x)]
    for name, module in model.named_modules():
        for key, x in vars(module).items():
            if isinstance(x, Tensor) and x.is_meta:
                raise ValueError(
                    f"parallel: {name}.{key} is no weight and no buffer, and only loading the model tells what it is; "
                    "write --parallel ddp"
                )


def _slots(model: nn.Module) -> Iterator[tuple[str, dict[str, Any], str, Tensor]]:
    """Every place that holds a weight or a buffer, in the order in which `tensors` names them."""
    found = [(path, module) for path, module in model.named_modules()]
    for where in ("_parameters", "_buffers"):
        for path, module in found:
            for key, x in list(getattr(module, where).items()):
                if x is not None:
                    yield f"{path}.{key}" if path else key, getattr(module, where), key, x


def _given(x: Tensor, team: Team, device: str, full: Tensor | None) -> Tensor:
    """What stands in the place of `x` from now on."""
    if not hasattr(x, "placements"):  # a buffer: whole on every rank
        whole = torch.empty(x.shape, dtype=x.dtype) if full is None else full.to(x.dtype).contiguous()
        if team.size > 1:
            dist.broadcast(whole, 0, group=team.group)
        return whole.to(device)
    from torch.distributed.tensor import DTensor, Shard

    cut: Any = x
    assert cut.placements == (Shard(0),), cut.placements
    piece = _piece(x, team, len(cut.to_local()), full).to(device)
    made = DTensor.from_local(piece, cut.device_mesh, cut.placements, shape=x.shape, stride=x.stride())
    return nn.Parameter(made, requires_grad=x.requires_grad)


def _piece(x: Tensor, team: Team, length: int, full: Tensor | None) -> Tensor:
    """The first rows to the first rank, and so on; the last ranks may get fewer, or none."""
    rows = -(-len(x) // team.size)
    mine = torch.empty((rows, *x.shape[1:]), dtype=x.dtype)
    parts = None
    if full is not None:
        assert full.shape == x.shape, (full.shape, x.shape)
        parts = [_padded(full[r * rows : (r + 1) * rows].to(x.dtype).contiguous(), rows) for r in range(team.size)]
    if team.size > 1:
        as_bytes = lambda t: t.reshape(-1).view(torch.uint8)
        dist.scatter(as_bytes(mine), parts and [as_bytes(part) for part in parts], 0, group=team.group)
    elif parts:
        mine = parts[0].clone()
    return mine[:length].clone() if length < rows else mine


def _padded(part: Tensor, rows: int) -> Tensor:
    return part if len(part) == rows else F.pad(part, (0, 0) * (part.ndim - 1) + (0, rows - len(part)))
