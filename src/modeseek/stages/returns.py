"""Sums over the tokens to come: returns, advantages, and the weights that correct them. Pure."""

import torch
from jaxtyping import Float
from torch import Tensor

from modeseek.batch import PK, PKT, MaskPKT
from modeseek.ops import clean


def discounted_returns(reward: PKT, discount: PKT, last_value: PK, mask: MaskPKT) -> PKT:
    """G_t = r_t + discount_t G_{t+1}, with `last_value` after the last token. Masked tokens are stepped over."""
    following, out = last_value, []
    for t in reversed(range(reward.shape[2])):
        now = reward[..., t] + discount[..., t] * following
        following = torch.where(mask[..., t], now, following)
        out.append(following)
    return clean(torch.stack(out[::-1], -1), mask)


def generalised_advantage(
    reward: PKT, value: PKT, discount: PKT, lam: float, last_value: PK, mask: MaskPKT
) -> Float[Tensor, "P K T"]:
    """A_t = d_t + discount_t lam A_{t+1}, d_t = r_t + discount_t v_{t+1} - v_t. Masked tokens are stepped over.

    Schulman et al. 2015, https://arxiv.org/abs/1506.02438, eq. 16; `last_value` is the value after the last token.
    """
    after, later, out = last_value, torch.zeros_like(last_value), []
    for t in reversed(range(reward.shape[2])):
        error = reward[..., t] + discount[..., t] * after - value[..., t]
        later = torch.where(mask[..., t], error + discount[..., t] * lam * later, later)
        after = torch.where(mask[..., t], value[..., t], after)
        out.append(later)
    return clean(torch.stack(out[::-1], -1), mask)


def truncated_ratio(logp: PKT, sampler_logp: PKT, mask: MaskPKT, low: float, high: float) -> tuple[PKT, MaskPKT]:
    """pi / pi_sampler of each token kept between `low` and `high`, and where it was not; 1 where masked."""
    ratio = clean(logp - sampler_logp, mask).exp()
    return ratio.clamp(low, high), ((ratio < low) | (ratio > high)) & mask


def high_entropy_mask(entropy: PKT, mask: MaskPKT, quantile: float) -> MaskPKT:
    """The tokens whose entropy is at or above that quantile of all of them."""
    if not mask.any():
        return mask
    return mask & (clean(entropy, mask) >= torch.quantile(entropy[mask], quantile))
