"""A table of logits, one row per context. Small enough that every expectation is exact."""

from typing import Unpack

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from modeseek.batch import PS, Batch, MaskPS
from modeseek.ops import token_logp
from modeseek.policies.base import Sampling, choose


class Bandit(nn.Module):
    """The context is a prompt of one token, the action a response of one token."""

    def __init__(self, logits: Float[Tensor, "contexts actions"]):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def all_logp(self, prompt: Int[Tensor, "P 1"]) -> Float[Tensor, "P actions"]:
        """log-probability of every action: what tests enumerate."""
        return self.logits[prompt[:, 0]].log_softmax(-1)

    def logp(self, batch: Batch) -> Float[Tensor, "P K T"]:
        logits = self.logits[batch.prompt[:, 0]]  # [P, A]
        return token_logp(logits[:, None, None].expand(*batch.response.shape, -1), batch.response)

    @property
    def eos(self) -> tuple[int, ...]:
        """Every action ends the response."""
        return tuple(range(self.logits.shape[1]))

    max_new = 1

    def predict(self, tokens: Tensor, mask: Tensor, start: int) -> Tensor:
        """Logits `[B, L - start, A]` of the positions from `start` on: the context's, whatever was said."""
        return self.logits[tokens[:, 0]][:, None].expand(-1, tokens.shape[1] - start, -1)

    @torch.no_grad()
    def sample(self, prompt: PS, prompt_mask: MaskPS, k: int, rng: Generator, **how: Unpack[Sampling]) -> Batch:
        """`k` actions to each prompt, prompt after prompt from `rng`, all fresh and finished. `old_logp` [P, k, 1]
        is in nats under what was drawn from: with a temperature or a cut that is not what `logp` says."""
        logits = self.logits[prompt[:, 0]].repeat_interleave(k, 0)
        action, logp = choose(logits, rng, **how)
        response = action.view(-1, k, 1)
        everywhere = torch.ones_like(response, dtype=torch.bool)
        return Batch.own(
            prompt,
            prompt_mask,
            response,
            everywhere,
            old_logp=logp.view(-1, k, 1),
            finished=everywhere[..., 0],
        )
