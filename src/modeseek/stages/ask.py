"""Stages that ask a model or a reward about the responses."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from modeseek.batch import Batch
from modeseek.policies.base import Policy
from modeseek.policies.mixture import Mixture
from modeseek.stages.base import Reward, Stage, row_of


def score(reward: Reward) -> Stage:
    """Fill `reward` with what it says of each whole response. A NaN for a present response is an error."""

    @torch.no_grad()
    def stage(batch: Batch) -> Batch:
        said = reward(batch)
        if (said.isnan() & batch.present).any():
            p, k = (said.isnan() & batch.present).nonzero()[0].tolist()
            raise ValueError(f"the reward of prompt {row_of(batch, p)}, response {k} is NaN")
        return batch.fill(reward=said)

    return stage


def refer(reference: Policy) -> Stage:
    """Fill `ref_logp` with what the frozen reference says of each token."""
    return torch.no_grad()(lambda batch: batch.fill(ref_logp=reference.logp(batch)))


def recall(policy: Policy) -> Stage:
    """Fill `old_logp` with what the policy says of each token before it takes any step.

    What the sampler itself said of it is kept as `sampler_logp`: it may have had other kernels or a temperature.
    """

    @torch.no_grad()
    def stage(batch: Batch) -> Batch:
        if "old_logp" in batch and "sampler_logp" not in batch:
            batch = batch.fill(sampler_logp=batch["old_logp"])
        return batch.fill(old_logp=policy.logp(batch))

    return stage


def refer_old(batch: Batch) -> Batch:
    """Take the policy that the round began with as the reference: `ref_logp` is `old_logp`."""
    return batch.fill(ref_logp=batch["old_logp"])


def recall_value(policy: Any) -> Stage:
    """Fill `old_value` with what the critic says before each token, `last_value` with what it says after the last."""

    @torch.no_grad()
    def stage(batch: Batch) -> Batch:
        T = batch.response.shape[2]
        place = torch.arange(T, device=batch.response.device)
        end = (batch.mask * (place + 1)).amax(-1)  # [P, K]
        # A value is of the state before a token, so one more token asks for the state after the last; which token
        # that is makes no difference.
        more = F.pad(batch.mask, (0, 1)) | F.one_hot(end, T + 1).bool()
        longer = dataclasses.replace(batch, response=F.pad(batch.response, (0, 1)), mask=more, columns={})
        value = policy.value(longer)
        return batch.fill(old_value=value[..., :T], last_value=value.gather(-1, end[..., None]).squeeze(-1))

    return stage


def label_pairs(batch: Batch) -> Batch:
    """Call the first response of each pair good and the second bad, for objectives of single responses.

    Labels that the data gave stand: an unpaired response is not a pair's first.
    """
    if "label" in batch:
        return batch
    place = torch.arange(batch.response.shape[1], device=batch.response.device)
    return batch.fill(label=(place == 0).expand(batch.fresh.shape))


def greedy_baseline(policy: Policy, reward: Reward) -> Stage:
    """Advantage: reward less that of the policy's greedy response (ReMax, https://arxiv.org/abs/2310.10505, eq. 8)."""

    @torch.no_grad()
    def stage(batch: Batch) -> Batch:
        known = {name: x for name, x in batch.columns.items() if x.ndim == 1}
        greedy = policy.sample(batch.prompt, batch.prompt_mask, 1, Generator(), temperature=0.0)
        advantage = (batch["reward"] - reward(greedy.fill(**known))).masked_fill(~batch.present, 0.0)
        return batch.fill(advantage=advantage[..., None].expand(batch.response.shape))

    return stage


@dataclass
class Challenge:
    """Put `k` responses of the reference behind each group, not marked fresh: rivals for the policy's own."""

    reference: Policy
    k: int = 1
    seed: int = 0
    _rng: Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._rng = Generator().manual_seed(self.seed)

    def __call__(self, batch: Batch) -> Batch:
        theirs = self.reference.sample(batch.prompt, batch.prompt_mask, self.k, self._rng)
        return batch.beside(dataclasses.replace(theirs, fresh=torch.zeros_like(theirs.fresh)))

    def state(self) -> dict[str, Tensor]:
        return {"rng": self._rng.get_state()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self._rng.set_state(state["rng"])


challenge = Challenge


def challenge_mixture(policy: Policy, reference: Policy, share: float = 0.125, k: int = 1, seed: int = 0) -> Challenge:
    """`challenge` by pi^(1 - share) ref^share of each token instead of the reference: the rival of Nash-MD.

    Munos et al. 2023, https://arxiv.org/abs/2312.00886, section 5.2: share 0 is self-play, 1 the reference.
    """
    return Challenge(Mixture(policy, reference, share), k, seed)
