"""A joint budget of tokens: what of a prompt and its responses fits into it. What is cut is counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from modeseek.data.records import Record
from modeseek.data.template import Template

_DEFAULT_LENGTH = 1024
_LEAST_PROMPT = 32


class Encoded(NamedTuple):
    """A record as tokens."""

    record: Record
    prompt: np.ndarray
    replies: list[np.ndarray]
    finished: list[bool]  # of each reply: it was not cut


@dataclass(frozen=True)
class Budget:
    """Tokens that a prompt and its longest response share."""

    limit: int
    least: int  # of them that a long prompt keeps
    completion: int | None  # that a response has at most, its end included
    truncate: bool  # cut responses that do not fit

    @staticmethod
    def of(
        template: Template, max_length: int | None, completion: int | None, least: int | None, truncate: bool
    ) -> Budget:
        """The budget that was asked for, checked; what is None is as usual for the model."""
        limit = _limit(template, max_length, completion)
        least = min(_LEAST_PROMPT, limit // 2) if least is None else least
        if not 0 < least < limit:
            raise ValueError(f"min_prompt_length: found {least}, expected 1 to {limit - 1}, less than max_length")
        return Budget(limit, least, completion, truncate)

    def with_responses(self, row: Encoded, counts: Counter[str]) -> Encoded | None:
        """The row with the responses that fit beside the least of its prompt, or with cut ones; None where no group is
        left."""
        longest = self.limit - min(len(row.prompt), self.least)
        cap = min(longest, self.completion or longest)
        fits = [len(reply) <= cap for reply in row.replies]
        if all(fits):
            return row
        if self.truncate:
            counts["responses_truncated"] += len(fits) - sum(fits)
            counts["response_tokens_lost"] += sum(max(len(reply) - cap, 0) for reply in row.replies)
            return row._replace(replies=[reply[:cap] for reply in row.replies], finished=fits)
        if row.record.rewards is not None and len(fits) > 2 and sum(fits) > 1:
            counts["responses_dropped"] += len(fits) - sum(fits)
            places = [k for k, whole in enumerate(fits) if whole]
            kept = [row.replies[k] for k in places]
            return row._replace(record=row.record.take(places), replies=kept, finished=[True] * len(places))
        return None

    def with_prompt(self, row: Encoded, bos_id: int | None, counts: Counter[str]) -> Encoded:
        """The row with its prompt cut on the left to what its longest response leaves; the BOS stays."""
        prompt = row.prompt
        room = self.limit - (max((len(reply) for reply in row.replies), default=0) or self.completion or 1)
        if len(prompt) <= room:
            return row
        counts["prompts_truncated"] += 1
        counts["prompt_tokens_lost"] += len(prompt) - room
        first = prompt[: int(prompt[0] == bos_id and room > 1)]
        return row._replace(prompt=np.concatenate([first, prompt[len(prompt) - room + len(first) :]]))


def _limit(template: Template, max_length: int | None, max_completion_length: int | None) -> int:
    context = template.context
    limit = min(_DEFAULT_LENGTH, context or _DEFAULT_LENGTH) if max_length is None else max_length
    if limit < 2:
        raise ValueError(f"max_length: found {limit}, expected at least 2: one token of the prompt and the end")
    if context is not None and limit > context:
        raise ValueError(
            f"max_length: found {limit}, expected at most {context}, the model_max_length of the tokenizer;"
            f" write max_length: {context}"
        )
    if max_completion_length is not None and not 0 < max_completion_length < limit:
        raise ValueError(
            f"max_completion_length: found {max_completion_length}, expected 1 to {limit - 1}, less than max_length"
        )
    return limit
