"""Models of Llama's shape, driven by hand on a CPU: the same sums with fewer and better laid out operations.

A small model's step is bound by the number of operations and by how its narrow products read the weights. So the
weights are copied once per call, transposed (a product of few rows with a `[in, out]` matrix is 1.3 to 4 times faster
than with `[out, in]`), query, key and value joined, gate and up joined, norm weights and the attention's scale folded
in, and the rotary halves interleaved, so that a rotation is one complex product. The copy is made anew for every
rollout, because an optimiser step lies between two of them.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeseek.policies.decode.cache import Cache, Law

SHAPED = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
WIDE = 2048  # words from which the output layer is laid out in blocks: copying it transposed costs more than it gives
ROWS = 8  # for which oneDNN chooses its blocks; they serve any number
STILL_ROPE = {"default", "linear", "llama3", "yarn"}  # angles that do not depend on how long the row is


def fits(model: nn.Module) -> bool:
    """Whether the model is one of the plain Llama-shaped ones, untouched, on a CPU, in float32."""
    if type(model).__name__ not in SHAPED or not type(model).__module__.startswith("transformers.models."):
        return False
    m: Any = model
    rope = getattr(m.config, "rope_parameters", None) or {}
    weight = m.model.embed_tokens.weight
    layer = m.model.layers[0]
    plain = all(
        type(x) is nn.Linear or not isinstance(x, nn.Linear) and not hasattr(x, "base_layer") for x in m.modules()
    )
    hooked = any(x._forward_hooks or x._forward_pre_hooks for x in m.modules())
    return (
        plain
        and not hooked
        and weight.device.type == "cpu"
        and {p.dtype for p in m.parameters()} <= {weight.dtype}
        and weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and rope.get("rope_type", "default") in STILL_ROPE
        and rope.get("partial_rotary_factor", 1.0) == 1.0
        and m.config.hidden_act == "silu"
        and layer.self_attn.o_proj.bias is None
        and layer.mlp.down_proj.bias is None
        and layer.mlp.gate_proj.bias is None
    )


@dataclass(frozen=True)
class _Layer:
    qkv: Tensor  # [width, (query heads + 2 heads) D]
    bias: Tensor | None
    out: Tensor
    up: Tensor  # [width, 2 inner]
    down: Tensor
    law: Law
    q_norm: Tensor | None
    k_norm: Tensor | None


class Lean:
    """The body of a model that `fits`, its weights as they are now, for positions below `longest`."""

    def __init__(self, model: nn.Module, longest: int):
        m: Any = model
        attention = m.model.layers[0].self_attn
        self.D = attention.head_dim
        self.queries = attention.q_proj.out_features // self.D
        self.heads = attention.k_proj.out_features // self.D
        self.embed = m.model.embed_tokens.weight.detach()
        dtype = self.embed.dtype
        self.eps = torch.tensor(m.model.norm.variance_epsilon, dtype=dtype)
        self.share = 1 / self.embed.shape[1]
        # interleaved halves: place 2i is the real and 2i + 1 the imaginary part of pair i
        self.order = torch.arange(self.D).view(2, -1).t().reshape(-1)
        cos, sin = m.model.rotary_emb(self.embed, torch.arange(longest)[None])
        half = self.D // 2
        self.turn = torch.complex(cos[0, :, None, :half].contiguous(), sin[0, :, None, :half].contiguous())
        self.layers = [self._laid_out(layer) for layer in m.model.layers]
        self.norm, self.head, self.head_bias = m.model.norm.weight.detach(), m.lm_head.weight.detach(), m.lm_head.bias
        self.blocks = _blocked(self.head) if len(self.head) > WIDE else None
        if len(self.head) <= WIDE:
            self.norm, self.head = None, _across(self.head * self.norm)

    def _laid_out(self, layer: Any) -> _Layer:
        a, mlp = layer.self_attn, layer.mlp
        normed = hasattr(a, "q_norm")
        scale = 1.0 if normed else a.scaling
        qkv = torch.cat(
            [self._interleaved(a.q_proj.weight) * scale, self._interleaved(a.k_proj.weight), a.v_proj.weight.detach()]
        )
        bias = None
        if a.q_proj.bias is not None:
            turned = (self._interleaved(a.q_proj.bias) * scale, self._interleaved(a.k_proj.bias))
            bias = torch.cat([*turned, a.v_proj.bias.detach()])
        up = torch.cat([mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach()])
        window = getattr(a, "sliding_window", None)
        if type(a).__name__ == "MistralAttention":
            window = getattr(a.config, "sliding_window", None)
        return _Layer(
            qkv=_across(qkv * layer.input_layernorm.weight.detach()),
            bias=bias,
            out=_across(a.o_proj.weight.detach()),
            up=_across(up * layer.post_attention_layernorm.weight.detach()),
            down=_across(mlp.down_proj.weight.detach()),
            law=Law(1.0, window),
            q_norm=self._interleaved(a.q_norm.weight) * a.scaling if normed else None,
            k_norm=self._interleaved(a.k_norm.weight) if normed else None,
        )

    def _interleaved(self, x: Tensor) -> Tensor:
        """The same rows, each head's halves interleaved. Queries and keys alike, so their products are unchanged."""
        return x.detach().unflatten(0, (-1, self.D))[:, self.order].flatten(0, 1)

    def _normed(self, x: Tensor) -> Tensor:
        return x * torch.add(self.eps, x.square().sum(-1, keepdim=True), alpha=self.share).rsqrt_()

    def __call__(self, cache: Cache, tokens: Tensor, positions: Tensor, at: Tensor | None) -> Tensor:
        Q, H, D, N = self.queries, self.heads, self.D, len(tokens)
        x = F.embedding(tokens, self.embed)
        turn = self.turn.index_select(0, positions)  # [N, 1, D / 2]
        for i, layer in enumerate(self.layers):
            h = self._normed(x)
            qkv = torch.mm(h, layer.qkv) if layer.bias is None else torch.addmm(layer.bias, h, layer.qkv)
            qkv = qkv.view(N, Q + 2 * H, D)
            if layer.q_norm is not None and layer.k_norm is not None:
                qkv[:, :Q] = F.rms_norm(qkv[:, :Q], (D,), layer.q_norm, self.eps.item())
                qkv[:, Q : Q + H] = F.rms_norm(qkv[:, Q : Q + H], (D,), layer.k_norm, self.eps.item())
            torch.view_as_complex(qkv[:, : Q + H].unflatten(-1, (-1, 2))).mul_(turn)
            q, k, v = qkv.split_with_sizes((Q, H, H), 1)
            x.addmm_(cache(i, q, k, v, layer.law).reshape(N, Q * D), layer.out)
            gate, up = torch.mm(self._normed(x), layer.up).chunk(2, -1)
            x.addmm_(F.silu(gate).mul_(up), layer.down)
        x = self._normed(x if at is None else x[at])
        if self.norm is None:
            return torch.mm(x, self.head) if self.head_bias is None else torch.addmm(self.head_bias, x, self.head)
        x.mul_(self.norm)
        if self.blocks is None:
            return F.linear(x, self.head, self.head_bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.blocks, self.head_bias, "none", [], "")


def _blocked(weight: Tensor) -> Tensor | None:
    """A copy in the blocks that oneDNN reads in one go, where torch was built with it: a rollout of 8,192 or 32,000
    words takes 6 to 13% less time."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, ROWS) if torch.backends.mkldnn.is_available() else None


def _across(weight: Tensor) -> Tensor:
    """A copy `[in, out]`, whose rows are not a power of two apart: those would share cache lines."""
    new = weight.new_empty(weight.shape[1], weight.shape[0] + 16)[:, : weight.shape[0]]
    return new.copy_(weight.t())
