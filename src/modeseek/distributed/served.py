"""A server's samples for a team: the leading rank brings it the weights and asks it, and all hear the answer."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import TypeVar, Unpack

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from modeseek.batch import PS, Batch, MaskPS
from modeseek.distributed.shard import gathered, lying_here, saved_as
from modeseek.distributed.share import shared
from modeseek.distributed.team import Team
from modeseek.policies.base import Sampling
from modeseek.policies.sync import InStep

X = TypeVar("X")


class Served:
    """`asked`, a policy in step with a server, for all ranks at once.

    Weights in pieces are gathered on every rank while the leading one writes them for the server and compares what
    both say: the memory bound is that of a rollout.
    """

    def __init__(self, asked: InStep, team: Team):
        self.asked, self._team = asked, team
        self._shared = shared(asked.policy, team)

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.asked.parameters()

    def logp(self, batch: Batch) -> Float[Tensor, "P K T"]:
        return self._shared.logp(batch)

    @torch.no_grad()
    def sample(self, prompt: PS, prompt_mask: MaskPS, k: int, rng: Generator, **how: Unpack[Sampling]) -> Batch:
        def drawn() -> tuple[dict[str, Tensor], Tensor]:
            own = self.asked.sample(prompt, prompt_mask, k, rng, **how)
            return {name: x.cpu() for name, x in own.tensors().items()}, rng.get_state()

        found, state = self._by_one("sampling from the server", drawn)
        rng.set_state(state)
        own = Batch.from_tensors(found).to(prompt.device)
        return dataclasses.replace(own, prompt=prompt, prompt_mask=prompt_mask)

    @torch.no_grad()
    def prove(self, prompt: PS, prompt_mask: MaskPS) -> dict[str, float]:
        """Raises OutOfStep on the leading rank."""
        return self._by_one("comparing with the server", lambda: self.asked.prove(prompt, prompt_mask))

    def _by_one(self, what: str, said: Callable[[], X]) -> X:
        """What the leading rank hears, told to all. Where it fails all end: it with the error, others with its word."""
        team, model = self._team, self.asked.policy.model

        def alone() -> tuple[X | None, Exception | None]:
            try:
                with team.busy(what), saved_as(model, lying_here(model)):
                    return said(), None
            except Exception as error:
                return None, error

        found: tuple[X | None, Exception | None] = (None, None)
        with gathered(self.asked.policy, team):
            if team.leads:
                found = alone()
            answer, failed = team.hear((found[0], str(found[1]) if found[1] else ""), "the server")[0]
        if found[1] is not None:
            raise found[1]
        if failed:
            raise ValueError(f"the leading rank gave up {what}: {failed}")
        return answer  # type: ignore[return-value]
