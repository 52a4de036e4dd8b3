"""Records as token ids: one rendering of prompts and responses everywhere, and a ragged store that hands out Batches.

A response is tokenised apart from its prompt, so the prompt's tokens are a prefix of prompt + response by
construction, and it ends in exactly one end token. Masks come from lengths: the pad token is never looked at.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from modeseek.batch import Batch
from modeseek.data.control import put_before
from modeseek.data.records import DataError, Message, Record, Text, text

Ids = list[int]
Tokens = Sequence[int] | np.ndarray | Tensor
Responses = Literal["keep", "best", "best_worst", "none"]
_SPEAKERS = {"user": "Human", "assistant": "Assistant", "system": "System", "tool": "Tool"}
_ANCHORS = ("\n", "|", ".", "a")
_DEFAULT_LENGTH = 1024
_PREFIX = "prompt_prefix"  # the key of tokenizer_config.json
_LEAST_PROMPT = 32
_EMPTY = np.zeros(0, np.int32)


class Template:
    """How prompts and responses become tokens of one tokenizer.

    With a chat template a string prompt is the user's message. Without one (or with `plain`) a string stands as it
    is, and messages become a transcript as in HH: "\\n\\nHuman: ...\\n\\nAssistant:", the response after a space.
    `prefix` are words before every prompt, which a model trained with control words is saved with.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, plain: bool = False):
        if tokenizer.eos_token_id is None:
            raise ValueError("tokenizer: found no end token, expected one: responses must end; set its eos_token")
        self.tokenizer = tokenizer
        self.chat = tokenizer.chat_template is not None and not plain
        self.prefix = str(tokenizer.init_kwargs.get(_PREFIX, ""))
        self.eos_id, self.eos = _one_token(tokenizer.eos_token_id), str(tokenizer.eos_token)
        self.bos_id = None if tokenizer.bos_token_id is None else _one_token(tokenizer.bos_token_id)
        self.bos = None if self.bos_id is None else str(tokenizer.bos_token)
        bare, dressed = self._encode(["a"])[0], self._dressed("a")
        added = next((n for n in range(len(dressed)) if dressed[n : n + len(bare)] == bare), 0)
        self.before = dressed[:added]  # what the tokenizer puts before a text: the BOS, where it does
        self.anchored = not all(self._follows(anchor, "hello", self._encode(["hello"])[0]) for anchor in _ANCHORS)
        self.closing = self._closing() if self.chat else ""
        head, ended, _ = self.closing.partition(self.eos)
        self.template_ends_turn = bool(ended)
        self.closing_ids = self._continue([head if ended else head.rstrip()])[0] + [self.eos_id]

    @staticmethod
    def load(name: str, *, plain: bool = False, trust_remote_code: bool = False) -> Template:
        """The template of a model directory or hub name."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        except OSError as error:
            said = " ".join(str(error).split())[:160]
            raise ValueError(
                f"model: {name} is no folder with a model and its tokenizer, and as a name of the hub it cannot be"
                f" read ({said}); mend the path or the name, or fetch it first"
            ) from error
        return Template(tokenizer, plain=plain)

    def steered(self, prefix: str) -> Template:
        """The same with these words before every prompt; its tokenizer is saved with them."""
        made = copy.copy(self)
        made.prefix, made.tokenizer = prefix, copy.deepcopy(self.tokenizer)
        made.tokenizer.init_kwargs[_PREFIX] = prefix
        return made

    @property
    def context(self) -> int | None:
        """The most tokens that the tokenizer says its model reads, where it says so."""
        limit = self.tokenizer.model_max_length
        return int(limit) if limit is not None and limit < 1_000_000_000 else None

    def prompt_ids(self, prompt: Text) -> Ids:
        """The prompt up to where the response begins: the generation prompt included, never empty."""
        return self.encode_prompts([self.prompt_text(prompt)])[0]

    def response_ids(self, response: Text, prompt: Text) -> Ids:
        """The response as it follows the prompt: its content, what closes the turn, one end token."""
        content, _ = self.response_text(response, prompt)
        return self.encode_responses([content])[0][0] + self.closing_ids

    def decode(self, ids: Tokens) -> str:
        """The text, without special tokens."""
        return self._decoded(ids, skip_special_tokens=True)

    def show(self, ids: Tokens) -> str:
        """The text, special tokens written out."""
        return self._decoded(ids, skip_special_tokens=False)

    def describe(self) -> dict[str, Any]:
        """What it renders, for the run card and for `check`."""
        example = (Message("user", "Hello"),)
        _, rewritten = self.response_text("Hi", example)
        return {
            "rendering": "chat template" if self.chat else "plain text",
            "begins_with": self.tokenizer.convert_ids_to_tokens(self.before) if not self.chat else [],
            "end_token": self.eos,
            "end_token_id": self.eos_id,
            "turn_closes_with": self.show(self.closing_ids),
            "template_writes_end_token": self.template_ends_turn,
            "rewrites_prompts": rewritten,
            "example": [
                {"text": self.show(self.prompt_ids(example)), "in_loss": False},
                {"text": self.show(self.response_ids("Hi", example)), "in_loss": True},
            ],
        }

    def merges_boundary(self, prompt: Text, response: Text) -> bool:
        """Whether the tokenizer would have written prompt and response with other tokens had it seen them joined."""
        before, (content, _) = self.prompt_text(prompt), self.response_text(response, prompt)
        apart = self.encode_prompts([before])[0] + self.encode_responses([content])[0][0]
        return self.encode_prompts([before + content])[0] != apart

    # Texts

    def prompt_text(self, prompt: Text) -> str:
        """The prompt as text, the beginning of the assistant's turn included."""
        prompt = put_before(self.prefix, prompt)
        if self.chat:
            return self._render(_messages(prompt), True)
        if isinstance(prompt, str):
            return prompt
        return "".join(map(_turn, prompt)) + "\n\nAssistant:"

    def response_text(self, response: Text, prompt: Text) -> tuple[str, bool]:
        """What follows the prompt, without the closing of the turn, and whether the template would rewrite the prompt.

        Some templates do: they strip the thinking of past turns or write another header. Then the response
        stands after the generation prompt as it was given, which is what the model will see when it samples.
        """
        return self._response_text(response, prompt, self.prompt_text(prompt))

    def _response_text(self, response: Text, prompt: Text, rendered: str) -> tuple[str, bool]:
        rewritten = False
        if self.chat:
            replies = (Message("assistant", response),) if isinstance(response, str) else response
            suffix = self._suffix(rendered, (*_messages(put_before(self.prefix, prompt)), *replies))
            rewritten = suffix is None
            content = text(response) if suffix is None else suffix
        else:
            content = text(response)
        stripped = content.rstrip()
        while stripped.endswith(self.eos):
            content = stripped = stripped.removesuffix(self.eos)
            stripped = stripped.rstrip()
        if content and not self.chat and not isinstance(prompt, str):
            content = " " + content
        return content, rewritten

    def _render(self, messages: tuple[Message, ...], generation: bool) -> str:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        rendered = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation)
        assert isinstance(rendered, str)
        return rendered

    def _suffix(self, prompt: str, whole: tuple[Message, ...]) -> str | None:
        """What the template puts between the prompt and the closing of the turn; None where it has changed either."""
        rendered = self._render(whole, False)
        if not rendered.startswith(prompt) or not rendered.endswith(self.closing):
            return None
        end = len(rendered) - len(self.closing)
        return rendered[len(prompt) : end] if end >= len(prompt) else None

    def _closing(self) -> str:
        probe = "modeseek"
        try:
            rendered = self._render((Message("user", "question"), Message("assistant", probe)), False)
        except jinja2.TemplateError as error:
            raise ValueError(
                f"chat template: it refuses a question and its answer ({error}); mend it or set plain"
            ) from error
        if probe not in rendered:
            raise ValueError("chat template: it leaves the assistant's words out; mend it or set plain")
        return rendered.rpartition(probe)[2]

    # Tokens

    def encode_prompts(self, texts: Sequence[str]) -> list[Ids]:
        """The tokens of rendered prompts, with at most one BOS."""
        bos = self.bos
        before = [] if self.chat else self.before
        doubled = bos if before else bos * 2 if bos else None  # one that the tokenizer will add, or two written out
        clean = []
        for one in texts:
            while bos and doubled and one.startswith(doubled):
                one = one.removeprefix(bos)
            clean.append(one)
        nothing = self.eos_id if self.bos_id is None else self.bos_id
        return [[*before, *ids] or [nothing] for ids in self._encode(clean)]

    def encode_responses(self, texts: Sequence[str]) -> tuple[list[Ids], list[int]]:
        """The tokens of response texts, without an end, and the places of those with an end token written out inside.

        There it is split into ordinary tokens: a response ends once.
        """
        encoded, inside = self._continue(texts), list[int]()
        for i, ids in enumerate(encoded):
            if self.eos_id in ids:
                inside.append(i)
                split = self._continue([texts[i]], ordinary=True)[0]
                encoded[i] = [one for one in split if one != self.eos_id]
        return encoded, inside

    def _continue(self, texts: Sequence[str], ordinary: bool = False) -> list[Ids]:
        """Tokens of texts that go on from others: without the space that some tokenizers put before every text."""
        if not self.anchored:
            return self._encode(texts, ordinary)
        encoded: list[Ids] = [[] for _ in texts]
        missing = [i for i, one in enumerate(texts) if one]
        for anchor in _ANCHORS:
            start, left = self._encode([anchor])[0], []
            for i, ids in zip(missing, self._encode([anchor + texts[i] for i in missing], ordinary), strict=True):
                if ids[: len(start)] == start:
                    encoded[i] = ids[len(start) :]
                else:
                    left.append(i)
            missing = left
        for i, ids in zip(missing, self._encode([texts[i] for i in missing], ordinary), strict=True):
            encoded[i] = ids
        return encoded

    def _follows(self, anchor: str, word: str, ids: Ids) -> bool:
        joined, start = self._encode([anchor + word])[0], self._encode([anchor])[0]
        return joined[: len(start)] != start or joined[len(start) :] == ids

    def _encode(self, texts: Sequence[str], ordinary: bool = False) -> list[Ids]:
        if not texts:
            return []
        encoded: Any = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            verbose=False,
            split_special_tokens=ordinary,
        )
        return encoded["input_ids"]

    def _dressed(self, one: str) -> Ids:
        dressed: Any = self.tokenizer(one)
        return dressed["input_ids"]

    def _decoded(self, ids: Tokens, skip_special_tokens: bool) -> str:
        decoded = self.tokenizer.decode(
            [int(i) for i in ids], skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        assert isinstance(decoded, str)
        return decoded


def prefix_of(folder: str) -> str:
    """The words before every prompt that a model's folder was saved with; none for a hub name."""
    told = Path(folder) / "tokenizer_config.json"
    return str(json.loads(told.read_text(encoding="utf-8")).get(_PREFIX, "")) if told.is_file() else ""


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

    @staticmethod
    def from_prompts(
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
            records,
            template,
            max_length=max_length,
            max_completion_length=max_completion_length,
            responses="none",
        )

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


def _messages(prompt: Text) -> tuple[Message, ...]:
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


def _turn(message: Message) -> str:
    return f"\n\n{_SPEAKERS[message.role]}:" + (f" {message.content}" if message.content else "")


def _one_token(ids: Any) -> int:
    return ids[0] if isinstance(ids, list) else ids
