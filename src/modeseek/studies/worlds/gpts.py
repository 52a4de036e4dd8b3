"""A small GPT for each seed, all run at once: every weight has the seeds as its first axis.

The prompts of a batch stand seed after seed, equally many of each, so no weight is gathered. Pre-norm blocks without
gains, as in `policies/gpt.py`; the head has a bias that starts at given log-probabilities, so the start is a known
distribution up to small weights, with nothing to pretrain.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from modeseek.batch import PKT, Batch
from modeseek.ops import token_logp
from modeseek.studies.worlds.table import normal, streams

Cache = list[tuple[Tensor, Tensor]]  # keys and values of each layer, [S, N, heads, L, d]


class Gpts(nn.Module):
    """Responses have `length` tokens, all of them drawn: there is no end token. Prompts have one token."""

    def __init__(
        self,
        seeds: Sequence[int],
        start: Float[Tensor, " V"],  # log-probabilities
        *,
        length: int,
        width: int = 32,
        heads: int = 2,
        layers: int = 1,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        rngs, V = streams(seeds, "weights"), len(start)
        make = lambda *shape, scale: nn.Parameter((normal(rngs, *shape) * scale).to(dtype))
        self.length, self.heads = length, heads
        self.token, self.place = make(V, width, scale=0.5), make(length + 1, width, scale=0.5)
        small = width**-0.5
        self.qkv = nn.ParameterList(make(width, 3 * width, scale=small) for _ in range(layers))
        self.out = nn.ParameterList(make(width, width, scale=small) for _ in range(layers))
        self.up = nn.ParameterList(make(width, 4 * width, scale=small) for _ in range(layers))
        self.down = nn.ParameterList(make(4 * width, width, scale=small / 2) for _ in range(layers))
        self.head = make(width, V, scale=0.1 * small)
        self.bias = nn.Parameter(start.to(dtype).expand(len(seeds), V).clone())

    def forward(self, tokens: Int[Tensor, "S N L"], cache: Cache | None = None) -> Float[Tensor, "S N L V"]:
        """Logits after each token. A cache is of the tokens before these, and is extended."""
        S, N, L = tokens.shape
        past = cache[0][0].shape[3] if cache else 0
        x = self.token[torch.arange(S)[:, None, None], tokens] + self.place[:, None, past : past + L]
        for layer in range(len(self.qkv)):
            q, k, v = _times(_norm(x), self.qkv[layer]).view(S, N, L, 3, self.heads, -1).permute(3, 0, 1, 4, 2, 5)
            if cache is not None:
                if past:
                    k, v = torch.cat([cache[layer][0], k], 3), torch.cat([cache[layer][1], v], 3)
                    cache[layer] = (k, v)
                else:
                    cache.append((k, v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=L > 1)
            x = x + _times(y.transpose(2, 3).flatten(3), self.out[layer])
            x = x + _times(F.gelu(_times(_norm(x), self.up[layer])), self.down[layer])
        return _times(_norm(x), self.head) + self.bias[:, None, None]

    def logits(self, batch: Batch) -> Float[Tensor, "P K T V"]:
        """Before each token of each response."""
        S = len(self.bias)
        tokens = torch.cat([batch.prompt[:, None].expand(*batch.response.shape[:2], 1), batch.response[..., :-1]], -1)
        out = self(tokens.view(S, -1, self.length))  # [S, b K, T, V]
        return out.view(*batch.response.shape, -1)

    def logp(self, batch: Batch) -> PKT:
        return token_logp(self.logits(batch), batch.response)

    @torch.no_grad()
    def sample(self, prompt: Int[Tensor, "P 1"], u: Float[Tensor, "P K T"]) -> Batch:
        """Each token by its place in the cumulative distribution: the same `u`, the same luck."""
        S, (P, K, T) = len(self.bias), u.shape
        token, luck = prompt.expand(P, K).reshape(S, -1, 1), u.reshape(S, -1, T)
        cache: Cache = []
        written, said = [], []
        for t in range(T):
            logp = self(token, cache)[:, :, 0].log_softmax(-1)  # [S, N, V]
            cdf = logp.double().exp().cumsum(-1)
            token = torch.searchsorted(cdf, luck[..., t : t + 1].contiguous(), right=True).clamp(max=cdf.shape[-1] - 1)
            written.append(token)
            said.append(logp.gather(-1, token))
        join = lambda parts: torch.cat(parts, -1).view(P, K, T)
        mask = torch.ones(P, K, T, dtype=torch.bool)
        return Batch.own(prompt, torch.ones_like(prompt, dtype=torch.bool), join(written), mask, old_logp=join(said))


def _times(x: Float[Tensor, "S N L D"], weight: Float[Tensor, "S D E"]) -> Float[Tensor, "S N L E"]:
    return torch.bmm(x.flatten(1, 2), weight).view(*x.shape[:3], -1)


def _norm(x: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D"]:
    return F.rms_norm(x, x.shape[-1:])
