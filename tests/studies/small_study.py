"""A study of one file, as a user writes it: arithmetic instead of training, and a trail of what was run."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modeseek.studies.base import Cell, Claim, Dial, Part, Row, Study, read

WORTH = {"good": 1.0, "bad": -1.0, "wild": float("nan")}


@dataclass(frozen=True)
class Line:
    """The reward goes up by `WORTH - (rate - 3)^2 / 10` a step; a seed shifts it, alike for all methods."""

    name: str = "line"
    judged_by: str = "reward"

    def methods(self) -> Sequence[str]:
        return tuple(WORTH)

    def grid(self, method: str) -> Mapping[str, Sequence[Dial]]:
        return {"rate": (1, 3, 5)} if method == "good" else {}

    def run(self, method: str, seeds: Sequence[int], *, rate: float = 1, steps: int = 4) -> list[Row]:
        if trail := os.environ.get("TRAIL"):
            with Path(trail).open("a") as file:
                file.write(f"{method} {rate} {steps} {','.join(map(str, seeds))}\n")
        if method in os.environ.get("BROKEN", "").split(","):
            raise RuntimeError(f"{method} <b>broke</b>")
        slope = WORTH[method] - (rate - 3) ** 2 / 10
        luck = {seed: np.random.default_rng(seed).normal() for seed in seeds}
        return [
            {"seed": s, "step": t, "reward": luck[s] + slope * t, "kl": 0.1 * t * (1 + 0.1 * luck[s])}
            for s in seeds
            for t in range(steps + 1)
        ]

    def geometry(self) -> Mapping[str, np.ndarray]:
        return {"reward": np.arange(5.0)}


GOOD, BAD, WILD = (Cell.of("line", method) for method in WORTH)

study = Study(
    "small",
    (Line(),),
    (
        Claim(
            "better",
            "Good beats <script>alert(1)</script> bad.",
            "ours",
            (
                Part("it ends higher | by 1", read(GOOD, "reward") - read(BAD, "reward"), "greater", margin=1.0),
                Part("its KL is the same", read(GOOD, "kl") - read(BAD, "kl"), "equal", margin=0.01),
            ),
            note="A note & more.",
        ),
        Claim("wild", "Wild is worse.", "ours", (Part("lower", read(WILD, "reward") - read(BAD, "reward"), "less"),)),
    ),
)
