"""The pull towards the reference that HyPO takes from fresh, unlabelled samples, with its estimators.

Song et al. 2024, https://arxiv.org/abs/2406.01462, algorithm 1: the score-function gradient of KL(pi || pi_ref). Right
at temperature 1 over the whole vocabulary and on samples of the current weights alone.

When a baseline pays is a fact about the run, not a rule: at initialisation the KL is zero and leave-one-out only adds
variance; once KL^2 outgrows Var(log-ratio) / (k - 1) it removes most of it. A running mean serves both.

Rao-Blackwell sums over the vocabulary at each sampled prefix: KL = E sum_t kl_t, so the gradient is
E sum_t (grad kl_t + grad log pi(y_t) sum_{s > t} kl_s): a token's own kl needs no sample, only what it leads to does
(Amini et al. 2025, https://arxiv.org/abs/2504.10637). What it leads to is a cost like any other: without a baseline it
can spread more than a sampled log-ratio with one, so leave-one-out is taken at each place in the response.
"""

from typing import Literal

import torch

from modeseek.batch import P_, PKT, MaskPK, MaskPKT
from modeseek.ops import clean, present_mean, seq

KLBaseline = Literal["none", "leave_one_out", "running_mean"]
KLEstimator = Literal["sample", "rao_blackwell"]


def check(kl_baseline: KLBaseline, kl_estimator: KLEstimator) -> None:
    """Refuse a baseline that nothing would subtract."""
    if kl_estimator == "rao_blackwell" and kl_baseline == "running_mean":
        raise ValueError(
            "kl_baseline: running_mean is of whole responses, for kl_estimator sample; "
            "with rao_blackwell write none or leave_one_out"
        )


def fresh_kl(
    logp: PKT,
    ref_logp: PKT,
    mask: MaskPKT,
    own: MaskPK,
    kl_baseline: KLBaseline,
    baseline: P_ | None,
) -> tuple[P_, P_]:
    """What has the KL's gradient, and the KL's estimate, from the sampled log-ratios of each group's own responses."""
    # The log-ratio acts as a cost, so no gradient.
    cost = seq((logp - ref_logp).detach(), mask)
    advantage = cost - _baseline(cost, own, kl_baseline, baseline)
    return present_mean(advantage * seq(logp, mask), own), present_mean(cost, own)


def rao_blackwell(logp: PKT, kl: PKT | None, mask: MaskPKT, own: MaskPK, kl_baseline: KLBaseline) -> tuple[P_, P_]:
    """The same two from the exact `kl` at each token of each group's own responses."""
    if kl is None:
        raise ValueError("kl_estimator: rao_blackwell reads the model's exact kl per token")
    exact = clean(clean(kl, mask), own[..., None].expand(mask.shape))
    later = (exact.flip(-1).cumsum(-1).flip(-1) - exact).detach()  # what comes after a token acts as its cost
    if kl_baseline == "leave_one_out":
        later = later - _others(later, own[..., None])
    return present_mean(seq(exact + later * clean(logp, mask), mask), own), present_mean(seq(exact.detach(), mask), own)


def _baseline(cost: torch.Tensor, own: MaskPK, kind: KLBaseline, baseline: P_ | None) -> torch.Tensor:
    if kind == "none":
        return torch.zeros_like(cost)
    if kind == "running_mean":
        if baseline is None:
            raise ValueError("kl_baseline: running_mean reads `baseline`: add running_kl to the stages")
        return baseline[:, None]
    return _others(cost, own)


def _others(cost: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """For each response the mean cost of the group's others, at each place where `cost` has places."""
    count = own.sum(1, keepdim=True)
    if (count < 2).any():
        raise ValueError("kl_baseline: leave_one_out needs num_generations of at least 2")
    return (cost.masked_fill(~own, 0.0).sum(1, keepdim=True) - cost) / (count - 1)
