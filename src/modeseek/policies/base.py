"""What a policy is: it can say how likely a response is, and it can write one."""

from collections.abc import Iterator
from typing import Protocol, TypedDict, Unpack, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from modeseek.batch import PS, Batch, MaskPS

BLOCK = 256  # tokens of a large vocabulary that are looked through at a time


class Sampling(TypedDict, total=False):
    """What is drawn from; without a word the whole distribution that `logp` speaks of. `pick` has the defaults."""

    temperature: float  # 1 is the policy's own; 0 is greedy
    top_p: float  # 1 keeps the whole vocabulary
    top_k: int  # 0 keeps the whole vocabulary


@runtime_checkable
class Policy(Protocol):
    """`logp` has a gradient where the parameters have one. `sample` has none, marks everything fresh and fills
    `old_logp` (under the distribution it sampled from) and `finished`; at temperature 1, top_p 1 and top_k 0 that
    distribution is exactly the one `logp` speaks of."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def logp(self, batch: Batch) -> Float[Tensor, "P K T"]: ...

    def sample(self, prompt: PS, prompt_mask: MaskPS, k: int, rng: Generator, **how: Unpack[Sampling]) -> Batch: ...


def choose(
    logits: Float[Tensor, "B V"], rng: Generator, **how: Unpack[Sampling]
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """One token a row and its log-probability under the distribution it was drawn from."""
    return pick(logits, uniform((len(logits),), rng, logits.device), **how)


def uniform(shape: tuple[int, ...], rng: Generator, device: torch.device) -> Float[Tensor, "..."]:
    """Numbers of [0, 1): what `pick` turns into tokens. The largest is far enough from 1 that a product with a total
    stays below the total."""
    drawn = torch.rand(shape, generator=rng, dtype=torch.float64, device=rng.device)
    return drawn.clamp_(max=1 - 2.0**-52).to(device)


def pick(
    logits: Float[Tensor, "B V"],
    u: Float[Tensor, " B"],
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """`choose` with its randomness given: the token at u on the line where each has its probability as length."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    if temperature == 0:
        return wide.argmax(-1), wide.new_zeros(len(wide))
    if temperature != 1:
        wide = wide / temperature
    if top_k or top_p < 1:
        wide = _truncated(wide, top_p, top_k)
    # a small vocabulary in float64 at once; of a large one only the blocks that are looked through
    p = wide.softmax(-1, dtype=torch.float64 if wide.shape[1] <= 2 * BLOCK else wide.dtype)
    token = _at(p, u)
    return token, p.gather(-1, token[:, None]).squeeze(-1).log().to(wide.dtype)


def _truncated(logits: Float[Tensor, "B V"], top_p: float, top_k: int) -> Float[Tensor, "B V"]:
    ordered, order = logits.softmax(-1).sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered  # mass of the tokens ahead: the best one always stays
    out = before >= top_p
    if top_k:
        out[:, top_k:] = True
    return logits.masked_fill(out.scatter(-1, order, out), float("-inf"))


def _at(p: Float[Tensor, "B V"], u: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Inverse of the distribution function. In a large vocabulary first a block of tokens is found, then the token
    within, so that no running sum over the whole is made."""
    if p.shape[1] <= 2 * BLOCK:
        return _find(p.cumsum(-1, dtype=torch.float64), u[:, None])[0].squeeze(1)
    beyond = -p.shape[1] % BLOCK
    blocks = (F.pad(p, (0, beyond)) if beyond else p).unflatten(1, (-1, BLOCK))  # padding by nothing copies it
    mass = blocks.sum(-1).double()
    edge = mass.cumsum(-1)
    block, at = _find(edge, u[:, None])
    mass = mass.gather(1, block)
    rest = ((at - edge.gather(1, block) + mass) / mass).clamp_(0, 1 - 2.0**-52)  # how far within the block
    there = block[..., None].expand(-1, -1, BLOCK)  # take_along_dim would divide each of these for negative ones
    within = blocks.gather(1, there).squeeze(1).cumsum(-1, dtype=torch.float64)
    return (block * BLOCK + _find(within, rest)[0]).squeeze(1)


def _find(edge: Float[Tensor, "B N"], u: Float[Tensor, "B 1"]) -> tuple[Int[Tensor, "B 1"], Float[Tensor, "B 1"]]:
    """The place at the share u of all mass, never one without mass, and the mass up to that point."""
    at = edge[:, -1:] * u
    return torch.searchsorted(edge, at, right=True), at
