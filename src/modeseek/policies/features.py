"""What a policy says of responses together with the hidden states it says it from: one forward gives both."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from modeseek.batch import Batch
from modeseek.policies.adapter import unwrapped
from modeseek.policies.bandit import Bandit
from modeseek.policies.base import Policy
from modeseek.policies.pack import Row, pack, said, split

TOKENS = 2**14  # packed tokens, or cells of padded rows, whose states exist at once


@dataclass(frozen=True)
class Seen:
    """Of every response: its tokens' log-probabilities in nats, and the last layer's states, pooled.

    A table of logits has no layers: its features are its cells, and what predicts its one token is the context.
    """

    logp: Float[Tensor, "P K T"]
    features: Float[Tensor, "P K H"]  # mean of the states at the response's tokens
    predicting: Float[Tensor, "P K G"]  # sum of the states that its tokens were predicted from (2410.08847's)


@torch.no_grad()
def see(policy: Policy, batch: Batch, *, tokens: int = TOKENS) -> Seen:
    """Log-probabilities and states of all responses, at most so many tokens at a time. Absent responses are zero."""
    if isinstance(policy, Bandit):
        return _cells(policy, batch)
    packs = getattr(policy, "paths", {}).get("logp", "").startswith("packed")
    parts = split(batch, tokens) if packs else batch.split(max(1, tokens // _width(batch)))
    found = [_packed(policy, part) if packs else _plain(policy, part) for part in parts]
    join = lambda name: torch.cat([getattr(one, name) for one in found])
    return Seen(join("logp"), join("features"), join("predicting"))


def _cells(policy: Bandit, batch: Batch) -> Seen:
    contexts, actions = policy.logits.shape
    context = F.one_hot(batch.prompt[:, 0], contexts).to(policy.logits.dtype)  # [P, C]
    action = F.one_hot(batch.response[..., 0], actions).to(policy.logits.dtype)  # [P, K, A]
    cell = (context[:, None, :, None] * action[:, :, None, :]).flatten(2)  # [P, K, C A]
    shape = (*batch.fresh.shape, contexts)
    return Seen(policy.logp(batch), cell, context[:, None].expand(shape))


def _packed(policy: Any, batch: Batch) -> Seen:
    with _watching(unwrapped(policy.model).base_model, output=True) as seen:
        logp = policy.logp(batch)
    row = pack(batch)
    states = seen[-1][0]  # [L, H]
    return Seen(logp, *_pooled(states[_places(row)], states[row.before], batch))


def _plain(policy: Any, batch: Batch) -> Seen:
    with _watching(_head(policy), output=False) as seen:
        logp = policy.logp(batch)
    P, K, T = batch.response.shape
    states = seen[-1].view(P, K, T + 1, -1)  # of the prompt's last token and of every response token
    mask = said(batch)
    return Seen(logp, *_pooled(states[:, :, 1:][mask], states[:, :, :-1][mask], batch))


def _pooled(
    at: Float[Tensor, "N H"], before: Float[Tensor, "N H"], batch: Batch
) -> tuple[Float[Tensor, "P K H"], Float[Tensor, "P K H"]]:
    """Mean of the states at the tokens and sum of those before them; tokens stand in the order of the mask."""
    mask = said(batch)
    P, K, _ = mask.shape
    which = mask.flatten(0, 1).nonzero()[:, 0]  # [N] the response of each token
    add = lambda x: x.new_zeros(P * K, x.shape[-1]).index_add_(0, which, x).view(P, K, -1)
    return add(at) / mask.sum(-1, keepdim=True).clamp(min=1), add(before)


def _places(row: Row) -> Int[Tensor, " N"]:
    """Where in the packed row the response tokens stand."""
    spans = [torch.arange(s.start + s.prompt, s.stop, device=row.tokens.device) for s in row.segments]
    return torch.cat(spans) if spans else row.before


@contextmanager
def _watching(module: nn.Module, *, output: bool) -> Iterator[list[Tensor]]:
    """What goes into a module, or the last hidden state that comes out of it, while this is open."""
    seen: list[Tensor] = []
    if output:
        handle = module.register_forward_hook(lambda _, __, out: seen.append(out.last_hidden_state.detach()))
    else:
        handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    try:
        yield seen
    finally:
        handle.remove()


def _head(policy: Any) -> nn.Module:
    model = unwrapped(policy.model)
    found = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else getattr(model, "head", None)
    if found is None:
        raise ValueError(f"a {type(model).__name__} has no output layer to read hidden states before")
    return found


def _width(batch: Batch) -> int:
    P, K, T = batch.response.shape
    return max(1, K * (batch.prompt.shape[1] + T))
