"""Texts that a process tokenises once, for who trains on the same data again and again: a study's grid of runs."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np

Ids = list[int]
_KEEPING: ContextVar[bool] = ContextVar("keeping", default=False)
_KEPT: dict[tuple[str, bool, str], np.ndarray] = {}  # by tokenizer, whether special tokens are split, and text


@contextlib.contextmanager
def kept_tokens() -> Iterator[None]:
    """Keep the tokens of every text that is met inside, for as long as the process lives."""
    before = _KEEPING.set(True)
    try:
        yield
    finally:
        _KEEPING.reset(before)


def remembered(
    tokenizer: Any, texts: Sequence[str], ordinary: bool, ask: Callable[[list[str]], list[Ids]]
) -> list[Ids]:
    """What `ask` says of the texts; those that are kept are not asked about again."""
    if not _KEEPING.get() or not getattr(tokenizer, "is_fast", False):
        return ask(list(texts))
    content = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    new = [one for one in dict.fromkeys(texts) if (content, ordinary, one) not in _KEPT]
    if new:
        found = zip(new, ask(new), strict=True)
        _KEPT.update({(content, ordinary, one): np.array(ids, np.int32) for one, ids in found})
    return [_KEPT[content, ordinary, one].tolist() for one in texts]
