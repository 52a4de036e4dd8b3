"""Weights in pieces on all ranks: PyTorch's FSDP2 (`fully_shard`) around each layer and around the rest.

A policy is asked through `logp`, `evaluate` and the like, never through `forward`, so these are what gathers the
outermost weights. Layers gather theirs as they are reached, in the forward and again in the backward.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modeseek.batch import Batch
from modeseek.distributed.deal import Take, deal
from modeseek.distributed.team import Team, home, whole
from modeseek.distributed.told import ToldGather, ToldScatter
from modeseek.objectives import Loss

ENTRANCES = ("logp", "evaluate", "entropy", "kl", "collision", "value", "score", "sample")


def shard(
    model: nn.Module,
    team: Team,
    *,
    bf16: bool = False,
    offload: bool = False,
    device: str = "cpu",
    take: Take | None = None,
) -> None:
    """Cut the weights up in place, each rank keeping its piece in float32 (or whatever they are) with its moments.

    With `bf16` they are gathered in bfloat16 and gradients are summed in float32. `offload` keeps the pieces in host
    memory between uses. Gradients are summed, not averaged. A model without weights is cut first, and then given those
    that `take` says, in pieces, on `device`. One with weights keeps what is frozen whole: 4-bit weights cannot be cut.
    """
    import torch.distributed.fsdp as fsdp

    _register_loss()
    told: dict[str, Any] = {"offload_policy": fsdp.CPUOffloadPolicy() if offload else fsdp.OffloadPolicy()}
    if bf16:
        told["mp_policy"] = fsdp.MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    if take is None:
        told["ignored_params"] = {x for x in model.parameters() if not x.requires_grad}
    for layer in layers(model):
        fsdp.fully_shard(layer, **told)
        if team.pulse is not None:  # a rank that decodes on gathered weights goes on without collectives
            layer.register_forward_pre_hook(lambda *_: team.pulse and team.pulse.breathe(), prepend=True)
    fsdp.fully_shard(model, **told)
    if take is not None:
        deal(model, team, "cpu" if offload else device, take)
    for module in _pieces(model):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
        if team.pulse is not None:
            module.set_custom_all_gather(ToldGather(team.pulse))
            module.set_custom_reduce_scatter(ToldScatter(team.pulse))
    for name in ENTRANCES:
        if hasattr(model, name):
            _enter_by(model, name)
    _begin(model)


def layers(model: nn.Module) -> list[nn.Module]:
    """The blocks of a network: what stands in its lists of modules, outermost lists only."""
    found: list[nn.Module] = []

    def look(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(module, nn.ModuleList) and any(True for _ in child.parameters()):
                found.append(child)
            else:
                look(child)

    look(model)
    return found


@contextlib.contextmanager
def gathered(asked: Any, team: Team) -> Iterator[None]:
    """Within, every rank holds all weights of a sharded policy, so that ranks may decode at their own pace.

    The memory bound: the whole model once per device, in the dtype in which it is gathered (two bytes a parameter
    with bf16), beside the pieces; the activations are those of a step of decoding. Given back at the end.
    """
    model = getattr(asked, "module", asked)  # a reference holds its policy
    if not team.sharded or not isinstance(model, nn.Module):
        yield
        return
    pieces = _pieces(model)
    for piece in pieces:
        piece.set_reshard_after_forward(False, recurse=False)
        piece.unshard()
    try:
        yield
    finally:
        for piece in pieces:
            piece.reshard()
            piece.set_reshard_after_forward(piece is not model, recurse=False)


def full_state(model: nn.Module, team: Team, *, trained_only: bool) -> dict[str, Tensor]:
    """All weights on the leading rank, in host memory; nothing on the others.

    One tensor is gathered at a time, so there is one whole copy of the model, and one tensor more on a device. Tied
    weights stay tied.
    """
    found: dict[str, Tensor] = {}
    seen: dict[int, Tensor] = {}
    for name, x in model.state_dict(keep_vars=True).items():
        if trained_only and not x.requires_grad:
            continue
        team.at(f"gathering {name}")
        full = seen[id(x)] if id(x) in seen else whole(x.detach())
        if team.leads:
            found[name] = seen[id(x)] = seen[id(x)] if id(x) in seen else full.cpu()
        else:
            seen[id(x)] = full.new_empty(0)
    return found


def lying_here(model: nn.Module) -> dict[str, Tensor]:
    """All weights and buffers that a checkpoint holds, by name, as this rank has them: whole where they are gathered.
    (A sharded model's own `state_dict` would give the gathered ones back.)"""
    kept = dict(model.named_parameters(remove_duplicate=False))
    for path, module in model.named_modules():
        names = module._buffers.keys() - module._non_persistent_buffers_set
        kept |= {f"{path}.{name}" if path else name: module._buffers[name] for name in sorted(names)}
    return {name: x.detach() for name, x in kept.items() if x is not None}


@contextlib.contextmanager
def saved_as(model: Any, state: dict[str, Tensor]) -> Iterator[None]:
    """Within, the model's `save_pretrained` writes these weights instead of its pieces."""
    own = model.save_pretrained
    model.save_pretrained = functools.partial(own, state_dict=state)
    try:
        yield
    finally:
        del model.save_pretrained


def is_sharded(x: Tensor) -> bool:
    """Whether this rank holds only its piece."""
    return hasattr(x, "placements")


def like(x: Tensor, owner: Tensor) -> Tensor:
    """A tensor in the pieces of a parameter of its shape."""
    if not is_sharded(owner) or is_sharded(x):
        return x
    from torch.distributed.tensor import distribute_tensor

    own: Any = owner
    return distribute_tensor(x.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def write_shards(folder: Path, tensors: Mapping[str, Tensor], team: Team) -> Any:
    """Each rank's pieces as safetensors, copied now and written in the background; a future that all must await."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import async_save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    return async_save(dict(tensors), storage_writer=writer, process_group=team.writing)


def read_shards(folder: Path, owner: Callable[[str], Tensor | None]) -> dict[str, Tensor]:
    """Stored tensors by name, in the pieces of the parameter that owns each, or whole where none does."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    found: dict[str, Tensor] = {}
    for name, told in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(told, TensorStorageMetadata)
        mine = owner(name)
        pieces = mine is not None and is_sharded(mine)
        kind = told.properties.dtype
        found[name] = torch.empty_like(mine, dtype=kind) if pieces else torch.empty(told.size, dtype=kind)  # type: ignore[arg-type]
    with warnings.catch_warnings():  # one process reads what many wrote, and means to
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        load(found, storage_reader=reader)
    return {name: x.detach() for name, x in found.items()}


def _pieces(model: nn.Module) -> list[Any]:
    from torch.distributed.fsdp import FSDPModule

    return [m for m in model.modules() if isinstance(m, FSDPModule)]


def _enter_by(model: nn.Module, name: str) -> None:
    """Let a method gather the outermost weights as `forward` would, once where one such method calls another."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    plain = getattr(model, name)
    register_fsdp_forward_method(model, name)
    hooked = getattr(model, name)

    @functools.wraps(plain)
    def entered(*args: Any, **kwargs: Any) -> Any:
        if model.__dict__.get("_inside"):
            return plain(*args, **kwargs)
        model.__dict__["_inside"] = True
        try:
            return hooked(*args, **kwargs)
        finally:
            model.__dict__["_inside"] = False

    model.__dict__[name] = entered


@torch.no_grad()
def _begin(model: Any) -> None:
    """FSDP learns on its first pass who the outermost module is; a rollout must not be that pass."""
    device = home(next(model.parameters()))
    batch = Batch.of([[0]], [[[0]]]).to(device)
    (model.logp if hasattr(model, "logp") else model.score)(batch)
    model.reshard()


@functools.cache
def _register_loss() -> None:
    """FSDP looks for the tensors in what a pass returns."""
    from torch.export import register_dataclass

    register_dataclass(Loss)
