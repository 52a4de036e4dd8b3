"""A transformers model as a function of tokens and a cache: its own modules, with our attention in them."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from modeseek.policies import last
from modeseek.policies.adapter import unwrapped
from modeseek.policies.decode.cache import Cache, Law

NAME = "modeseek_decode"

# (cache, tokens [N], positions [N], which of them to predict from) -> logits [n, V]
Body = Callable[[Cache, Tensor, Tensor, Tensor | None], Tensor]

_cache: ContextVar[Cache] = ContextVar("decode_cache")
# what layers pass along without meaning it for the attention
_IDLE = {"position_ids", "cache_position", "return_dict"}


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in place of its own attention: `[1, H, N, D]` in, `[1, N, H, D]` out."""
    unknown = [name for name, x in others.items() if name not in _IDLE and x is not None and x is not False]
    if unknown:
        raise ValueError(f"its attention reads {', '.join(unknown)}")
    if attention_mask is not None or is_causal is False or getattr(module, "is_causal", True) is False:
        raise ValueError("its attention is not causal, or brings a mask of its own")
    if dropout:
        raise ValueError(f"attention_dropout: {dropout} while sampling; call model.eval() first")
    device = query.device.type
    if torch.is_autocast_enabled(device) and query.dtype != torch.float64:  # as for scaled_dot_product_attention
        query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    law = Law(scale, sliding_window, softcap, s_aux)
    cache, own = _cache.get(), value.shape[-1]
    layer: Any = module.layer_idx
    if own != key.shape[-1]:  # some models' values are narrower than their keys
        wide = max(own, key.shape[-1])
        query, key, value = (F.pad(x, (0, wide - x.shape[-1])) for x in (query, key, value))
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    heard = cache.read(layer, q, k, v, law) if cache.reading else cache.step(layer, torch.cat([q, k, v], 1), law)
    return heard[None, ..., :own], None


AttentionInterface.register(NAME, attention)


@contextlib.contextmanager
def driven(model: nn.Module) -> Iterator[Body]:
    """Within, the model's attention layers read the cache that the body is called with; any model that `why_not`
    has nothing against, adapters included."""

    def body(cache: Cache, tokens: Tensor, positions: Tensor, at: Tensor | None) -> Tensor:
        token = _cache.set(cache)
        try:
            with last.read_only_at(unwrapped(model), at):
                said = model(
                    input_ids=tokens[None],
                    position_ids=positions[None],
                    use_cache=False,
                    logits_to_keep=0 if at is None else at,
                )
        finally:
            _cache.reset(token)
        logits = said.logits[0]
        return logits if at is None or len(logits) == len(at) else logits[at]

    found: list[Any] = [getattr(m, "config", None) for m in model.modules()]
    configs = {id(c): c for c in found if hasattr(c, "_attn_implementation")}
    before = {i: c._attn_implementation for i, c in configs.items()}
    try:
        for c in configs.values():
            c._attn_implementation = NAME
        yield body
    finally:
        for i, c in configs.items():
            c._attn_implementation = before[i]
