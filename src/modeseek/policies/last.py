"""The last layer behind its keys and values, computed only for the tokens whose state is read.

In a packed row only the states that predict a response token are read, about half of all where prompts are as long as
their responses. Earlier layers must know every token, because later ones attend to it; the last layer needs keys and
values of all, and what the rest of those tokens ask, hear and make of it is wasted. What is left out reads as zero.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


@contextlib.contextmanager
def read_only_at(model: nn.Module, read: Tensor | None) -> Iterator[None]:
    """Within, the last layer's modules that know one token at a time compute these tokens alone; unset: all."""
    handles = [h for m in _of_last_layer(model) for h in _narrowed(m, read)] if read is not None else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def number(model: nn.Module) -> int | None:
    """The last layer's, where all of it behind its keys and values can do with the tokens whose state is read."""
    return getattr(_last_layer(model).self_attn, "layer_idx", None) if len(_of_last_layer(model)) == 2 else None


def _of_last_layer(model: nn.Module) -> list[nn.Module]:
    layer = _last_layer(model)
    found = [getattr(layer, "mlp", None), getattr(getattr(layer, "self_attn", None), "o_proj", None)]
    return [m for m in found if isinstance(m, nn.Module) and _linear(m)]


def _last_layer(model: nn.Module) -> Any:
    layers: Any = getattr(getattr(model, "base_model", model), "layers", None)
    return layers[-1] if isinstance(layers, nn.ModuleList) and len(layers) else None


def _linear(module: nn.Module) -> bool:
    """Linear layers alone, adapters among them: no expert that is chosen by what other tokens are."""
    owners = [m for m in module.modules() if any(True for _ in m.parameters(recurse=False))]
    return all(isinstance(m, nn.Linear) for m in owners) and not any("Expert" in type(m).__name__ for m in owners)


def _narrowed(module: nn.Module, read: Tensor) -> list[Any]:
    tokens = 0

    def cut(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal tokens
        tokens = inputs[0].shape[1]
        return inputs[0].index_select(1, read), *inputs[1:]

    def spread(_: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> Tensor:
        return out.new_zeros(out.shape[0], tokens, out.shape[2]).index_copy(1, read, out)

    return [module.register_forward_pre_hook(cut), module.register_forward_hook(spread)]
