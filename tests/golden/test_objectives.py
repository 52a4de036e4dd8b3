"""Loss and gradient of every objective, with its options, on numbers that never change: a refactor leaves them.

New objectives are added, and values renewed after a change that is meant to change them, by
`python tests/golden/test_objectives.py`.
"""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from modeseek.objectives import BradleyTerry, call
from wide import LIVE, every_objective, everything, leaves

STORED = Path(__file__).with_name("objectives.json")
ALL = [*every_objective(), BradleyTerry(), BradleyTerry(margin_weight=0.5), BradleyTerry(ties=True, centre=0.1)]


def value(objective):
    """Losses of the prompts, and one number that no gradient can change without changing."""
    batch = leaves(everything().fill(score=everything()["reward"] * 2), (*LIVE, "score"))
    live = {name: batch[name] for name in (*LIVE, "score")}
    loss = call(objective, batch, live).per_prompt
    loss.sum().backward()
    grads = [x.grad for x in live.values() if x.grad is not None]
    seen = sum((g * torch.cos(torch.arange(g.numel(), dtype=g.dtype)).view(g.shape)).sum() for g in grads)
    return {"loss": loss.tolist(), "gradient": float(seen)}


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_the_value_is_the_stored_one(objective):
    stored, now = json.loads(STORED.read_text())[repr(objective)], value(objective)
    assert now["loss"] == pytest.approx(stored["loss"], rel=1e-9, abs=1e-12)
    assert now["gradient"] == pytest.approx(stored["gradient"], rel=1e-9, abs=1e-12)


def test_nothing_stored_is_left_over():
    assert set(json.loads(STORED.read_text())) == {repr(objective) for objective in ALL}


if __name__ == "__main__":
    STORED.write_text(json.dumps({repr(o): value(o) for o in ALL}, indent=1) + "\n")
