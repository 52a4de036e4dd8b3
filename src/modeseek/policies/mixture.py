"""A geometric mixture of two policies, token by token: pi^(1 - share) ref^share, normalised at every token.

Nash-MD's rival (Munos et al. 2023, https://arxiv.org/abs/2312.00886, section 5.2): the mixture of whole responses is
not to be sampled from, so each next token is drawn from the mixture of the two models' next-token distributions, which
is a softmax of mixed logits. A rival writes; nothing of it is trained.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from modeseek.batch import PS, Batch, MaskPS
from modeseek.policies.base import Sampling
from modeseek.policies.causal import Forward, plain_logp, plain_sample


@dataclass(frozen=True)
class Mixture:
    """`share` 0 is the policy as it is now, 1 the reference; both `predict`, and the policy says when to end."""

    policy: Any
    reference: Any
    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share: {self.share}, expected from 0, the policy alone, to 1, the reference alone")
        for name in ("policy", "reference"):
            if not hasattr(getattr(self, name), "predict"):
                raise ValueError(f"a {type(getattr(self, name)).__name__} does not predict tokens, so nothing mixes")

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter(())

    @torch.no_grad()
    def logp(self, batch: Batch) -> Float[Tensor, "P K T"]:
        return plain_logp(self.predict, batch)

    def sample(self, prompt: PS, prompt_mask: MaskPS, k: int, rng: Generator, **how: Unpack[Sampling]) -> Batch:
        # Of the type, not of the object: what is shared out over processes takes the plain path.
        if hasattr(type(self.policy), "sample_mixed"):
            return self.policy.sample_mixed(self.reference, self.share, prompt, prompt_mask, k, rng, **how)
        ends: dict[str, Any] = {"eos": self.policy.eos, "max_new": self.policy.max_new}
        ends |= {"stop": getattr(self.policy, "stop", None)}
        return plain_sample(self.predict, prompt, prompt_mask, k, rng, **ends, **how)

    def predict(self, tokens: Tensor, mask: Tensor, start: int) -> Tensor:
        """Logits `[B, L - start, V]` of the positions from `start` on."""
        return mixed(self.policy.predict, self.reference.predict, self.share)(tokens, mask, start)


def mixed(ours: Forward, theirs: Forward, share: float) -> Forward:
    """Logits of the mixture: (1 - share) of ours and share of theirs, up to what a softmax does not see."""
    return lambda *at: torch.lerp(ours(*at), theirs(*at), share)
