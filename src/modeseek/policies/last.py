"""The last layer's feed-forward network and output projection, computed only for the tokens whose state is read.

In a packed row only the states that predict a response token are read, about half of all where prompts are as long as
their responses. Earlier layers must know every token, because later ones attend to it; the last layer needs keys and
values of all, and beyond its attention the rest of those tokens is wasted. What is left out reads as zero.
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


def _of_last_layer(model: nn.Module) -> list[nn.Module]:
    layers: Any = getattr(getattr(model, "base_model", model), "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return []
    attention = getattr(layers[-1], "self_attn", None)
    found = [getattr(layers[-1], "mlp", None), getattr(attention, "o_proj", None)]
    return [m for m in found if isinstance(m, nn.Module) and _linear(m)]


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
