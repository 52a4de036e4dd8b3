"""What stages and sources ask of a model or a reward is shared out: each rank answers for its prompts, all hear it."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Unpack

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.overrides import TorchFunctionMode

from modeseek.batch import PS, Batch, MaskPS
from modeseek.distributed.shard import gathered
from modeseek.distributed.team import Team
from modeseek.policies.base import Sampling
from modeseek.policies.cache import Cached

ASKED = ("collision", "entropy", "features", "kl", "score", "value")


class Shared:
    """A policy, a reference or a reward, asked by all ranks at once about the same batch, without gradient.

    `rows` bounds the prompts that a rank is asked about at a time. Samples do not depend on the number of ranks: each
    draws the random numbers of the whole round and keeps those of its prompts.
    """

    def __init__(self, asked: Any, team: Team, rows: int | None = None):
        self._asked, self._team, self._rows = asked, team, rows

    def parameters(self) -> Iterator[nn.Parameter]:
        return self._asked.parameters()

    def logp(self, batch: Batch) -> Float[Tensor, "P K T"]:
        return self._ask("logp", self._asked.logp, batch)

    def __call__(self, batch: Batch) -> Float[Tensor, "P K"]:
        return self._ask("reward", self._asked, batch)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        found = getattr(self._asked, name)
        return (lambda batch: self._ask(name, found, batch)) if name in ASKED else found

    def __deepcopy__(self, memo: dict[int, Any]) -> "Shared":
        return Shared(copy.deepcopy(self._asked, memo), self._team, self._rows)

    @torch.no_grad()
    def sample(self, prompt: PS, prompt_mask: MaskPS, k: int, rng: Generator, **how: Unpack[Sampling]) -> Batch:
        """The whole round [P, k, T] on every rank, though each decodes its own prompts only. All ranks must call it
        with the same prompts and `rng`, which ends where one process would have left it."""
        team = self._team
        if not len(prompt):
            return self._asked.sample(prompt, prompt_mask, k, rng, **how)
        team.at("sample")
        own = team.own(len(prompt))
        part = own if own.start < own.stop else slice(0, 1)  # decoded and thrown away: T, dtype and columns as others'
        with gathered(self._asked, team), _Portion(rng, part, len(prompt)) as drawn:
            found = self._asked.sample(prompt[part], prompt_mask[part], k, rng, **how)
        heard = team.join(found.tensors() if part is own else {}, prompt.device, "samples")
        # Whoever decoded longest has drawn as many numbers as one process would have.
        rng.set_state(max(team.hear((drawn.count, rng.get_state())), key=lambda x: x[0])[1])
        return dataclasses.replace(Batch.from_tensors(heard), prompt=prompt, prompt_mask=prompt_mask)

    @torch.no_grad()
    def _ask(self, name: str, asked: Any, batch: Batch) -> Tensor:
        team = self._team
        if not len(batch):
            return asked(batch)
        team.at(name)
        parts, idle = team.portions(batch, self._rows)
        found = [asked(part) for part in parts]
        for _ in range(idle):
            asked(batch.prompts(slice(0, 1)))
        own: Mapping[str, Tensor] = {name: torch.cat(found)} if found else {}
        return team.join(own, batch.prompt.device, name)[name]


def shared(asked: Any, team: Team, rows: int | None = None) -> Any:
    """What a stage is given: the thing itself where one process is alone."""
    if team.size == 1 and not team.sharded:
        return asked
    if team.sharded and isinstance(asked, Cached):  # every rank must miss the same rows, and make the same passes
        return asked.together(Shared(asked.reference, team, rows), team.first, keeps=team.leads)
    return Shared(asked, team, rows)


class _Portion(TorchFunctionMode):
    """Within, `rng` gives some prompts of a round the numbers they would have had among all of them.

    `policies.base.uniform` draws `[T, P, k]` for a rollout or `[P * k]` for a token: prompts are the axis next to
    last, or the only one.
    """

    def __init__(self, rng: Generator, part: slice, prompts: int):
        super().__init__()
        self.rng, self.part, self.prompts, self.count = rng, part, prompts, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.rand or kwargs.get("generator") is not self.rng:
            return func(*args, **kwargs)
        self.count += 1
        shape, axis = list(args[0]), 0 if len(args[0]) == 1 else 1
        each = shape[axis] // (self.part.stop - self.part.start)  # numbers of a prompt
        shape[axis] = each * self.prompts
        drawn = func(tuple(shape), *args[1:], **kwargs)
        return drawn.narrow(axis, each * self.part.start, each * (self.part.stop - self.part.start)).contiguous()
