"""The one shape of the library: P prompts, K responses to each, T tokens in each response.

A preference pair is a group with K = 2, best first. A bandit is the case T = 1: its context is a one-token
prompt, its action a one-token response. Whatever the library learns about a batch is a column of it, shaped
`[P, K, T]`, `[P, K]` or `[P]`; nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

P_ = Float[Tensor, " P"]
PS = Int[Tensor, "P S"]  # prompts, S tokens wide
MaskPS = Bool[Tensor, "P S"]
PK = Float[Tensor, "P K"]
PKT = Float[Tensor, "P K T"]
MaskPK = Bool[Tensor, "P K"]
MaskPKT = Bool[Tensor, "P K T"]

COLUMNS = {
    "row": "[P] the row of the data that the prompt came from",
    "place": "[P] its place among the prompts that the round drew",
    "reward": "[P, K] what a reward said of the whole response, after any shaping",
    "raw_reward": "[P, K] the reward as it was given, before any stage shaped it",
    "uncharged": "[P, K] the reward before the KL was charged, with what earlier stages made of it",
    "tied": "[P] True where all rewards of the group were the same before the KL was charged",
    "win_rate": "[P, K] how often the response beats another of the policy's",
    "advantage": "[P, K, T] reward less a baseline",
    "returns": "[P, K, T] what the critic is asked to predict",
    "token_reward": "[P, K, T] reward paid at each token",
    "baseline": "[P] what the score-function KL term subtracts from its cost",
    "old_logp": "[P, K, T] log pi(y_t) of the policy that wrote the response, in nats",
    "sampler_logp": "[P, K, T] log pi(y_t) as whoever sampled the response said it, where recall says it again",
    "old_value": "[P, K, T] what the critic said when the response was written",
    "last_value": "[P, K] what the critic said of the state after the response's last token",
    "ref_logp": "[P, K, T] log pi_ref(y_t) of the frozen reference, in nats",
    "finished": "[P, K] True where the response ended by itself, not by the length limit",
    "label": "[P, K] True where an unpaired response was called good",
    "margin": "[P] by how much the first response is known to be better than the second",
    "z0": "[P] KTO's estimate of KL(pi || pi_ref), the same for a whole minibatch",
    "midpoint": "[P] BCO's running midpoint of the log-ratios of good and of bad responses, in nats",
    "ranked_margin": "[P] AOT's reference margin of the same rank in the minibatch, in nats",
    "partner": "[P, K] unpaired AOT's log-ratio of the same rank on the other side, in nats",
    "token_share": "[P] prompts per response token of the minibatch: makes a token sum a token mean",
}


class NotFilled(KeyError, ValueError):
    """A column is read that no stage has filled: a ValueError too, since mostly a config's list of stages lacks one."""

    def __init__(self, column: str, reader: str = ""):
        super().__init__(column, reader)
        self.column, self.reader = column, reader

    def __str__(self) -> str:
        what = f"{self.column}, {COLUMNS.get(self.column, 'not a column')}"
        if not self.reader:
            return f"no stage has filled {what}"
        return f"{self.reader} reads {what}, which no stage has filled"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Prompts, their responses, and the columns that the stages have filled so far.

    Nothing here carries a gradient, and nothing changes in place: a stage returns a new Batch. Where the order
    in a group means something it is best first. Masks come from lengths, never from token ids: a pad token may
    be the end token. What stands where `mask` or `present` is False is never read.
    """

    prompt: Int[Tensor, "P S"]  # token ids, left-padded
    prompt_mask: Bool[Tensor, "P S"]
    response: Int[Tensor, "P K T"]  # token ids, right-padded, the end token included
    mask: MaskPKT  # True where a response token counts
    fresh: MaskPK  # True where the policy being trained wrote the response
    present: MaskPK  # False: the group has fewer than K responses and this place is empty
    weight: P_  # how much the prompt counts
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[Sequence[int]]],
        *,
        pad: int = 0,
        weight: Sequence[float] | None = None,
        **columns: Tensor,
    ) -> Batch:
        """A Batch from token ids: `prompts[p]` and `responses[p][k]`. Groups may differ in size; none is fresh."""
        P, K = len(prompts), max((len(group) for group in responses), default=0)
        S = max((len(p) for p in prompts), default=0)
        T = max((len(r) for group in responses for r in group), default=0)
        prompt, response = torch.full((P, S), pad), torch.full((P, K, T), pad)
        prompt_mask, mask = torch.zeros(P, S, dtype=torch.bool), torch.zeros(P, K, T, dtype=torch.bool)
        present = torch.zeros(P, K, dtype=torch.bool)
        for p, (ids, group) in enumerate(zip(prompts, responses, strict=True)):
            prompt[p, S - len(ids) :] = torch.tensor(ids, dtype=torch.long)
            prompt_mask[p, S - len(ids) :] = True
            present[p, : len(group)] = True
            for k, tokens in enumerate(group):
                response[p, k, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
                mask[p, k, : len(tokens)] = True
        return Batch(
            prompt=prompt,
            prompt_mask=prompt_mask,
            response=response,
            mask=mask,
            fresh=torch.zeros(P, K, dtype=torch.bool),
            present=present,
            weight=torch.ones(P) if weight is None else torch.tensor(weight, dtype=torch.float32),
            columns=columns,
        )

    @staticmethod
    def own(
        prompt: Int[Tensor, "P S"],
        prompt_mask: Bool[Tensor, "P S"],
        response: Int[Tensor, "P K T"],
        mask: MaskPKT,
        **columns: Tensor,
    ) -> Batch:
        """What a policy has just written: all of it fresh and present, every prompt of weight one."""
        P, K, _ = response.shape
        everywhere = torch.ones(P, K, dtype=torch.bool, device=response.device)
        return Batch(
            prompt=prompt,
            prompt_mask=prompt_mask,
            response=response,
            mask=mask,
            fresh=everywhere,
            present=everywhere,
            weight=torch.ones(P, device=response.device),
            columns=columns,
        )

    def __len__(self) -> int:
        return len(self.prompt)

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.columns:
            raise NotFilled(name)
        return self.columns[name]

    def fill(self, **columns: Tensor) -> Batch:
        """The same batch with these columns added or replaced."""
        return dataclasses.replace(self, columns={**self.columns, **columns})

    def prompts(self, index: Int[Tensor, " p"] | Bool[Tensor, " P"] | slice) -> Batch:
        """Some of the prompts, each with its whole group: a group is never split."""
        return self._map(lambda x: x[index], lambda x: x[index])

    def split(self, size: int | None) -> list[Batch]:
        """Consecutive parts of at most `size` prompts each; the whole batch when `size` is None."""
        size = size or max(len(self), 1)
        return [self.prompts(slice(i, i + size)) for i in range(0, len(self), size)]

    def take(self, at: Int[Tensor, "P k"]) -> Batch:
        """For each prompt, the responses at these places of its group, in this order."""
        row = torch.arange(len(self), device=at.device)[:, None]
        return self._map(lambda x: x, lambda x: x[row, at])

    def trim(self) -> Batch:
        """Without the columns of padding that no row uses."""
        S, T = self.prompt.shape[1], self.response.shape[2]
        start = int(self.prompt_mask.any(0).int().argmax()) if self.prompt_mask.any() else S
        stop = T - int(self.mask.flatten(0, 1).any(0).flip(0).int().argmax()) if self.mask.any() else 0
        if start == 0 and stop == T:
            return self
        cut = lambda x: x[:, :, :stop] if x.ndim == 3 else x
        return dataclasses.replace(
            self._map(lambda x: x, cut),
            prompt=self.prompt[:, start:],
            prompt_mask=self.prompt_mask[:, start:],
        )

    def beside(self, other: Batch) -> Batch:
        """These prompts' groups with the other batch's responses to the same prompts behind them.

        A float column that only one of the two has is NaN in the other's places: unknown, and loud when read.
        """
        T = max(self.response.shape[2], other.response.shape[2])
        wide = lambda x: F.pad(x, (0, T - x.shape[2])) if x.ndim == 3 else x
        join = lambda a, b: torch.cat([wide(a), wide(b)], 1)
        columns = {name: x for name, x in self.columns.items() if x.ndim == 1}
        for name in {**self.columns, **other.columns}:
            a, b = self.columns.get(name), other.columns.get(name)
            if a is not None and b is not None and a.ndim > 1:
                columns[name] = join(a, b)
            elif a is not None and a.ndim > 1 and a.is_floating_point():
                columns[name] = join(a, _unknown(other, a, T))
            elif b is not None and b.ndim > 1 and b.is_floating_point():
                columns[name] = join(_unknown(self, b, T), b)
        return dataclasses.replace(
            self,
            response=join(self.response, other.response),
            mask=join(self.mask, other.mask),
            fresh=join(self.fresh, other.fresh),
            present=join(self.present, other.present),
            columns=columns,
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return self._map(lambda x: x.to(device), lambda x: x.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the batch by name, columns as `columns.<name>`: what a checkpoint stores."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "columns"}
        return own | {f"columns.{name}": x for name, x in self.columns.items()}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> Batch:
        """The inverse of `tensors`."""
        own = {name: x for name, x in tensors.items() if not name.startswith("columns.")}
        columns = {n.removeprefix("columns."): x for n, x in tensors.items() if n.startswith("columns.")}
        return Batch(**own, columns=columns)

    def _map(self, on_prompts: Callable[[Tensor], Tensor], on_responses: Callable[[Tensor], Tensor]) -> Batch:
        columns = {n: on_responses(x) if x.ndim > 1 else on_prompts(x) for n, x in self.columns.items()}
        return Batch(
            prompt=on_prompts(self.prompt),
            prompt_mask=on_prompts(self.prompt_mask),
            response=on_responses(self.response),
            mask=on_responses(self.mask),
            fresh=on_responses(self.fresh),
            present=on_responses(self.present),
            weight=on_prompts(self.weight),
            columns=columns,
        )


def _unknown(batch: Batch, like: Tensor, T: int) -> Tensor:
    shape = (*batch.fresh.shape, T) if like.ndim == 3 else batch.fresh.shape
    return like.new_full(shape, float("nan"))
