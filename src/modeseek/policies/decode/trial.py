"""Whether a model can take the fast rollout: asked of its layers by trying, not of a list of names."""

from typing import Any

import torch
from torch import Tensor, nn

from modeseek.policies.decode.body import driven
from modeseek.policies.decode.cache import Cache, Law

PROMPTS, OWN = (5, 3), 3  # lengths of the trial's prompts, tokens of each response to them
CLOSE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # of the largest logit


@torch.no_grad()
def why_not(model: nn.Module) -> str | None:
    """Why a transformers causal LM cannot take the fast rollout, or None where it can.

    Two ragged prompts with two responses each go through the shared cache and through the model as it is: every layer
    must attend through ours, with a rule that we know, and the logits must agree.
    """
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(config, "num_hidden_layers"):
        return "it is not a transformers causal LM with a text config"
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    if len({p.device for p in model.parameters()}) > 1:
        return "its weights lie on several devices"
    if (rope := _moving_rope(getattr(config, "rope_parameters", None))) is not None:
        return f"its rotary angles ({rope}) change with the length of the row"
    kinds = getattr(config, "layer_types", None) or []
    if other := sorted(set(kinds) - {"full_attention", "sliding_attention"}):
        return f"it has layers of type {', '.join(other)}"
    try:
        ours, laws = _through_the_cache(model, config)
    except Exception as error:  # whatever a layer trips over is the reason
        return f"its layers do not go with a shared cache: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
    if len(laws) != config.num_hidden_layers:
        return f"only {len(laws)} of its {config.num_hidden_layers} layers attend through transformers' interface"
    slides = [i for i, kind in enumerate(kinds) if kind == "sliding_attention"]
    if any(laws[i].window is None for i in slides):
        return "it has sliding windows that its layers do not pass on"
    plain = _as_it_is(model, config)
    apart = float((ours - plain).abs().max() / plain.abs().max())
    if not apart <= CLOSE.get(plain.dtype, 1e-4):
        return f"its logits differ by {apart:.1g} of the largest when prompts are shared"
    return None


def _trial(config: Any, device: torch.device) -> tuple[list[Tensor], Tensor]:
    """Tokens of the prompts, and of the responses [2 x 2, OWN]."""
    ids = torch.arange(sum(PROMPTS) + 4 * OWN, device=device) * 7 % config.vocab_size
    return list(ids[: sum(PROMPTS)].split(PROMPTS)), ids[sum(PROMPTS) :].view(4, OWN)


def _through_the_cache(model: nn.Module, config: Any) -> tuple[Tensor, dict[int, Law]]:
    device = next(model.parameters()).device
    prompts, own = _trial(config, device)
    cache = Cache(list(PROMPTS), 2, OWN, device, share=True)
    place = torch.cat([torch.arange(n, device=device) for n in PROMPTS])
    lengths = torch.tensor(PROMPTS, device=device)
    with driven(model) as body:
        logits = [body(cache, torch.cat(prompts), place, lengths.cumsum(0) - 1).repeat_interleave(2, 0)]
        if not cache.laws:
            return logits[0], {}
        cache.start()
        for t in range(OWN):
            logits.append(body(cache, own[:, t], lengths.repeat_interleave(2) + t, None))
            cache.next()
    return torch.stack(logits, 1), cache.laws  # [4, 1 + OWN, V]


def _as_it_is(model: nn.Module, config: Any) -> Tensor:
    prompts, own = _trial(config, next(model.parameters()).device)
    rows = [torch.cat([prompts[r // 2], own[r]])[None] for r in range(4)]
    said = [model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits for row in rows]
    return torch.stack([x[0, -1 - OWN :] for x in said])


def _moving_rope(rope: Any) -> str | None:
    if not isinstance(rope, dict):
        return None
    kind = rope.get("rope_type")
    if kind in ("dynamic", "longrope"):
        return kind
    return next((found for x in rope.values() if (found := _moving_rope(x)) is not None), None)
