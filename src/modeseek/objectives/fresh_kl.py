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

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from modeseek.batch import P_, PKT, MaskPK, MaskPKT
from modeseek.objectives.base import Axes, Loss, apply, one_of
from modeseek.ops import clean, present_mean, seq

KLBaseline = Literal["none", "leave_one_out", "running_mean"]
KLEstimator = Literal["sample", "rao_blackwell"]


@dataclass(frozen=True)
class FreshKL:
    """What HyPO and WithKL are beside their `inner` objective on pairs."""

    kl: float = field(default=0.01, kw_only=True)  # weight of KL(pi || pi_ref); search it on a log scale
    kl_baseline: KLBaseline = field(default="none", kw_only=True)  # subtracted from a sample's log-ratio
    # from sampled tokens, or summed over the vocabulary at each of them
    kl_estimator: KLEstimator = field(default="sample", kw_only=True)

    axes: ClassVar[Axes] = Axes(on_policy=True, negative_gradient="always", claimed_kl="mode-seeking")
    source: ClassVar[str] = "https://arxiv.org/abs/2406.01462"
    max_age: ClassVar[int] = 0

    def __post_init__(self) -> None:
        one_of("kl_baseline", self.kl_baseline, dict.fromkeys(get_args(KLBaseline)))
        one_of("kl_estimator", self.kl_estimator, dict.fromkeys(get_args(KLEstimator)))
        if self.kl_estimator == "rao_blackwell" and self.kl_baseline == "running_mean":
            raise ValueError(
                "kl_baseline: running_mean is of whole responses, for kl_estimator sample; "
                "with rao_blackwell write none or leave_one_out"
            )

    @property
    def unread(self) -> frozenset[str]:
        return frozenset() if self.kl_estimator == "rao_blackwell" else frozenset({"kl"})

    def __call__(
        self,
        logp: PKT,
        ref_logp: PKT,
        mask: MaskPKT,
        fresh: MaskPK,
        present: MaskPK,
        baseline: P_ | None = None,
        kl: PKT | None = None,
        **rest: Tensor,
    ) -> Loss:
        inner: Any = self.inner  # type: ignore[attr-defined]
        pairs = apply(inner, {"logp": logp, "ref_logp": ref_logp, "mask": mask, **rest})
        own = fresh & present
        if not own.any(-1).all():
            raise ValueError(f"{type(self).__name__} reads fresh samples of every prompt: use the hybrid source")
        if self.kl_estimator == "rao_blackwell":
            pull, estimate = rao_blackwell(logp, kl, mask, own, self.kl_baseline)
        else:
            pull, estimate = fresh_kl(logp, ref_logp, mask, own, self.kl_baseline, baseline)
        return Loss(pairs.per_prompt + self.kl * pull, pairs.metrics | {"kl": estimate})


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
