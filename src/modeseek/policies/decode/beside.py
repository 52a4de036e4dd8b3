"""A second model read beside the first, token by token, so that both have a say in what is written."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modeseek.policies.decode.body import Body
from modeseek.policies.decode.cache import Cache


@dataclass(frozen=True)
class Beside:
    """The model whose logits have `share` of the sum, the first model's the rest."""

    model: nn.Module
    share: float
    within: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext  # entered to read it


class Twin:
    """Two caches of the same prompts and responses, one for each model."""

    def __init__(self, ours: Cache, theirs: Cache):
        self.ours, self.theirs = ours, theirs
        self.lengths, self.k = ours.lengths, ours.k

    def start(self) -> None:
        self.ours.start()
        self.theirs.start()

    def next(self) -> None:
        self.ours.next()
        self.theirs.next()

    def keep(self, rows: Tensor) -> None:
        self.ours.keep(rows)
        self.theirs.keep(rows)


def together(ours: Body, theirs: Body, beside: Beside) -> Callable[[Twin, Tensor, Tensor, Tensor | None], Tensor]:
    """A body over both: it reads a Twin."""

    def body(cache: Twin, tokens: Tensor, positions: Tensor, at: Tensor | None) -> Tensor:
        said = ours(cache.ours, tokens, positions, at)
        with beside.within():
            return torch.lerp(said, theirs(cache.theirs, tokens, positions, at), beside.share)

    return body
