"""A world and a claim of one's own, and nothing else: does Robust DPO help where labels are flipped?

Run it: `modeseek study examples/own_study.py`. Twenty paired seeds, a few seconds; the page is in runs/study.
The world is one table of ten actions, worth 0 to 1; pairs come from a uniform reference, and three labels in ten lie.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from modeseek.objectives import DPO, RobustDPO
from modeseek.stages import refer
from modeseek.studies.base import Cell, Claim, Dial, Part, Row, Study, read
from modeseek.studies.worlds.table import Dials, Ledger, Table, forced, standing, streams, train, uniform

ACTIONS, PAIRS, FLIPPED = 10, 100, 0.3
METHODS = {"dpo": lambda beta: DPO(beta=beta), "robust_dpo": lambda beta: RobustDPO(beta=beta, label_smoothing=FLIPPED)}


@dataclass(frozen=True)
class LyingLabels:
    """Offline pairs whose labels are flipped at a known rate."""

    name: str = "lying_labels"
    judged_by: str = "reward"

    def methods(self) -> Sequence[str]:
        return tuple(METHODS)

    def grid(self, method: str) -> Mapping[str, Sequence[Dial]]:
        return {"learning_rate": (0.01, 0.03, 0.1)}

    def run(
        self, method: str, seeds: Sequence[int], *, steps: int = 200, learning_rate: float = 0.03, beta: float = 0.1
    ) -> list[Row]:
        start, reward = torch.zeros(len(seeds), 1, ACTIONS), torch.linspace(0, 1, ACTIONS, dtype=torch.float64)
        policy, reference = Table(start), Table(start)
        prompt = policy.prompts(torch.zeros(len(seeds), PAIRS, dtype=torch.long))
        luck = lambda purpose, k: uniform(streams(seeds, purpose), PAIRS, k).flatten(0, 1)
        actions = reference.sample(prompt, luck("pairs", 2)).response[..., 0].sort(-1, descending=True).values
        lied = luck("labels", 1) < FLIPPED
        pairs = forced(prompt, torch.where(lied, actions.flip(-1), actions))
        ledger = Ledger(seeds, steps, every=steps // 10)

        def watch(progress) -> None:
            if ledger.due(progress.step):
                ledger.add(progress.step, standing(policy.all_logp(), reference.all_logp(), reward))

        dials = Dials(steps=steps, learning_rate=learning_rate)
        train(policy, METHODS[method](beta), lambda: pairs, [refer(reference)], dials, seeds, watch)
        return ledger.rows

    def geometry(self) -> Mapping[str, np.ndarray]:
        return {"reference": np.full(ACTIONS, 1 / ACTIONS), "reward": np.linspace(0, 1, ACTIONS)}


DPO_, ROBUST = (Cell.of("lying_labels", method) for method in METHODS)

study = Study(
    "own_study",
    (LyingLabels(),),
    (
        Claim(
            "robust",
            "Where three labels in ten lie, Robust DPO earns more than DPO, and spends less KL.",
            "ours",
            (
                Part("its reward is higher", read(ROBUST, "reward") - read(DPO_, "reward"), "greater"),
                Part(
                    "its reward is the same within 0.05", read(ROBUST, "reward") - read(DPO_, "reward"), "equal", 0.05
                ),
                Part("its KL is lower", read(ROBUST, "kl") - read(DPO_, "kl"), "less"),
            ),
            note="One beta, one learning rate: `--tune` chooses the rate on seeds of its own.",
        ),
    ),
)
