"""Records as token ids, within a joint budget of tokens; whatever is left out or cut is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jinja2
import numpy as np

from modeseek.data.budget import Budget, Encoded
from modeseek.data.groups import Groups, Ragged
from modeseek.data.records import DataError, Record, Text, text
from modeseek.data.template import Template

Responses = Literal["keep", "best", "best_worst", "none"]


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
    budget = Budget.of(template, max_length, max_completion_length, min_prompt_length, truncate_responses)
    dropped, counts = Counter[str](), Counter[str]()
    chosen = list[Record]()
    for record in records:
        picked = _pick(record, responses, ties)
        if isinstance(picked, str):
            dropped[picked] += 1
        else:
            chosen.append(picked)
    rows = list[Encoded]()
    for encoded in _encoded(chosen, template, dropped, counts):
        row = budget.with_responses(encoded, counts)
        if row is None:
            dropped["response too long"] += 1
        elif len(row.replies) == 2 and row.record.labels is None and np.array_equal(row.replies[0], row.replies[1]):
            dropped["identical responses"] += 1
        else:
            rows.append(budget.with_prompt(row, template.bos_id, counts))
            counts["empty_responses"] += _empty(row, template)
    if not rows:
        raise _nothing_left(records, budget, dropped)
    return _groups(rows, template, _told(records, rows, budget, dropped, counts))


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


def _pick(record: Record, responses: Responses, ties: Literal["drop", "keep"]) -> Record | str:
    """The record with the responses that are asked for, or why it is left out."""
    if record.prompts_differ:
        return "prompts differ"
    if record.weight == 0:
        return "weight 0"
    if responses == "none":
        return record.take([])
    if not record.responses:
        return "no response" if responses != "keep" else record
    if responses == "best":
        bad = record.labels is not None and not record.labels[0]
        return "labelled bad" if bad else record.take([0])
    if record.tie and ties == "drop":
        return "tie"
    if responses == "best_worst":
        if len(record.responses) < 2:
            return "single response"
        return record.take([0, len(record.responses) - 1])
    return record


def _encoded(
    records: Sequence[Record], template: Template, dropped: Counter[str], counts: Counter[str]
) -> Iterator[Encoded]:
    """Each record with the tokens of its prompt and of its responses, whole. A text that recurs is tokenised once."""
    prompts, replies = dict[str, np.ndarray](), dict[str, np.ndarray]()
    inside = set[str]()
    for start in range(0, len(records), 1024):
        rendered = list[tuple[Record, str, list[str]]]()
        for record in records[start : start + 1024]:
            try:
                prompt = template.prompt_text(record.prompt)
                texts = [template.response_after(one, record.prompt, prompt) for one in record.responses]
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
            yield Encoded(record, prompts[prompt], [replies[one] for one in contents], [True] * len(contents))


def _empty(row: Encoded, template: Template) -> int:
    """How many of its responses say nothing."""
    return sum(
        len(reply) == len(template.closing_ids) or not text(said).strip()
        for reply, said in zip(row.replies, row.record.responses, strict=True)
    )


def _nothing_left(records: Sequence[Record], budget: Budget, dropped: Counter[str]) -> DataError:
    reasons = ", ".join(f"{reason}: {n}" for reason, n in dropped.items()) or "there were none"
    unread = sorted({name for record in records for name in record.meta})
    reasons += f"; columns not read: {', '.join(unread)}" if unread and dropped["no response"] else ""
    return DataError(
        f"data: no row of {len(records)} is left for a limit of {budget.limit} tokens ({reasons});"
        " raise max_length, set truncate_responses, or look at the data with modeseek check"
    )


def _groups(rows: Sequence[Encoded], template: Template, told: dict[str, Any]) -> Groups:
    kept = [row.record for row in rows]
    return Groups(
        prompt=Ragged.of([row.prompt for row in rows]),
        response=Ragged.of([reply for row in rows for reply in row.replies]),
        first=np.cumsum([0, *(len(row.replies) for row in rows)]),
        finished=np.array([end for row in rows for end in row.finished], bool),
        columns=_columns(kept),
        weight=np.array([record.weight for record in kept], np.float32),
        records=kept,
        template=template,
        counts=told,
    )


def _told(
    records: Sequence[Record], rows: Sequence[Encoded], budget: Budget, dropped: Counter[str], counts: Counter[str]
) -> dict[str, Any]:
    """What became of the rows: for the run card and for `check`."""
    return {
        "rows": len(records),
        "kept": len(rows),
        "dropped": dict(dropped),
        "responses_dropped": counts["responses_dropped"],
        "prompts_truncated": counts["prompts_truncated"],
        "prompt_tokens_lost": counts["prompt_tokens_lost"],
        "responses_truncated": counts["responses_truncated"],
        "response_tokens_lost": counts["response_tokens_lost"],
        "empty_responses": counts["empty_responses"],
        "prompts_rewritten_by_template": counts["rewritten"],
        "end_tokens_inside": counts["end_tokens_inside"],
        "max_length": budget.limit,
        "max_completion_length": budget.completion,
    }


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
