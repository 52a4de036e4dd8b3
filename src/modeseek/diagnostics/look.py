"""One pass over data and model: K samples to each of N prompts, everything scored once. The sections only read it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from modeseek.batch import Batch
from modeseek.policies.base import Policy
from modeseek.policies.features import see
from modeseek.rewards import Reward
from modeseek.sources import Data

PK = Float[np.ndarray, "P K"]
PKH = Float[np.ndarray, "P K H"]
PM = Float[np.ndarray, "P m"]  # of the data's responses, which may be fewer or more than the own ones
PMH = Float[np.ndarray, "P m H"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """What the sections read. `m` data responses to a prompt (chosen and rejected, or one), K own ones.

    Log-probabilities are of whole responses, in nats; lengths in tokens, the end token included.
    """

    own_logp: PK
    told_logp: PM
    own_length: PK
    told_length: PM
    own_features: PKH
    told_features: PMH
    told_predicting: Float[np.ndarray, "P m G"]  # sums of the states that predict a response's tokens
    told_tokens: Sequence[Sequence[Sequence[int]]]  # of each prompt, of each response
    told_rare: PM  # share of a response's tokens that the model gives less than 1 in 1000
    own_ref_logp: PK | None = None  # where a reference apart from the model is given
    told_ref_logp: PM | None = None
    own_kl: PK | None = None  # exact per-token KL to the reference, summed over an own response
    own_reward: PK | None = None
    told_reward: PM | None = None
    sources: Sequence[Sequence[str]] = field(default=())  # who wrote each data response, "" where not told
    contexts: Sequence[int] | None = None  # equal numbers where prompts are equal; unset: all differ
    own_tokens: Sequence[Sequence[int]] = field(default=(), repr=False)  # the first own sample of each prompt

    @property
    def sides(self) -> tuple[str, ...]:
        """What the data responses are called."""
        return ("chosen", "rejected")[: self.told_logp.shape[1]]

    @property
    def own_mean_logp(self) -> PK:
        """Nats a token."""
        return self.own_logp / self.own_length

    @property
    def told_mean_logp(self) -> PM:
        """Nats a token."""
        return self.told_logp / self.told_length

    @property
    def own_traits(self) -> Float[np.ndarray, " *n"]:
        """Features with log-probability and length beside them."""
        return _traits(self.own_features, self.own_mean_logp, self.own_length)

    @property
    def told_traits(self) -> Float[np.ndarray, " *n"]:
        """Features with log-probability and length beside them."""
        return _traits(self.told_features, self.told_mean_logp, self.told_length)

    def __len__(self) -> int:
        return len(self.own_logp)


def look(
    policy: Policy,
    data: Data,
    *,
    samples: int,
    reference: Policy | None = None,
    reward: Reward | None = None,
    kl: Callable[[Batch], Tensor] | None = None,
    sources: Sequence[Sequence[str]] = (),
    batch_size: int = 16,
    seed: int = 0,
    tell: Callable[[str, int], None] = lambda what, prompts: None,
) -> Look:
    """Sample, score and pool. `tell` hears of every batch of prompts that is done.

    `kl` says the exact KL of the next token at each response token, where the policy can. Groups of the data must have
    one or two responses, all of one size.
    """
    if samples < 2:
        raise ValueError(f"samples: found {samples}, expected at least 2: a spread is needed")
    device = next(iter(policy.parameters())).device
    rng = Generator(device).manual_seed(seed)
    own, told, tokens, first, prompts = [], [], [], [], list[tuple[int, ...]]()
    for index in torch.arange(len(data)).split(batch_size):
        given = data.prompts(index).to(device)
        if given.response.shape[1] not in (1, 2) or not given.present.all() or not given.mask.any(-1).all():
            raise ValueError("data: found groups without a response or of unequal sizes, expected one or two in each")
        drawn = policy.sample(given.prompt, given.prompt_mask, samples, rng)
        drawn = drawn.fill(**{name: x for name, x in given.columns.items() if x.ndim == 1})
        tell("sampled", len(index))
        own.append(_scored(policy, drawn, reference, reward, kl))
        told.append(_scored(policy, given, reference, reward, None))
        tokens += [
            [given.response[p, k][given.mask[p, k]].tolist() for k in range(given.response.shape[1])]
            for p in range(len(given))
        ]
        first += [ids[real].tolist() for ids, real in zip(drawn.response[:, 0], drawn.mask[:, 0], strict=True)]
        prompts += [
            tuple(ids[real].tolist()) for ids, real in zip(given.prompt.cpu(), given.prompt_mask.cpu(), strict=True)
        ]
        tell("scored", len(index))
    seen = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    join: Any = lambda parts, name: None if parts[0][name] is None else np.concatenate([x[name] for x in parts])
    names = ("logp", "length", "features", "ref_logp", "reward")
    columns = {f"own_{name}": join(own, name) for name in names} | {f"told_{name}": join(told, name) for name in names}
    return Look(
        **columns,
        own_kl=join(own, "kl"),
        told_predicting=join(told, "predicting"),
        told_rare=join(told, "rare"),
        told_tokens=tokens,
        sources=sources,
        own_tokens=first,
        contexts=[seen[prompt] for prompt in prompts],
    )


@torch.no_grad()
def _scored(
    policy: Policy,
    batch: Batch,
    reference: Policy | None,
    reward: Reward | None,
    kl: Callable[[Batch], Tensor] | None,
) -> dict[str, np.ndarray | None]:
    seen = see(policy, batch)
    total = lambda x: _numpy(x.double().masked_fill(~batch.mask, 0.0).sum(-1))
    length = _numpy(batch.mask.sum(-1))
    worth = None if reward is None else _numpy(reward(batch))
    if worth is not None and not np.isfinite(worth).all():
        raise ValueError(f"reward: found NaN or infinity for {(~np.isfinite(worth)).sum()} responses")
    return {
        "logp": total(seen.logp),
        "length": length,
        "features": _numpy(seen.features),
        "predicting": _numpy(seen.predicting),
        "rare": total((seen.logp < np.log(1e-3)).float()) / length,
        "ref_logp": None if reference is None else total(reference.logp(batch)),
        "kl": None if kl is None else total(kl(batch)),
        "reward": worth,
    }


def _numpy(x: Tensor) -> np.ndarray:
    return x.detach().double().cpu().numpy()


def _traits(features: PKH, logp: PK, length: PK) -> Float[np.ndarray, "P K G"]:
    return np.concatenate([features, logp[..., None], np.log(length)[..., None]], -1)
