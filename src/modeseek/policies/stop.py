"""Texts that end a response: which tokens could complete one, and whether a response holds one."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class Stop:
    """A response ends with the token that completes one of the texts, keeps its tokens and counts as finished.

    What is looked through is the response as it reads behind other text, special tokens written out; the prompt is not
    part of it. (transformers' `stop_strings` also match a text that begins in the prompt.)
    """

    def __init__(self, texts: Sequence[str], tokenizer: Any, vocab: int):
        """`vocab` is how many tokens the model can write, of which the tokenizer may know fewer."""
        if not texts or "" in texts:
            raise ValueError(f"stop: {list(texts)}, expected texts of at least one character")
        self.texts, self.vocab, self._tokenizer = tuple(texts), vocab, tokenizer
        self._ahead = list(tokenizer.encode("a", add_special_tokens=False))  # some tokenizers trim what stands first

    def __call__(self, tokens: Sequence[int]) -> bool:
        """Whether these tokens of a response hold one of the texts."""
        said = self._read([list(tokens)])[0]
        return any(text in said for text in self.texts)

    def ended(
        self, token: Int[Tensor, " B"], alive: Bool[Tensor, " B"], written: Callable[[int], Sequence[int]]
    ) -> Bool[Tensor, " B"]:
        """Which of the living rows end with their newest token; `written` gives all tokens of a row, that one included.

        Only rows whose token could complete a text are decoded.
        """
        over = torch.zeros_like(alive)
        for row in (self._may_end.to(token.device)[token] & alive).nonzero()[:, 0].tolist():
            over[row] = self(written(row))
        return over

    @cached_property
    def _may_end(self) -> Bool[Tensor, " V"]:
        known = min(self.vocab, len(self._tokenizer))
        said = self._read([[token] for token in range(known)])
        found = torch.zeros(self.vocab, dtype=torch.bool)
        found[:known] = torch.tensor([any(_completes(x, text) for text in self.texts) for x in said])
        return found

    def _read(self, rows: list[list[int]]) -> list[str]:
        how = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        first, *said = self._tokenizer.batch_decode([self._ahead, *(self._ahead + row for row in rows)], **how)
        return [x.removeprefix(first) for x in said]


def _completes(said: str, text: str) -> bool:
    """Whether the last character of `text` can lie in what a token says; half a character may be any."""
    return "\ufffd" in said or text in said or any(said.startswith(text[i:]) for i in range(1, len(text)))
