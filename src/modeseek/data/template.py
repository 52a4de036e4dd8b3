"""One rendering of prompts and responses everywhere: a tokenizer and its chat template.

A response is tokenised apart from its prompt, so the prompt's tokens are a prefix of prompt + response by
construction, and it ends in exactly one end token.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from modeseek.data.control import put_before
from modeseek.data.kept import remembered
from modeseek.data.records import Message, Text, text

Ids = list[int]
Tokens = Sequence[int] | np.ndarray | Tensor
_SPEAKERS = {"user": "Human", "assistant": "Assistant", "system": "System", "tool": "Tool"}
_ANCHORS = ("\n", "|", ".", "a")
_PREFIX = "prompt_prefix"  # the key of tokenizer_config.json


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
        return self.response_after(response, prompt, self.prompt_text(prompt))

    def response_after(self, response: Text, prompt: Text, rendered: str) -> tuple[str, bool]:
        """The same where the prompt has been rendered."""
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
        return remembered(self.tokenizer, texts, ordinary, lambda some: self._asked(some, ordinary))

    def _asked(self, texts: list[str], ordinary: bool) -> list[Ids]:
        said: Any = self.tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            verbose=False,
            split_special_tokens=ordinary,
        )
        return said["input_ids"]

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


def _messages(prompt: Text) -> tuple[Message, ...]:
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


def _turn(message: Message) -> str:
    return f"\n\n{_SPEAKERS[message.role]}:" + (f" {message.content}" if message.content else "")


def _one_token(ids: Any) -> int:
    return ids[0] if isinstance(ids, list) else ids
