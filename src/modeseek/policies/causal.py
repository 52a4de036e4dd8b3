"""Any causal token model as a policy: it only has to map tokens and their mask to logits."""

from collections.abc import Callable, Sequence
from typing import Unpack

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from modeseek.batch import PS, Batch, MaskPS
from modeseek.ops import token_logp
from modeseek.policies.base import Sampling, choose
from modeseek.policies.stop import Stop

# (tokens [B, L], mask [B, L], start) -> logits [B, L - start, V] of the positions from `start` on
Forward = Callable[[Tensor, Tensor, int], Tensor]


def plain_logp(forward: Forward, batch: Batch, temperature: float = 1.0) -> Float[Tensor, "P K T"]:
    """log-probability of every response token, in nats; zero where the response has none.

    Every response is a padded row with its prompt in front. Right for any model, and what the faster paths are
    compared with.
    """
    P, K, T = batch.response.shape
    S = batch.prompt.shape[1]
    prompt, prompt_mask = (x.repeat_interleave(K, 0) for x in (batch.prompt, batch.prompt_mask))
    tokens = torch.cat([prompt, batch.response.flatten(0, 1)], 1)
    mask = torch.cat([prompt_mask, batch.mask.flatten(0, 1)], 1)
    logits = forward(tokens, mask, S - 1)[:, :-1]  # position i predicts token i + 1
    return token_logp(logits / temperature, tokens[:, S:]).view(P, K, T).masked_fill(~batch.mask, 0.0)


@torch.no_grad()
def plain_sample(
    forward: Forward,
    prompt: PS,
    prompt_mask: MaskPS,
    k: int,
    rng: Generator,
    *,
    eos: Sequence[int],
    max_new: int,
    limits: Sequence[int] | None = None,
    stop: Stop | None = None,
    **how: Unpack[Sampling],
) -> Batch:
    """k responses to each prompt, the whole row recomputed for each token: slow, and right for any model.

    `limits` are tokens that the responses to each prompt may have, where that is fewer than `max_new`.
    """
    P, S = prompt.shape
    tokens, mask = prompt.repeat_interleave(k, 0), prompt_mask.repeat_interleave(k, 0)
    ends = torch.tensor(tuple(eos), device=prompt.device)
    alive = torch.ones(P * k, dtype=torch.bool, device=prompt.device)
    finished, said = torch.zeros_like(alive), list[Tensor]()
    most = torch.tensor([max_new] * P if limits is None else limits, device=prompt.device).repeat_interleave(k)
    for t in range(max_new):
        logits = forward(tokens, mask, tokens.shape[1] - 1)[:, -1]
        token, logp = choose(logits, rng, **how)
        tokens, mask = torch.cat([tokens, token[:, None]], 1), torch.cat([mask, alive[:, None]], 1)
        said.append(logp.masked_fill(~alive, 0.0))
        over = alive & torch.isin(token, ends)
        if stop is not None:
            over = over | stop.ended(token, alive & ~over, lambda row, tokens=tokens: tokens[row, S:].tolist())
        finished, alive = finished | over, alive & ~over & (most > t + 1)
        if not alive.any():
            break
    return Batch.own(
        prompt,
        prompt_mask,
        tokens[:, S:].reshape(P, k, -1),
        mask[:, S:].reshape(P, k, -1),
        old_logp=torch.stack(said, -1).view(P, k, -1),
        finished=finished.view(P, k),
    )


class CausalPolicy(nn.Module):
    """A module and how to get logits from it, as a policy by the plain path."""

    def __init__(self, model: nn.Module, forward: Forward, *, eos: Sequence[int], max_new: int):
        super().__init__()
        self.model, self.eos, self.max_new = model, tuple(eos), max_new
        self.predict = forward

    def logp(self, batch: Batch) -> Float[Tensor, "P K T"]:
        return plain_logp(self.predict, batch)

    def sample(self, prompt: PS, prompt_mask: MaskPS, k: int, rng: Generator, **how: Unpack[Sampling]) -> Batch:
        return plain_sample(self.predict, prompt, prompt_mask, k, rng, eos=self.eos, max_new=self.max_new, **how)
