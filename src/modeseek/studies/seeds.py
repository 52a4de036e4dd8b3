"""Three generators of seeds, to tune, to choose and to report, that share no seed.

Each seed comes from numpy's SeedSequence of one fixed root, with the purpose and the place as spawn key, so that more
seeds never change the first ones. Two bits of a seed say the purpose: the three ranges cannot overlap.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Purpose = Literal["tune", "choose", "report"]
PURPOSES: tuple[Purpose, ...] = ("tune", "choose", "report")

ROOT = 20240614
_BITS = 28  # of luck; small enough that a seed fits everything that takes one


def draw(purpose: Purpose, n: int) -> tuple[int, ...]:
    """The first `n` seeds of a purpose: tune below 2^29, choose below 3 x 2^28, report below 2^30."""
    if n < 1:
        raise ValueError(f"seeds: {n}, expected at least 1")
    which = PURPOSES.index(purpose)
    luck = lambda i: int(np.random.SeedSequence(ROOT, spawn_key=(which, i)).generate_state(1)[0]) >> (32 - _BITS)
    seeds = tuple((which + 1 << _BITS) | luck(i) for i in range(n))
    assert len(set(seeds)) == n
    return seeds
