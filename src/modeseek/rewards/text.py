"""A batch as the text that rewards read: each response with its prompt, and whether it ended by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from modeseek.batch import PK, Batch


@runtime_checkable
class Turn(Protocol):
    """One message of a conversation."""

    @property
    def role(self) -> str: ...

    @property
    def content(self) -> str: ...


Prompt = str | Sequence[Turn]
Prompts = Callable[[Batch], Sequence[Prompt]]  # each prompt as it stood in the data, before any template


@runtime_checkable
class Decoder(Protocol):
    """Token ids to text, special tokens left out."""

    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True)
class Reply:
    """One response as a reward reads it. A response cut off at the length limit is not `finished`."""

    prompt: str
    response: str
    finished: bool
    tokens: int  # the end token counts


def replies(batch: Batch, decoder: Decoder, prompts: Prompts | None = None) -> list[list[Reply | None]]:
    """Every response of every group, None where a group has none. Without `prompts` they are decoded as well."""
    finished, present, mask = ends(batch), batch.present.tolist(), batch.mask.cpu()
    said = (
        [flatten(one) for one in prompts(batch)] if prompts else [prompt_text(batch, p, decoder) for p in _all(batch)]
    )
    if len(said) != len(batch):
        raise ValueError(f"prompts: found {len(said)} of them, expected one for each of the batch's {len(batch)}")
    response = batch.response.cpu()
    return [
        [
            Reply(
                said[p],
                decoder.decode(response[p, k][mask[p, k]].tolist()),
                finished[p][k],
                int(mask[p, k].sum()),
            )
            if there
            else None
            for k, there in enumerate(present[p])
        ]
        for p in _all(batch)
    ]


def ends(batch: Batch) -> list[list[bool]]:
    """Whether each response ended by itself. Where nobody has filled `finished` it did: it stood so in the data."""
    return (batch["finished"] if "finished" in batch else torch.ones_like(batch.present)).tolist()


def prompt_text(batch: Batch, p: int, decoder: Decoder) -> str:
    """One prompt decoded."""
    return decoder.decode(batch.prompt[p][batch.prompt_mask[p]].tolist())


def by_tokens(known: Iterable[tuple[Iterable[int], Prompt]]) -> Prompts:
    """Finds each prompt by its tokens, so that one serves training and held-out data alike."""
    prompts = {tuple(int(i) for i in ids): prompt for ids, prompt in known}

    def find(batch: Batch) -> list[Prompt]:
        found = list[Prompt]()
        for ids, mask in zip(batch.prompt.cpu(), batch.prompt_mask.cpu(), strict=True):
            tokens = tuple(ids[mask].tolist())
            if tokens not in prompts:
                raise ValueError(f"prompts: the one of tokens {list(tokens[:8])}... is not among those given")
            found.append(prompts[tokens])
        return found

    return find


def flatten(prompt: Prompt) -> str:
    """A prompt as one text: a single user message stands alone, a conversation has the role before each turn."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].content
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in prompt)


@dataclass(frozen=True)
class TextReward:
    """A rule as a reward of whole batches. NaN where a group has no response.

    `counts` says how many responses it has read, and how many of them were cut off: those get `unfinished` where
    that is set, and are otherwise scored as they stand.
    """

    rule: Callable[[Reply], float]
    decoder: Decoder
    unfinished: float | None = None
    prompts: Prompts | None = None
    counts: Counter[str] = field(default_factory=Counter)

    def __call__(self, batch: Batch) -> PK:
        rows = replies(batch, self.decoder, self.prompts)
        self.counts.update(tally(rows))
        scores = [[float("nan") if one is None else self._worth(one) for one in group] for group in rows]
        return torch.tensor(scores, dtype=torch.float32, device=batch.response.device).view(batch.present.shape)

    def _worth(self, reply: Reply) -> float:
        if self.unfinished is not None and not reply.finished:
            return self.unfinished
        return self.rule(reply)


def tally(rows: Sequence[Sequence[Reply | None]]) -> dict[str, int]:
    """How many responses there are, and how many of them were cut off at the length limit."""
    there = [one for group in rows for one in group if one is not None]
    return {"scored": len(there), "unfinished": sum(not one.finished for one in there)}


def _all(batch: Batch) -> range:
    return range(len(batch))
