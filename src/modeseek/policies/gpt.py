"""A GPT in one page, for studies that need a real sequence model but no download."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from modeseek.policies.causal import CausalPolicy


class Block(nn.Module):
    """Attention and a GELU layer of four times the width, each after an RMS norm without weights and added to `x`.

    `attend` is True where a place may look, which is somewhere in every row. `width` must be a multiple of `heads`.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Float[Tensor, "B L D"], attend: Bool[Tensor, "B 1 L L"]) -> Float[Tensor, "B L D"]:
        B, L, D = x.shape
        q, k, v = self.qkv(F.rms_norm(x, (D,))).view(B, L, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=attend)
        x = x + self.out(y.transpose(1, 2).reshape(B, L, D))
        return x + self.down(F.gelu(self.up(F.rms_norm(x, (D,)))))


class GPT(nn.Module):
    """Tokens and learnt places through `layers` blocks to logits, without biases and dropout.

    `context` counts the real tokens of a row, padding aside; a longer row is an IndexError of PyTorch's.
    """

    def __init__(self, vocab: int, width: int = 32, heads: int = 2, layers: int = 2, context: int = 64):
        super().__init__()
        self.token, self.place = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.head = nn.Linear(width, vocab, bias=False)

    def forward(self, tokens: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"], start: int) -> Float[Tensor, "B l V"]:
        """Logits of the positions from `start` on."""
        L = tokens.shape[1]
        at = (mask.cumsum(1) - 1).clamp(min=0)  # positions count real tokens, not left padding
        x = self.token(tokens) + self.place(at)
        causal = torch.ones(L, L, dtype=torch.bool, device=tokens.device).tril()
        # A row of padding attends to itself, so that no softmax is empty.
        attend = (causal & mask[:, None, :]) | torch.eye(L, dtype=torch.bool, device=tokens.device)
        for block in self.blocks:
            x = block(x, attend[:, None])
        x = x[:, start:]
        return self.head(F.rms_norm(x, x.shape[-1:]))


def gpt_policy(vocab: int, *, eos: int, max_new: int, **shape: int) -> CausalPolicy:
    """A small GPT with random weights (from torch's global seed) as a policy."""
    model = GPT(vocab, **shape)
    return CausalPolicy(model, model, eos=[eos], max_new=max_new)
