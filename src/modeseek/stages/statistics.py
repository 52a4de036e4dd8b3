"""Stages that fill what spans prompts: under `before` they see the whole minibatch and the weights of now."""

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from modeseek.batch import Batch
from modeseek.ops import seq, seq_mean
from modeseek.policies.base import Policy
from modeseek.stages.base import Stage


@dataclass
class RunningKL:
    """Fill `baseline` with the running mean of the fresh samples' log-ratio to the reference, then update it."""

    decay: float = 0.9
    mean: float = field(default=0.0, init=False)
    seen: int = field(default=0, init=False)

    def __call__(self, batch: Batch) -> Batch:
        own = batch.fresh & batch.present
        filled = batch.fill(baseline=batch.weight.new_full((len(batch),), self.mean))
        if own.any():
            now = seq(batch["old_logp"] - batch["ref_logp"], batch.mask)[own].mean().item()
            self.mean = now if not self.seen else self.decay * self.mean + (1 - self.decay) * now
            self.seen += 1
        return filled

    def state(self) -> dict[str, Any]:
        return {"mean": self.mean, "seen": self.seen}

    def restore(self, state: dict[str, Any]) -> None:
        self.mean, self.seen = state["mean"], state["seen"]


running_kl = RunningKL


@dataclass
class MismatchedKL:
    """Fill `z0` for KTO: the mean log-ratio of each prompt with its neighbour's responses, at least zero.

    It needs a neighbour, so minibatches of one prompt are refused; a single one left over at the end of an epoch
    takes the estimate before it.
    """

    policy: Policy
    reference: Policy
    last: float | None = field(default=None, init=False)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        if len(batch) > 1:
            there, mask = batch.present.roll(1, 0), batch.mask.roll(1, 0)
            wrong = Batch.own(batch.prompt, batch.prompt_mask, batch.response.roll(1, 0), mask)
            log_ratio = seq(self.policy.logp(wrong) - self.reference.logp(wrong), mask)
            self.last = log_ratio[there].mean().clamp(min=0).item()
        elif self.last is None:
            raise ValueError("minibatch: 1; KTO estimates its KL on other prompts' responses, write at least 2")
        return batch.fill(z0=_everywhere(batch, self.last))

    def state(self) -> dict[str, Any]:
        return {"last": self.last}

    def restore(self, state: dict[str, Any]) -> None:
        self.last = state["last"]


mismatched_kl = MismatchedKL


@dataclass
class RunningMidpoint:
    """Fill `midpoint` for BCO: half-way between the running mean log-ratios of good and of bad responses."""

    policy: Policy
    decay: float = 0.9
    good: float | None = field(default=None, init=False)
    bad: float | None = field(default=None, init=False)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        log_ratio = seq(self.policy.logp(batch) - batch["ref_logp"], batch.mask)
        self.good = self._moved(self.good, log_ratio[batch.present & batch["label"]])
        self.bad = self._moved(self.bad, log_ratio[batch.present & ~batch["label"]])
        known = [mean for mean in (self.good, self.bad) if mean is not None]
        return batch.fill(midpoint=_everywhere(batch, sum(known) / max(len(known), 1)))

    def _moved(self, mean: float | None, seen: Tensor) -> float | None:
        if not len(seen):
            return mean
        now = seen.mean().item()
        return now if mean is None else self.decay * mean + (1 - self.decay) * now

    def state(self) -> dict[str, Any]:
        return {"good": self.good, "bad": self.bad}

    def restore(self, state: dict[str, Any]) -> None:
        self.good, self.bad = state["good"], state["bad"]


running_midpoint = RunningMidpoint


def share_tokens(batch: Batch) -> Batch:
    """Fill `token_share`, so that the loop's mean over prompts becomes a mean over the minibatch's tokens.

    The loop divides by the prompts drawn: what an earlier stage dropped still counts, as tokens of loss zero.
    """
    tokens = (batch.mask & batch.present[..., None]).sum((1, 2))  # [P]
    share = batch.weight.sum() / (batch.weight * tokens).sum().clamp(min=1e-12)
    return batch.fill(token_share=share.expand(len(batch)).clone())


def rank_margins(policy: Policy) -> Stage:
    """Fill `ranked_margin` for AOT: the reference's margin of the rank that the policy's margin has."""

    @torch.no_grad()
    def stage(batch: Batch) -> Batch:
        now, told = _margin(policy.logp(batch), batch), _margin(batch["ref_logp"], batch)
        return batch.fill(ranked_margin=told.sort().values[_rank(now)])

    return stage


def rank_log_ratios(policy: Policy) -> Stage:
    """Fill `partner` for unpaired AOT: the rejected log-ratio of the chosen one's rank, and the other way round."""

    @torch.no_grad()
    def stage(batch: Batch) -> Batch:
        log_ratio = seq(policy.logp(batch) - batch["ref_logp"], batch.mask)
        won, lost = log_ratio[:, 0], log_ratio[:, 1]
        partner = torch.zeros_like(log_ratio)
        partner[:, 0], partner[:, 1] = lost.sort().values[_rank(won)], won.sort().values[_rank(lost)]
        return batch.fill(partner=partner)

    return stage


def on_policy_weight(policy: Any, alignment: Literal["sampled", "none"] = "sampled") -> Stage:
    """Weigh each prompt by how likely its pair is under the policy of now (WPO), for any objective on pairs.

    Zhou et al. 2024, https://arxiv.org/abs/2406.11827, eq. 3 to 5: the product over the pair of exp(mean log pi(y_t)).
    `sampled` divides each token's probability by its expectation under the policy, sum_v pi(v)^2, so that the policy's
    own responses weigh about 1; the weight is at most 1, as in the authors' code.
    """
    if alignment == "sampled" and not hasattr(policy, "collision"):
        raise ValueError(
            f"alignment: sampled reads `collision`, which a {type(policy).__name__} cannot say; write none"
        )

    @torch.no_grad()
    def stage(batch: Batch) -> Batch:
        logp = policy.logp(batch)
        if alignment == "sampled":
            logp = logp - policy.collision(batch)
        weight = seq_mean(logp, batch.mask)[:, :2].sum(-1).exp().clamp(max=1.0)
        return dataclasses.replace(batch, weight=batch.weight * weight.to(batch.weight.dtype))

    return stage


def reweigh(policy: Policy, correction: Literal["clip", "ratio"] = "clip") -> Stage:
    """Weigh each prompt by pi / pi_old of its own samples together: the off-policy correction of any objective.

    A group is drawn from the product of its responses' probabilities, so that product is what the ratio is of: `ratio`
    is unbiased whatever the loss makes of the group, as long as no stage has dropped some of its responses. `clip` lets
    it count at most 1 (truncated importance sampling): biased, and of bounded variance. Under `before`: at age 0 every
    ratio is 1.
    """

    @torch.no_grad()
    def stage(batch: Batch) -> Batch:
        own = batch.fresh & batch.present
        log_ratio = seq(policy.logp(batch) - batch["old_logp"], batch.mask).masked_fill(~own, 0.0).sum(-1)
        ratio = (log_ratio.clamp(max=0.0) if correction == "clip" else log_ratio).exp()
        return dataclasses.replace(batch, weight=batch.weight * ratio.to(batch.weight.dtype))

    return stage


@dataclass
class MovingReference:
    """Fill `ref_logp` from a reference that follows the policy (TR-DPO), instead of `refer`.

    Gorbatovski et al. 2024, https://arxiv.org/abs/2404.09656, eq. 8 and 9: every `every` steps the reference moves by
    `mix` towards the policy; mix 1 is the hard update. Under `before`: it counts optimiser steps. It holds a copy of
    the policy, and the trained part of it is in the checkpoint.
    """

    policy: Any
    mix: float = 0.6
    every: int = 512
    steps: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not 0 < self.mix <= 1 or self.every < 1:
            raise ValueError(f"mix: {self.mix}, every: {self.every}; expected 0 < mix <= 1 and every at least 1")
        self._reference: nn.Module = copy.deepcopy(self.policy).requires_grad_(False)
        self._trained = [name for name, x in self.policy.named_parameters() if x.requires_grad]

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        if self.steps and self.steps % self.every == 0:
            now, then = dict(self.policy.named_parameters()), dict(self._reference.named_parameters())
            for name in self._trained:
                then[name].lerp_(now[name], self.mix)
        self.steps += 1
        return batch.fill(ref_logp=self._reference.logp(batch))  # type: ignore[operator]

    def state(self) -> dict[str, Any]:
        held = dict(self._reference.named_parameters())
        return {"steps": self.steps, "reference": {name: held[name].clone() for name in self._trained}}

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        held = dict(self._reference.named_parameters())
        for name in self._trained:
            held[name].copy_(state["reference"][name])


moving_reference = MovingReference


def _margin(logp: Tensor, batch: Batch) -> Tensor:
    total = seq(logp, batch.mask)
    return total[:, 0] - total[:, 1]


def _rank(x: Tensor) -> Tensor:
    return x.argsort(stable=True).argsort(stable=True)


def _everywhere(batch: Batch, value: float | None) -> Tensor:
    return batch.weight.new_full((len(batch),), value or 0.0)
