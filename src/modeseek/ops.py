"""Arithmetic that objectives, stages and diagnostics share. Pure, shape in, shape out."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def clean(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Zero where masked, in value and in gradient: a NaN there must not reach a product or an exp."""
    return x.masked_fill(~mask, 0.0)


def seq(x: Float[Tensor, "P K T"], mask: Bool[Tensor, "P K T"]) -> Float[Tensor, "P K"]:
    """Sum over a response's tokens. Masked places are dropped, not multiplied: they may be NaN."""
    return x.masked_fill(~mask, 0.0).sum(-1)


def seq_mean(x: Float[Tensor, "P K T"], mask: Bool[Tensor, "P K T"]) -> Float[Tensor, "P K"]:
    """Mean over a response's tokens; zero for an empty response."""
    return seq(x, mask) / mask.sum(-1).clamp(min=1)


def present_mean(x: Float[Tensor, "P K"], present: Bool[Tensor, "P K"]) -> Float[Tensor, " P"]:
    """Mean over the responses that a group has; zero for an empty group."""
    return x.masked_fill(~present, 0.0).sum(-1) / present.sum(-1).clamp(min=1)


def masked_mean(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], dim: int | None = None
) -> Float[Tensor, "..."]:
    """Mean of the unmasked places, over all of them or along one axis; zero where there are none."""
    kept = x.masked_fill(~mask, 0.0)
    if dim is None:
        return kept.sum() / mask.sum().clamp(min=1)
    return kept.sum(dim) / mask.sum(dim).clamp(min=1)


def masked_var(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], unbiased: bool = True) -> Float[Tensor, ""]:
    """Variance of the unmasked places. `unbiased` divides by their number less one."""
    centred = (x - masked_mean(x, mask)).masked_fill(~mask, 0.0)
    return centred.square().sum() / (mask.sum() - int(unbiased)).clamp(min=1)


def masked_whiten(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], shift_mean: bool = True, eps: float = 1e-8
) -> Float[Tensor, "*shape"]:
    """Scale to unit (unbiased) variance, by default around zero; `shift_mean=False` keeps the mean.

    Masked places come out as zero.
    """
    mean = masked_mean(x, mask)
    white = (x - mean) * torch.rsqrt(masked_var(x, mask) + eps)
    return (white if shift_mean else white + mean).masked_fill(~mask, 0.0)


def in_order(margin: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """1 where a margin is positive, 1/2 where it is 0, as before any step, else 0."""
    return ((margin > 0).to(margin.dtype) + (margin >= 0).to(margin.dtype)) / 2


def kl_k1(logp: Float[Tensor, "*s"], ref_logp: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """log pi - log pi_ref. Unbiased for KL(pi || pi_ref) on samples of pi; may be negative.

    Differentiated on samples it has zero expected gradient: use it as a value, never as a loss.
    Names k1, k2, k3: http://joschu.net/blog/kl-approx.html.
    """
    return logp - ref_logp


def kl_k2(logp: Float[Tensor, "*s"], ref_logp: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """(log pi - log pi_ref)^2 / 2. Biased as a value, but its gradient on a whole response is that of the KL."""
    return (logp - ref_logp).square() / 2


def kl_k3(logp: Float[Tensor, "*s"], ref_logp: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """r - 1 - log r with r = pi_ref / pi. Unbiased, never negative, heavy-tailed where pi is far above pi_ref.

    Its gradient on samples of pi is that of the forward KL(pi_ref || pi).
    """
    log_ratio = ref_logp - logp
    return torch.expm1(log_ratio) - log_ratio


def token_logp(logits: Float[Tensor, "*shape V"], tokens: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log-probability of each token, in nats, with a log-sum-exp in at least float32."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide.gather(-1, tokens[..., None]).squeeze(-1) - wide.logsumexp(-1)
