"""Which token of a packed row may see which: the rule, and the forms in which attention kernels want to be told it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from modeseek.policies.pack import Row, Segment


@dataclass(frozen=True)
class Layout:
    """A response sees its prompt and itself, a prompt itself. It travels to the attention layers as a keyword."""

    segments: tuple[Segment, ...]
    positions: Tensor  # [L]
    last: int | None = None  # the layer of which only the states that predict a token are read
    windows: list[int | None] = field(default_factory=list)  # the sliding window that each layer asked for
    _kept: dict[Any, Any] = field(default_factory=dict)  # masks, made once and used by every layer

    @staticmethod
    def of(row: Row, last: int | None = None) -> "Layout":
        return Layout(row.segments, row.positions, last)

    @property
    def longest(self) -> int:
        """Positions that the longest response with its prompt takes."""
        return max((s.prompt + max(s.responses, default=0) for s in self.segments), default=0)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` makes, made at the first asking."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def bias(self, prompt: int, responses: tuple[int, ...], window: int | None, like: Tensor) -> Tensor:
        """Where the tokens of `responses`, side by side, may look among those of `prompt` and themselves: zero there,
        minus infinity elsewhere. `[sum of responses, prompt + sum of responses]`."""

        def made() -> Tensor:
            own = torch.cat([torch.arange(n) for n in responses]) + prompt  # positions
            branch = torch.cat([torch.full((n,), i) for i, n in enumerate(responses)])
            back = own[:, None] - torch.cat([torch.arange(prompt), own])  # how far back each key lies
            hidden = back < 0
            if window is not None:
                hidden |= back >= window
            hidden[:, prompt:] |= branch[:, None] != branch
            return like.new_zeros(hidden.shape).masked_fill_(hidden.to(like.device), float("-inf"))

        return self.once(("bias", prompt, responses, window, like.dtype), made)

    def stretches(self) -> Iterator[tuple[int, int, int, int]]:
        """Every prompt and response in the row's order: segment, response counted from 1 (0: the prompt), where it
        begins and its tokens."""
        for number, s in enumerate(self.segments):
            start = s.start
            for branch, n in enumerate((s.prompt, *s.responses)):
                yield number, branch, start, n
                start += n
