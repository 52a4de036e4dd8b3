"""Every candidate tried on a twin of the problem, which costs seconds, before any is trained on the problem itself.

The twin is a log-linear policy around the reference over the responses at hand: the pairs' and a few of the model's own
samples, with the features that can be seen of them. In it the methods are trained by the same code as in the worlds.
"""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from modeseek.advise.methods import STEPS, train_all
from modeseek.advise.worlds import Worlds

SAMPLES = 64  # of the reference, in all
UNSEEN = -60.0  # logits of responses that nobody has met


def twin(worlds: Worlds, seed: int = 0, samples: int = SAMPLES) -> Worlds:
    """What an advisor can know of these worlds: the seen features, on the responses that were met."""
    rng = torch.Generator().manual_seed(seed)
    own = torch.multinomial(worlds.mass(worlds.still()), samples, replacement=True, generator=rng)
    met = torch.zeros_like(worlds.reward, dtype=torch.bool)
    met.scatter_(1, own, True).scatter_(1, worlds.pairs.flatten(1), True)
    met |= torch.arange(met.shape[1]) % worlds.base.shape[2] == 0  # no prompt is left without a response
    base = worlds.base.log_softmax(-1).masked_fill(~met.view(worlds.base.shape), UNSEEN)
    return dataclasses.replace(
        worlds, features=worlds.seen, base=base, reward=torch.full_like(worlds.reward, float("nan"))
    )


def rehearse(worlds: Worlds, *, seed: int = 0, steps: int = STEPS) -> tuple[Worlds, Float[Tensor, "W C d"]]:
    """The twin, and every arm's weights in it. Neither knows the truth."""
    stage = twin(worlds, seed)
    return stage, train_all(stage, steps=steps, seed=seed + 7919)
