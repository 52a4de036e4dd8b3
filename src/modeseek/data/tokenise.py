"""Records as token ids, within a joint budget of tokens; whatever is left out or cut is counted."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

import jinja2
import numpy as np

from modeseek.data.groups import Groups, Ragged
from modeseek.data.records import DataError, Record, Text, text
from modeseek.data.template import Template

Responses = Literal["keep", "best", "best_worst", "none"]
_DEFAULT_LENGTH = 1024
_LEAST_PROMPT = 32


def tokenise(
    records: Sequence[Record],
    template: Template,
    *,
    max_length: int | None = None,  # tokens of a prompt and its longest response; 1024, or what the model reads
    max_completion_length: int | None = None,  # tokens of a response, its end included
    min_prompt_length: int | None = None,  # a long prompt loses its left, but keeps so many tokens; 32, or half
    truncate_responses: bool = False,  # cut responses that do not fit (they then do not end) instead of dropping
    responses: Responses = "keep",  # or the best alone, the best and the worst, none
    ties: Literal["drop", "keep"] = "drop",  # pairs of which nobody said which is better
) -> Groups:
    """Records as Groups. Whatever is left out or cut is in `counts`.

    The budget is joint: chosen and rejected see the same prompt. It loses its left side first; a group with a
    response that still does not fit is dropped (of a rated list of more than two, only that response).
    """
    limit = _limit(template, max_length, max_completion_length)
    least = min(_LEAST_PROMPT, limit // 2) if min_prompt_length is None else min_prompt_length
    if not 0 < least < limit:
        raise ValueError(f"min_prompt_length: found {least}, expected 1 to {limit - 1}, less than max_length")
    dropped, counts = Counter[str](), Counter[str]()
    chosen = list[Record]()
    for record in records:
        picked = _pick(record, responses, ties)
        if isinstance(picked, str):
            dropped[picked] += 1
        else:
            chosen.append(picked)
    kept, ends = list[Record](), list[list[bool]]()
    prompts, groups = list[np.ndarray](), list[list[np.ndarray]]()
    for record, prompt, replies in _encoded(chosen, template, dropped, counts):
        longest = limit - min(len(prompt), least)
        cap = min(longest, max_completion_length or longest)
        finished = [len(reply) <= cap for reply in replies]
        if not all(finished):
            if truncate_responses:
                counts["responses_truncated"] += len(finished) - sum(finished)
                counts["response_tokens_lost"] += sum(max(len(reply) - cap, 0) for reply in replies)
                replies = [reply[:cap] for reply in replies]
            elif record.rewards is not None and len(replies) > 2 and sum(finished) > 1:
                counts["responses_dropped"] += len(finished) - sum(finished)
                fits = [k for k, whole in enumerate(finished) if whole]
                record, replies, finished = _with(record, fits), [replies[k] for k in fits], [True] * len(fits)
            else:
                dropped["response too long"] += 1
                continue
        if len(replies) == 2 and record.labels is None and np.array_equal(replies[0], replies[1]):
            dropped["identical responses"] += 1
            continue
        room = limit - (max((len(r) for r in replies), default=0) or max_completion_length or 1)
        if len(prompt) > room:
            counts["prompts_truncated"] += 1
            counts["prompt_tokens_lost"] += len(prompt) - room
            first = prompt[: int(prompt[0] == template.bos_id and room > 1)]  # the BOS stays
            prompt = np.concatenate([first, prompt[len(prompt) - room + len(first) :]])
        counts["empty_responses"] += sum(
            len(reply) == len(template.closing_ids) or not text(said).strip()
            for reply, said in zip(replies, record.responses, strict=True)
        )
        kept.append(record)
        prompts.append(prompt)
        groups.append(replies)
        ends.append(finished)
    if not kept:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in dropped.items()) or "there were none"
        unread = sorted({name for record in records for name in record.meta})
        reasons += f"; columns not read: {', '.join(unread)}" if unread and dropped["no response"] else ""
        raise DataError(
            f"data: no row of {len(records)} is left for a limit of {limit} tokens ({reasons});"
            " raise max_length, set truncate_responses, or look at the data with modeseek check"
        )
    return Groups(
        prompt=Ragged.of(prompts),
        response=Ragged.of([reply for group in groups for reply in group]),
        first=np.cumsum([0, *(len(group) for group in groups)]),
        finished=np.array([end for group in ends for end in group], bool),
        columns=_columns(kept),
        weight=np.array([record.weight for record in kept], np.float32),
        records=kept,
        template=template,
        counts={
            "rows": len(records),
            "kept": len(kept),
            "dropped": dict(dropped),
            "responses_dropped": counts["responses_dropped"],
            "prompts_truncated": counts["prompts_truncated"],
            "prompt_tokens_lost": counts["prompt_tokens_lost"],
            "responses_truncated": counts["responses_truncated"],
            "response_tokens_lost": counts["response_tokens_lost"],
            "empty_responses": counts["empty_responses"],
            "prompts_rewritten_by_template": counts["rewritten"],
            "end_tokens_inside": counts["end_tokens_inside"],
            "max_length": limit,
            "max_completion_length": max_completion_length,
        },
    )


def tokenise_prompts(
    prompts: Sequence[Record | Text],
    template: Template,
    *,
    max_length: int | None = None,
    max_completion_length: int | None = None,
) -> Groups:
    """Prompts without responses (K = 0), for a policy to answer; room for the answer is left."""
    records = [
        one if isinstance(one, Record) else Record(prompt=one, row=number)
        for number, one in enumerate(prompts, start=1)
    ]
    return tokenise(
        records, template, max_length=max_length, max_completion_length=max_completion_length, responses="none"
    )


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


def _pick(record: Record, responses: Responses, ties: Literal["drop", "keep"]) -> Record | str:
    """The record with the responses that are asked for, or why it is left out."""
    if record.prompts_differ:
        return "prompts differ"
    if record.weight == 0:
        return "weight 0"
    if responses == "none":
        return _with(record, [])
    if not record.responses:
        return "no response" if responses != "keep" else record
    if responses == "best":
        bad = record.labels is not None and not record.labels[0]
        return "labelled bad" if bad else _with(record, [0])
    if record.tie and ties == "drop":
        return "tie"
    if responses == "best_worst":
        if len(record.responses) < 2:
            return "single response"
        return _with(record, [0, len(record.responses) - 1])
    return record


def _with(record: Record, places: list[int]) -> Record:
    """The record with these of its responses."""
    at = lambda values: None if values is None or not places else tuple(values[k] for k in places)
    rewards = at(record.rewards)
    margin = record.margin if len(places) == len(record.responses) else None
    if margin is None and rewards is not None and len(rewards) == 2:
        margin = rewards[0] - rewards[1]
    return dataclasses.replace(
        record, responses=at(record.responses) or (), rewards=rewards, labels=at(record.labels), margin=margin
    )


def _encoded(
    records: Sequence[Record], template: Template, dropped: Counter[str], counts: Counter[str]
) -> Iterator[tuple[Record, np.ndarray, list[np.ndarray]]]:
    """Each record with the tokens of its prompt and of its responses. A text that recurs is tokenised once."""
    prompts, replies = dict[str, np.ndarray](), dict[str, np.ndarray]()
    inside = set[str]()
    for start in range(0, len(records), 1024):
        rendered = list[tuple[Record, str, list[str]]]()
        for record in records[start : start + 1024]:
            try:
                prompt = template.prompt_text(record.prompt)
                texts = [template._response_text(one, record.prompt, prompt) for one in record.responses]
            except jinja2.TemplateError as error:
                dropped[f"refused by the chat template ({' '.join(str(error).split())})"] += 1
                continue
            rendered.append((record, prompt, [content for content, _ in texts]))
            counts["rewritten"] += sum(rewritten for _, rewritten in texts)
        new = list({prompt: None for _, prompt, _ in rendered if prompt not in prompts})
        prompts.update(zip(new, (np.array(ids, np.int32) for ids in template.encode_prompts(new)), strict=True))
        new = list({one: None for _, _, contents in rendered for one in contents if one not in replies})
        encoded, written_out = template.encode_responses(new)
        inside.update(new[i] for i in written_out)
        for one, ids in zip(new, encoded, strict=True):
            replies[one] = np.array(ids + template.closing_ids, np.int32)
        for record, prompt, contents in rendered:
            counts["end_tokens_inside"] += sum(one in inside for one in contents)
            yield record, prompts[prompt], [replies[one] for one in contents]


def _columns(records: Sequence[Record]) -> dict[str, np.ndarray]:
    """What is known of every row: a column that some rows lack is left out."""
    columns = dict[str, np.ndarray]()
    answered = [record for record in records if record.responses]
    if answered and all(record.rewards is not None for record in answered):
        columns["reward"] = np.array([x for r in answered for x in r.rewards or ()], np.float32)
    if answered and all(record.labels is not None for record in answered):
        columns["label"] = np.array([x for r in answered for x in r.labels or ()], bool)
    if records and all(record.margin is not None for record in records):
        columns["margin"] = np.array([record.margin for record in records], np.float32)
    return columns
