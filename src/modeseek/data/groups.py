"""Prompts with their responses as token ids, end to end in a ragged store that hands out Batches.

Masks come from lengths: the pad token is never looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from modeseek.batch import Batch
from modeseek.data.records import Record
from modeseek.data.template import Template

_EMPTY = np.zeros(0, np.int32)


@dataclass(frozen=True)
class Ragged:
    """Rows of tokens of any length, end to end."""

    ids: np.ndarray  # int32
    offsets: np.ndarray  # int64, one more than there are rows

    @staticmethod
    def of(rows: Sequence[np.ndarray]) -> Ragged:
        """A store of these rows."""
        offsets = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)
        return Ragged(np.concatenate([_EMPTY, *rows], dtype=np.int32), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        return self.ids[self.offsets[i] : self.offsets[i + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        return np.diff(self.offsets)

    def padded(self, rows: np.ndarray, *, left: bool) -> tuple[np.ndarray, np.ndarray]:
        """Some rows side by side, and where they are tokens."""
        starts, lengths = self.offsets[rows], self.lengths[rows]
        width = int(lengths.max(initial=0))
        place = np.arange(width)
        mask = place >= width - lengths[:, None] if left else place < lengths[:, None]
        out = np.zeros((len(rows), width), np.int64)
        first = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
        out[mask] = self.ids[first + np.arange(int(lengths.sum()))]
        return out, mask


@dataclass(frozen=True)
class Groups:
    """Prompts and their groups of responses as token ids, without padding; `prompts` makes a Batch of some.

    The column `row` of such a Batch is the place in `records`, whose `source` and `row` say where it came from.
    """

    prompt: Ragged
    response: Ragged
    first: np.ndarray  # [P + 1] where each prompt's responses begin
    finished: np.ndarray  # of each response: it ends by itself
    columns: dict[str, np.ndarray]  # of each response (reward, label) or of each prompt (margin)
    weight: np.ndarray
    records: list[Record]  # those kept, in order
    template: Template
    counts: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompt)

    def prompts(self, index: Int[Tensor, " p"] | Bool[Tensor, " P"] | slice) -> Batch:
        """Some of the prompts, each with its whole group, padded to the longest of them."""
        rows = np.arange(len(self))[index if isinstance(index, slice) else index.cpu().numpy()]
        sizes = np.diff(self.first)[rows]
        K = int(sizes.max(initial=0))
        present = np.arange(K) < sizes[:, None]  # [P, K]
        replies = (self.first[rows][:, None] + np.arange(K))[present]
        prompt, prompt_mask = self.prompt.padded(rows, left=True)
        tokens, counted = self.response.padded(replies, left=False)
        response = np.zeros((len(rows), K, tokens.shape[1]), np.int64)
        mask = np.zeros(response.shape, bool)
        response[present], mask[present] = tokens, counted
        finished = np.zeros(present.shape, bool)
        finished[present] = self.finished[replies]
        columns = {"row": torch.from_numpy(rows), "finished": torch.from_numpy(finished)}
        for name, values in self.columns.items():
            if name == "margin":
                columns[name] = torch.from_numpy(values[rows])
            else:
                empty = np.nan if values.dtype == np.float32 else False  # unknown, and loud when read
                spread = np.full(present.shape, empty, values.dtype)
                spread[present] = values[replies]
                columns[name] = torch.from_numpy(spread)
        return Batch(
            prompt=torch.from_numpy(prompt),
            prompt_mask=torch.from_numpy(prompt_mask),
            response=torch.from_numpy(response),
            mask=torch.from_numpy(mask),
            fresh=torch.zeros(present.shape, dtype=torch.bool),
            present=torch.from_numpy(present),
            weight=torch.from_numpy(self.weight[rows]),
            columns=columns,
        )

    def texts(self, i: int) -> tuple[str, list[str]]:
        """What the model sees of a prompt and of its responses, without special tokens."""
        replies = range(int(self.first[i]), int(self.first[i + 1]))
        return self.template.decode(self.prompt[i]), [self.template.decode(self.response[k]) for k in replies]

    def spans(self, i: int, k: int = 0) -> list[dict[str, Any]]:
        """The prompt and its k-th response, special tokens written out, and which of it the loss counts."""
        spans = [{"text": self.template.show(self.prompt[i]), "in_loss": False}]
        if self.first[i] + k < self.first[i + 1]:
            reply = self.response[int(self.first[i]) + k]
            whole = self.template.show(
                np.concatenate([self.prompt[i], reply])
            )  # some decoders eat the first space of a text
            joined = whole.startswith(spans[0]["text"])
            said = whole.removeprefix(spans[0]["text"]) if joined else self.template.show(reply)
            spans.append({"text": said, "in_loss": True})
        return spans
