"""A language model's problem in the shape of a world: its responses as places, their hidden states as features.

One look samples K responses to each prompt and scores them beside the data's two (`diagnostics.look`). The twin is a
world of one stack: what the model itself said stands for what it would say, each sample with the same mass, and a data
response with the mass that its typicality allows.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from modeseek.advise.worlds import Worlds, fit_linear, standard
from modeseek.diagnostics.look import Look

WIDTH = 12  # directions of the hidden states that are kept: about what the worlds had
PACE = 0.05  # Adam's learning rate in the twin, the middle of the worlds'


def twin_of(look: Look) -> Worlds:
    """The world that a look shows; its `reward`, the truth, is not known."""
    P, K = look.own_logp.shape
    if look.told_logp.shape[1] != 2:
        raise ValueError(f"data: found {look.told_logp.shape[1]} responses to a prompt, expected pairs")
    A = K + 2
    seen = spanned(np.concatenate([look.own_traits, look.told_traits], 1)).view(P, A, -1)
    base = torch.cat([torch.zeros(P, K, dtype=torch.float64), -atypical(look)], 1)
    first = torch.arange(P) * A + K
    pairs = torch.stack([first, first + 1], 1)[None]
    count = torch.tensor([P])
    given = look.own_reward is not None
    if look.own_reward is not None and look.told_reward is not None:
        score = torch.from_numpy(np.concatenate([look.own_reward, look.told_reward], 1)).double()
        score = (score - score.mean(1, keepdim=True)).view(1, -1)  # what a prompt is worth is no one's merit
    else:
        score = fit_linear(seen.view(1, P * A, -1), pairs, count)
    return Worlds(
        features=seen[None],
        seen=seen[None],
        base=base[None],
        reward=torch.full((1, P * A), float("nan"), dtype=torch.float64),
        proxy=standard(score),
        given=torch.tensor([given]),
        pairs=pairs,
        count=count,
        pace=torch.tensor([PACE], dtype=torch.float64),
    )


def atypical(look: Look) -> Float[Tensor, "P 2"]:
    """By how many nats a data response counts less than an own sample: z^2 / 2, z by how many standard deviations its
    nats a token lie below the model's own. Whole responses' log-probabilities would say this of their length."""
    own, told = look.own_mean_logp, look.told_mean_logp
    spread = np.sqrt(own.var(1, ddof=1).mean()) + 1e-6  # pooled: few samples to a prompt
    z = np.clip((own.mean(1, keepdims=True) - told) / spread, 0, None)
    return torch.from_numpy(np.minimum(z, 8.0) ** 2 / 2).double()


def spanned(*features: Float[np.ndarray, "_ _ H"], width: int = WIDTH) -> Float[Tensor, "M e"]:
    """The strongest directions in which responses to the same prompt differ, each with variance 1; of one or several
    [P, A, H], one behind the other."""
    centred = [x - x.mean(1, keepdims=True) for x in features]  # a prompt's own part is the same for all its responses
    flat = torch.from_numpy(np.concatenate([x.reshape(-1, x.shape[-1]) for x in centred])).double()
    flat = flat / flat.square().mean(0).sqrt().clamp(min=1e-9)
    u, s, _ = torch.linalg.svd(flat, full_matrices=False)
    k = max(1, min(width, int((s > 1e-6 * s[0]).sum())))
    return u[:, :k] * len(flat) ** 0.5
