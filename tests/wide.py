"""What the tests feed to every objective: each of them with its options, a batch with every column, a model with
every output."""

import dataclasses
import functools
import math
import typing

import torch
from torch import nn

from modeseek.batch import Batch
from modeseek.objectives import (
    APO,
    CISPO,
    CPO,
    DPO,
    EXO,
    FDPO,
    IPO,
    KTO,
    PPO,
    RWR,
    SFT,
    ActorCriticPPO,
    AnyObjective,
    ChiPO,
    HyPO,
    NegativeBoN,
    OffsetDPO,
    PolicyGradient,
    SimPO,
    WithKL,
    WithSFT,
)
from modeseek.policies.bandit import Bandit
from modeseek.stages import mismatched_kl, share_tokens

__all__ = ["DAPO", "KTO", "ActorCriticPPO", "WithValue", "kl_of_mismatched", "share_tokens"]

DAPO = functools.partial(PPO, clip_high=0.28, logp_reduction="minibatch_mean")
kl_of_mismatched = mismatched_kl

VARIANTS = [
    SFT(logp_reduction="mean"),
    SFT(logp_reduction="minibatch_mean"),
    RWR(logp_reduction="mean"),
    *(NegativeBoN(losers=which) for which in ("worst", "sum", "complement")),
    DPO(label_smoothing=0.1),
    DPO(5.0, logp_reduction="mean"),
    IPO(logp_reduction="mean"),
    SimPO(label_smoothing=0.1),
    CPO(nll_reduction="mean"),
    EXO(label_smoothing=0.2),
    APO(anchor="down"),
    ChiPO(clip=0.5),
    FDPO(divergence="alpha", alpha=1.0),
    WithSFT(SimPO(), nll_reduction="sum"),
    WithSFT(OffsetDPO()),
    HyPO(kl_baseline="leave_one_out"),
    HyPO(kl_baseline="running_mean"),
    HyPO(kl_estimator="rao_blackwell"),
    HyPO(kl_baseline="leave_one_out", kl_estimator="rao_blackwell"),
    WithKL(SimPO(), kl_baseline="leave_one_out"),
    WithKL(kl_estimator="rao_blackwell"),
    PolicyGradient(correction="ratio"),
    PolicyGradient(correction="clip"),
    PPO(kl=0.1, logp_reduction="mean"),
    PPO(clip_high=0.28, logp_reduction="group_mean"),
    PPO(logp_reduction="minibatch_mean"),
    PPO(entropy=0.1),
    PPO(kl=0.1, kl_by_ratio=True),
    ActorCriticPPO(value_clip=0.2),
    CISPO(clip=0.1, logp_reduction="minibatch_mean"),
]


def every_objective() -> list[typing.Any]:
    """Every objective of the union that reads a policy, options that change what is read included."""
    shipped = [cls() for cls in typing.get_args(AnyObjective) if cls.__name__ != "BradleyTerry"]
    return [*shipped, *VARIANTS]


LIVE = ("logp", "value", "entropy", "kl")


def everything() -> Batch:
    """Four prompts of unequal weight, groups of up to five responses of up to three tokens, every column filled.

    The model's outputs are columns as well, so that cutting the batch cuts them. Numbers come from sines, the same
    on every machine and with every version of torch.
    """
    P, K, T = 4, 5, 3
    length = torch.tensor([[3, 2, 3, 1, 2], [1, 3, 2, 2, 0], [2, 0, 1, 3, 3], [2, 3, 1, 1, 2]])
    present = torch.ones(P, K, dtype=torch.bool)
    present[1, 4] = False  # a ragged group; prompt 2 has an empty response
    mask = torch.arange(T) < length[..., None]

    def wave(phase: float, *shape: int) -> torch.Tensor:
        return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 2.39 + phase).view(shape)

    logp = -1.5 + wave(0.0, P, K, T)
    response = (torch.arange(P * K * T) % 5 + 1).view(P, K, T)
    batch = Batch(
        prompt=torch.arange(1, P + 1)[:, None],
        prompt_mask=torch.ones(P, 1, dtype=torch.bool),
        response=response,
        mask=mask,
        fresh=torch.tensor([[False, False, True, True, True]] * P),
        present=present,
        weight=torch.tensor([1.0, 2, 0.5, 3], dtype=torch.float64),
    )
    return batch.fill(
        row=torch.arange(P),
        logp=logp,
        value=wave(1.0, P, K, T),
        entropy=1 + wave(1.5, P, K, T) / 2,
        kl=1 + wave(1.7, P, K, T) / 2,
        old_logp=logp + 0.3 * wave(2.0, P, K, T),
        ref_logp=logp + wave(3.0, P, K, T),
        advantage=wave(4.0, P, K, T),
        returns=wave(5.0, P, K, T),
        old_value=wave(6.0, P, K, T),
        reward=wave(7.0, P, K),
        win_rate=0.5 + wave(8.0, P, K) / 2,
        partner=wave(9.0, P, K),
        label=wave(10.0, P, K) > 0,
        margin=wave(11.0, P).abs(),
        baseline=wave(12.0, P),
        z0=wave(13.0, P).abs(),
        midpoint=wave(14.0, P),
        ranked_margin=wave(15.0, P),
        token_share=torch.full((P,), 0.1, dtype=torch.float64),
    )


def leaves(batch: Batch, names: typing.Iterable[str] = LIVE) -> Batch:
    """The same batch whose model outputs are leaves that a gradient reaches."""
    return batch.fill(**{name: batch[name].detach().clone().requires_grad_() for name in names})


def all_logp(policy: nn.Module, batch: Batch) -> torch.Tensor:
    """log-probability of every token of the vocabulary at every place of the responses."""
    if isinstance(policy, Bandit):
        everywhere = policy.all_logp(batch.prompt)[:, None, None]
        return everywhere.expand(*batch.response.shape, everywhere.shape[-1])
    vocab = policy.model.token.num_embeddings
    one = [dataclasses.replace(batch, response=torch.full_like(batch.response, v), columns={}) for v in range(vocab)]
    T = batch.response.shape[2]
    out = []
    for t in range(T):  # the prefix stays, the token at t runs through the vocabulary
        swapped = []
        for other in one:
            response = batch.response.clone()
            response[..., t] = other.response[..., t]
            upto = batch.mask & (torch.arange(T) <= t)
            swapped.append(policy.logp(dataclasses.replace(other, response=response, mask=upto))[..., t])
        out.append(torch.stack(swapped, -1))
    return torch.stack(out, 2)  # [P, K, T, V]


class WithValue(nn.Module):
    """A policy that can say everything: with a critic (the value is the prompt's last token's alone), entropy,
    collision and, given a reference, the exact KL per token."""

    def __init__(self, policy: nn.Module, prompts: int, reference: nn.Module | None = None):
        super().__init__()
        self.policy = policy
        self.table = nn.Parameter(torch.randn(prompts, dtype=torch.float64))
        self.reference = [reference]  # in a list: no part of the model

    def logp(self, batch: Batch) -> torch.Tensor:
        return self.policy.logp(batch)

    def value(self, batch: Batch) -> torch.Tensor:
        return self.table[batch.prompt[:, -1]][:, None, None].expand(batch.response.shape)

    def entropy(self, batch: Batch) -> torch.Tensor:
        logp = all_logp(self.policy, batch)
        return -(logp.exp() * logp).sum(-1).masked_fill(~batch.mask, 0.0)

    def collision(self, batch: Batch) -> torch.Tensor:
        return (2 * all_logp(self.policy, batch)).logsumexp(-1).masked_fill(~batch.mask, 0.0)

    def kl(self, batch: Batch) -> torch.Tensor:
        logp = all_logp(self.policy, batch)
        ref = all_logp(self.reference[0] or self.policy, batch).detach()
        return (logp.exp() * (logp - ref)).sum(-1).masked_fill(~batch.mask, 0.0)

    def sample(self, *args, **kwargs) -> Batch:
        return self.policy.sample(*args, **kwargs)
