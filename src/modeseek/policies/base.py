"""What a policy is: it can say how likely a response is, and it can write one."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from modeseek.batch import Batch


@runtime_checkable
class Policy(Protocol):
    """`logp` has a gradient where the parameters have one. `sample` has none, marks everything fresh and fills
    `old_logp` (under the distribution it sampled from) and `finished`; at temperature 1, top_p 1 and top_k 0 that
    distribution is exactly the one `logp` speaks of."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def logp(self, batch: Batch) -> Float[Tensor, "P K T"]: ...

    def sample(
        self,
        prompt: Int[Tensor, "P S"],
        prompt_mask: Bool[Tensor, "P S"],
        k: int,
        rng: Generator,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
    ) -> Batch: ...


def choose(
    logits: Float[Tensor, "B V"], rng: Generator, temperature: float, top_p: float, top_k: int
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """One token a row and its log-probability under the distribution it was drawn from; temperature 0 is greedy.

    `top_k` 0 and `top_p` 1 keep the whole vocabulary.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    if temperature == 0:
        return wide.argmax(-1), wide.new_zeros(len(wide))
    logp = (wide / temperature).log_softmax(-1)
    if top_k or top_p < 1:
        ordered, order = logp.sort(-1, descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()  # mass of the tokens ahead: the best one always stays
        out = before >= top_p
        if top_k:
            out[:, top_k:] = True
        logp = logp.masked_fill(out.scatter(-1, order, out), float("-inf")).log_softmax(-1)
    token = logp.exp().multinomial(1, generator=rng).squeeze(-1)
    return token, logp.gather(-1, token[:, None]).squeeze(-1)
