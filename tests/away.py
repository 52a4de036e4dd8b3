"""A pretended device, for machines without one: tensors that say they are elsewhere and refuse to meet the CPU's.

A tensor of it holds a CPU tensor and computes there, so that values can be compared; what must not be mixed on a real
device is refused as it is there. It calls itself `meta`, the one device but the CPU that every build of torch knows.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
INDEXING = ("index.Tensor", "index_put.default", "index_put_.default", "_index_put_impl_.default")


class Away(Tensor):
    """A tensor on the pretended device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor):
        of = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, device=DEVICE, **of)
        made.held = held
        return made

    def __repr__(self):
        return f"Away({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Computing(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Calling(TorchFunctionMode):
    """What never comes to the dispatcher: tensors from lists, and lists from tensors."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is Tensor.tolist and isinstance(args[0], Away):
            return args[0].held.tolist()
        if func is Tensor.numpy and isinstance(args[0], Away):
            raise TypeError("a tensor of another device has no NumPy array: .cpu() first")
        if func in (torch.tensor, torch.as_tensor) and _is_ours(kwargs.get("device")):
            return func(*args, **{**kwargs, "device": None}).to(DEVICE)
        return func(*args, **kwargs)


@contextlib.contextmanager
def pretended():
    """Within it, `meta` is a device with values."""
    with _Computing(), _Calling():
        yield


def move(module: nn.Module) -> nn.Module:
    """The module with its weights on the pretended device."""
    for part in module.modules():
        for name, x in part._parameters.items():
            if x is not None:
                part._parameters[name] = nn.Parameter(Away(x.detach().clone()), requires_grad=x.requires_grad)
        for name, x in part._buffers.items():
            part._buffers[name] = None if x is None else Away(x.detach().clone())
    return module


def _is_ours(device: object) -> bool:
    return device is not None and torch.device(device).type == "meta"


def _run(func, args, kwargs):
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    away, name = any(isinstance(x, Away) for x in tensors), func.__name__
    moves, target = name in ("_to_copy.default", "copy_.default"), kwargs.get("device")
    if away and not moves and name not in INDEXING:
        for x in tensors:
            if not isinstance(x, Away) and x.ndim and x.numel():
                raise RuntimeError(f"{func}: a CPU tensor of shape {tuple(x.shape)} among tensors of another device")
    home = lambda x: x.held if isinstance(x, Away) else x
    on_cpu = {**kwargs, "device": torch.device("cpu")} if target is not None else kwargs
    said = func(*tree_map(home, args), **tree_map(home, on_cpu))
    if name == "copy_.default":  # to where the first one is
        return args[0]
    if not (_is_ours(target) or (target is None and away)):
        return said
    known = {id(x.held): x for x in tensors if isinstance(x, Away)}  # in place: the same tensor again
    back = lambda x: known.get(id(x)) if id(x) in known else Away(x)
    return tree_map(lambda x: back(x) if isinstance(x, Tensor) else x, said)
