"""Policies that read prompts in other tokens than the one they are compared with: another tokenizer, template, prefix.

Each is asked in its own tokens and scored by its own text. Then its answers are put to the prompts as the first
baseline reads them, which is how answers to the same prompts are told. No KL is known between two vocabularies, and
lengths that are compared are in characters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from modeseek.batch import Batch
from modeseek.rewards import Decoder, Prompts
from modeseek.rewards.text import replies
from modeseek.sources import Data

CHARACTERS = "characters"  # column: the length of each response as text


@dataclass(frozen=True, kw_only=True)
class Side:
    """The prompts in a policy's own tokens, as text, and how its answers are read."""

    prompts: Data
    texts: Prompts
    decoder: Decoder


def as_asked(answers: Sequence[Batch], prompts: Data) -> Iterator[Batch]:
    """The same answers, in order, to the prompts as `prompts` writes them."""
    first = 0
    for batch in answers:
        told = prompts.prompts(torch.arange(first, first + len(batch)))
        yield dataclasses.replace(batch, prompt=told.prompt, prompt_mask=told.prompt_mask)
        first += len(batch)


def measured(answers: Sequence[Batch], decoder: Decoder) -> Iterator[Batch]:
    """The answers with their length in characters."""
    for batch in answers:
        rows = [[len(one.response) if one else 0 for one in group] for group in replies(batch, decoder)]
        yield batch.fill(**{CHARACTERS: torch.tensor(rows, dtype=torch.float32).view(batch.fresh.shape)})
