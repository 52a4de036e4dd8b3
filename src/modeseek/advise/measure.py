"""Worlds in which every candidate has been trained, with what an advisor could know of each and what is true."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from modeseek.advise import belief
from modeseek.advise.belief import Fits, Setting, linear_kernel, tangents
from modeseek.advise.diagnose import diagnoses
from modeseek.advise.generate import generate
from modeseek.advise.methods import STEPS, train_all
from modeseek.advise.ranges import Ranges
from modeseek.advise.rehearse import rehearse
from modeseek.advise.worlds import Worlds

STACK = 250  # worlds at once: what fits into a gigabyte


@dataclass(frozen=True, eq=False)
class Measured:
    """C arms in each of W worlds."""

    worlds: Worlds
    moved: Float[Tensor, "W C M"]  # what each trained arm gives more often than the reference
    rehearsed: Float[Tensor, "W C M"]  # the same, of its rehearsal
    kl: Float[Tensor, "W C"]  # of the trained arms, in nats
    rehearsed_kl: Float[Tensor, "W C"]
    plain: Float[Tensor, "W M M"]  # kernel of the features that are seen
    informed: Float[Tensor, "W M M"]  # with the directions in which the trained arms moved beside them
    diagnoses: Float[Tensor, "W D"]

    @property
    def gain(self) -> Float[Tensor, "W C"]:
        """The truth."""
        return torch.einsum("wcm,wm->wc", self.moved, self.worlds.reward)

    def fits(self, settings: Sequence[Setting], *, rehearsed: bool = False) -> Fits:
        """What the pairs say under each setting."""
        w = self.worlds
        kernel = self.plain if rehearsed else self.informed
        return belief.fit(kernel, w.pairs, w.count, w.proxy, w.given, settings)


def measured(worlds: Worlds, *, seed: int = 0, steps: int = STEPS) -> Measured:
    """Train every arm in every world, and rehearse it on what can be seen."""
    theta = train_all(worlds, steps=steps, seed=seed)
    stage, rehearsal = rehearse(worlds, seed=seed + 1, steps=steps)
    still = worlds.logp(worlds.still())
    ratios = torch.stack([worlds.logp(arm) - still for arm in theta[:, 1:].unbind(1)], 1)
    seen = worlds.seen.flatten(1, 2)
    return Measured(
        worlds=worlds,
        moved=worlds.moved(theta),
        rehearsed=stage.moved(rehearsal),
        kl=torch.stack([worlds.kl(arm) for arm in theta.unbind(1)], 1),
        rehearsed_kl=torch.stack([stage.kl(arm) for arm in rehearsal.unbind(1)], 1),
        plain=linear_kernel(seen),
        informed=linear_kernel(seen, tangents(ratios)),
        diagnoses=diagnoses(worlds),
    )


def stacks(
    n: int,
    ranges: Ranges,
    seed: int,
    *,
    steps: int = STEPS,
    stack: int = STACK,
    tell: Callable[[int], object] = lambda done: None,
) -> Sequence[Measured]:
    """`n` measured worlds, a stack at a time; `tell` hears how many of them are done."""
    found = []
    for first in range(0, n, stack):
        size = min(stack, n - first)
        found.append(measured(generate(size, ranges, seed + first), seed=seed + first, steps=steps))
        tell(size)
    return found
