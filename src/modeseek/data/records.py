"""A row of preference data, whatever its columns were called: one prompt, its responses, what was said of them."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


class DataError(ValueError):
    """One line: the file, the row, the column, what was found, what was expected, and the fix."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `role` is system, user, assistant or tool."""

    role: str
    content: str


ROLES = {  # as they are written elsewhere
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}

Text = str | tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """One prompt and its group of responses: best first where an order is known, none where only prompts are.

    A response that is a single assistant message is kept as its text. A prompt is messages where the row gave
    turns (messages, sharegpt, HH transcripts), else the text as it stood.
    """

    prompt: Text
    responses: tuple[Text, ...] = ()
    rewards: tuple[float, ...] | None = None  # of each response, where the row rates them
    labels: tuple[bool, ...] | None = None  # of each response, where it was judged alone
    weight: float = 1.0
    margin: float | None = None  # by how much the first is better than the second
    source: str = ""  # the row's own `source` or `model`, else the file
    row: int = 0  # counted from 1, in its file
    tie: bool = False  # nobody said which response is better
    prompts_differ: bool = False  # the two sides were written to different prompts: no pair at all
    meta: Mapping[str, Any] = field(default_factory=dict)  # the columns that are not read

    def take(self, places: Sequence[int]) -> Record:
        """The record with these of its responses."""
        at = lambda values: None if values is None or not places else tuple(values[k] for k in places)
        rewards = at(self.rewards)
        margin = self.margin if len(places) == len(self.responses) else None
        if margin is None and rewards is not None and len(rewards) == 2:
            margin = rewards[0] - rewards[1]
        return replace(self, responses=at(self.responses) or (), rewards=rewards, labels=at(self.labels), margin=margin)


def text(x: Text) -> str:
    """The words alone, turns on lines of their own."""
    return x if isinstance(x, str) else "\n".join(message.content for message in x)


def normalise(prompt: Text) -> str:
    """What two prompts share that a reader would call the same: case, spacing and roles do not count."""
    return " ".join(unicodedata.normalize("NFKC", text(prompt)).casefold().split())
