"""Models of Llama's shape, driven by hand on a CPU: the same sums with fewer and better laid out operations.

A small model's step is bound by the number of operations and by how its narrow products read the weights. So the
weights are copied once per call: query, key and value joined, gate and up joined, norm weights and the attention's
scale folded in, and the rotary halves interleaved, so that a rotation is one complex product. Behind the prompts, where
a step has few rows, they are laid out once more for that (`_Matrix`). All of it is made anew for every rollout, because
an optimiser step lies between two of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeseek.policies.decode.cache import Cache, Law

SHAPED = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
MKL = torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")  # whether it can lay weights out
SMALL = 1 << 20  # weights up to which a step finds all of them in a core's cache, where MKL's copies give nothing
FEW = 24  # rows up to which MKL's copies are worth the rows that they add when responses end
WIDE = 2048  # words from which copying the output layer transposed costs more than it gives
ROWS = 8  # for which oneDNN chooses its blocks; they serve any number
Product = Callable[[Tensor], Tensor]
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


class _Matrix:
    """A linear layer; once it is laid out, its weight once more for products of few rows."""

    few: Product

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight, self.bias = weight.detach(), bias  # [out, in], [out]

    def many(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def lay_out(self, way: Callable[[Tensor, Tensor | None], Product]) -> None:
        self.few = way(self.weight, self.bias)


def _of_rows(rows: int, weight: Tensor, bias: Tensor | None) -> Product:
    """MKL lays it out for one number of rows, which then take .6 to .9 of the time of any other way."""
    copy = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
    return lambda x: torch.ops.mkl._mkl_linear(x, copy, weight, bias, rows)


def _in_blocks(weight: Tensor, bias: Tensor | None) -> Product:
    """As oneDNN reads it in one go, where torch was built with it: cheap to make, for any number of rows. With it for
    the output layer a rollout of 8,192 or 32,000 words takes 6 to 13% less time."""
    if not torch.backends.mkldnn.is_available():
        return lambda x: F.linear(x, weight, bias)
    copy = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, copy, bias, "none", [], "")


def _transposed(weight: Tensor, bias: Tensor | None) -> Product:
    """A product of few rows with `[in, out]` is 1.3 to 4 times faster than with `[out, in]`. Rows that lie a power of
    two apart would share cache lines."""
    copy = weight.new_empty(weight.shape[1], len(weight) + 16)[:, : len(weight)].copy_(weight.t())
    return (lambda x: torch.mm(x, copy)) if bias is None else lambda x: torch.addmm(bias, x, copy)


@dataclass(frozen=True)
class _Layer:
    qkv: _Matrix  # to (query heads + 2 heads) D
    out: _Matrix
    up: _Matrix  # to gate and up
    down: _Matrix
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
        width = self.embed.shape[1]
        self.root, self.eps = math.sqrt(width), m.model.norm.variance_epsilon
        self.floor = torch.tensor(math.sqrt(width * self.eps), dtype=dtype)
        # interleaved halves: place 2i is the real and 2i + 1 the imaginary part of pair i
        self.order = torch.arange(self.D).view(2, -1).t().reshape(-1)
        cos, sin = m.model.rotary_emb(self.embed, torch.arange(longest)[None])
        half = self.D // 2
        self.turn = torch.complex(cos[0, :, None, :half].contiguous(), sin[0, :, None, :half].contiguous())
        self.layers = [self._laid_out(layer) for layer in m.model.layers]
        self.norm, self.head = m.model.norm.weight.detach() * self.root, _Matrix(m.lm_head.weight, m.lm_head.bias)
        self.matrices = [m for layer in self.layers for m in (layer.qkv, layer.out, layer.up, layer.down)]
        self.rows: int | None = None  # that a step has; 0: any number

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
            qkv=_Matrix(qkv * (layer.input_layernorm.weight * self.root), bias),
            out=_Matrix(a.o_proj.weight, None),
            up=_Matrix(up * (layer.post_attention_layernorm.weight * self.root), None),
            down=_Matrix(mlp.down_proj.weight, None),
            law=Law(1.0, window),
            q_norm=self._interleaved(a.q_norm.weight) * a.scaling if normed else None,
            k_norm=self._interleaved(a.k_norm.weight) if normed else None,
        )

    def _interleaved(self, x: Tensor) -> Tensor:
        """The same rows, each head's halves interleaved. Queries and keys alike, so their products are unchanged."""
        return x.detach().unflatten(0, (-1, self.D))[:, self.order].flatten(0, 1)

    def _normed(self, x: Tensor) -> Tensor:
        """Without the norm's weight and the root of the width, which stand in the next product's weight."""
        return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(self.floor)

    def _lay_out(self, rows: int) -> int:
        """The weights, for steps of so many rows and fewer. Returns how many rows there must be."""
        if self.rows is None or 0 < self.rows < rows:
            size = sum(m.weight.numel() for m in (*self.matrices, self.head))
            self.rows = rows if MKL and rows <= FEW and size > SMALL else 0
            for matrix in (*self.matrices, self.head):
                wide = matrix is self.head and len(matrix.weight) > WIDE
                matrix.lay_out(partial(_of_rows, rows) if self.rows else _in_blocks if wide else _transposed)
        return self.rows or rows

    def __call__(self, cache: Cache, tokens: Tensor, positions: Tensor, at: Tensor | None) -> Tensor:
        Q, H, D, N = self.queries, self.heads, self.D, len(tokens)
        times: Callable[[_Matrix, Tensor], Tensor] = lambda matrix, x: matrix.many(x)
        if at is None:  # one token of every response
            times, rows = lambda matrix, x: matrix.few(x), self._lay_out(N)
            if rows > N:
                tokens, positions = (F.pad(x, (0, rows - N)) for x in (tokens, positions))
        x = F.embedding(tokens, self.embed)
        turn = self.turn.index_select(0, positions)  # [N, 1, D / 2]
        for i, layer in enumerate(self.layers):
            qkv = times(layer.qkv, self._normed(x)).view(-1, Q + 2 * H, D)
            if layer.q_norm is not None and layer.k_norm is not None:
                qkv[:, :Q] = F.rms_norm(qkv[:, :Q], (D,), layer.q_norm, self.eps)
                qkv[:, Q : Q + H] = F.rms_norm(qkv[:, Q : Q + H], (D,), layer.k_norm, self.eps)
            torch.view_as_complex(qkv[:, : Q + H].unflatten(-1, (-1, 2))).mul_(turn)
            if at is None:
                heard = cache.step(i, qkv[:N], layer.law)
            else:
                q, k, v = qkv.split_with_sizes((Q, H, H), 1)
                if i + 1 == len(self.layers):  # nobody reads the other tokens any more
                    x, q = x[at], q[at]
                heard = cache.read(i, q, k, v, layer.law)
            heard = heard.reshape(-1, Q * D)
            x += times(layer.out, heard if len(heard) == len(x) else F.pad(heard, (0, 0, 0, len(x) - N)))
            gate, up = times(layer.up, self._normed(x)).chunk(2, -1)
            x += times(layer.down, F.silu(gate).mul_(up))
        said = times(self.head, self._normed(x).mul_(self.norm))
        return said if at is not None else said[:N]
