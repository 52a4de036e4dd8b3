"""A Batch as one packed row: every prompt once, its responses behind it, no padding."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from modeseek.batch import Batch

FEW = 0.9  # of a row's tokens: where more are read, leaving out the others gives nothing


@dataclass(frozen=True)
class Segment:
    """A prompt and its responses, lengths in tokens: they stand side by side in the row."""

    start: int
    prompt: int
    responses: tuple[int, ...]  # the empty ones left out

    @property
    def stop(self) -> int:
        return self.start + self.prompt + sum(self.responses)


@dataclass(frozen=True)
class Row:
    """The packed row and the way back. A response continues its prompt's positions and sees its prompt and itself.

    Predicted tokens stand in the order of the batch's own `[P, K, T]`, so that `mask` scatters them back.
    """

    tokens: Int[Tensor, " L"]
    positions: Int[Tensor, " L"]
    segments: tuple[Segment, ...]
    before: Int[Tensor, " N"]  # where in the row the state that predicts each response token is
    target: Int[Tensor, " N"]
    counts: tuple[int, ...]  # response tokens of each prompt of the batch: N in all
    mask: Bool[Tensor, "P K T"]
    read: Int[Tensor, " R"] | None = None  # `before` in order and each once; None: (nearly) all of the row


def said(batch: Batch) -> Bool[Tensor, "P K T"]:
    """Where there is a response token to predict."""
    return batch.mask & batch.present[..., None]


def tokens(batch: Batch) -> Int[Tensor, " P"]:
    """How many tokens of a packed row each prompt and its group take."""
    return batch.prompt_mask.sum(1) + said(batch).flatten(1).sum(1)


def split(batch: Batch, budget: int | None) -> list[Batch]:
    """Consecutive parts of at most `budget` packed tokens each; a group is never split, so one may be larger."""
    if budget is None or len(batch) == 0:
        return [batch]
    parts, start, full = [], 0, 0
    for p, size in enumerate(tokens(batch).tolist()):
        if p > start and full + size > budget:
            parts.append(batch.prompts(slice(start, p)))
            start, full = p, 0
        full += size
    return [*parts, batch.prompts(slice(start, len(batch)))]


def pack(batch: Batch) -> Row:
    """The batch's prompts and responses in one row. A prompt with nothing to predict is left out of it."""
    P, K, T = batch.response.shape
    mask = said(batch)
    lengths = mask.sum(2)  # [P, K]
    if (mask != (torch.arange(T, device=mask.device) < lengths[..., None])).any():
        raise ValueError("a response's mask has a hole: responses are right-padded, their masks come from lengths")
    speaks = lengths.sum(1) > 0
    # Were nothing predicted at all, the prompts stay, so that the (zero) gradient still reaches the weights.
    prompt_mask = batch.prompt_mask & (speaks | ~speaks.any())[:, None]
    prompts = prompt_mask.sum(1)
    if (speaks & (prompts == 0)).any():
        raise ValueError("a prompt is empty: its response's first token has nothing to be predicted from")

    wide = torch.cat([prompt_mask, mask.flatten(1)], 1)  # [P, S + K T]
    place = (wide.flatten().cumsum(0) - 1).view_as(wide)  # where in the row each kept token stands
    own = place[:, batch.prompt.shape[1] :].view(P, K, T)
    first = torch.arange(T, device=mask.device) == 0
    last_of_prompt = wide.sum(1).cumsum(0) - lengths.sum(1) - 1
    before = torch.where(first, last_of_prompt[:, None, None], own - 1)
    at = prompts[:, None, None] + torch.arange(T, device=mask.device).expand(P, K, T)
    positions = torch.cat([prompt_mask.cumsum(1) - 1, at.flatten(1)], 1)

    segments, start = [], 0
    per_response = lengths.tolist()
    for n, group in zip(prompts.tolist(), per_response, strict=True):
        segment = Segment(start, n, tuple(k for k in group if k))
        start = segment.stop
        if segment.stop > segment.start:
            segments.append(segment)
    predicts = torch.zeros(start, dtype=torch.bool, device=mask.device)
    predicts[before[mask]] = True
    read = predicts.nonzero().squeeze(1)
    return Row(
        tokens=torch.cat([batch.prompt, batch.response.flatten(1)], 1)[wide],
        positions=positions[wide],
        segments=tuple(segments),
        before=before[mask],
        target=batch.response[mask],
        counts=tuple(sum(group) for group in per_response),
        mask=mask,
        read=read if len(read) < FEW * start else None,
    )
