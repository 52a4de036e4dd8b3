"""A race on a tiny model that is cut off and begun again: nothing is trained or paid for twice."""

import json
from typing import Any

import pytest
import torch

from modeseek.advise.candidates import Setup
from modeseek.advise.methods import ARMS
from modeseek.advise.prior import Prior
from modeseek.advise.problem import meet
from modeseek.advise.trial import run_race

LIMITS: dict[str, Any] = {"max_length": 120, "max_completion_length": 40}


class Cut(BaseException):
    """The process dies."""


class Judge:
    """Prefers short answers; dies after so many readings."""

    def __init__(self, life: int):
        self.life, self.asked = life, 0

    def __call__(self, batch):
        if self.asked == self.life:
            raise Cut
        self.asked += 1
        return -batch.mask.sum(-1).to(torch.float32)


@pytest.mark.slow
def test_a_race_that_is_cut_off_goes_on_where_it_stopped(tiny, fable_pairs, tmp_path):
    problem = meet(str(tiny), str(fable_pairs), None, prompts=12, samples=2, **LIMITS)
    setup = Setup(
        model=str(tiny),
        data=str(fable_pairs),
        reward="",
        held_out=0.2,
        learning_rate=1e-2,
        lora=0,
        device="cpu",
        **LIMITS,
    )
    arms = [arm for arm in ARMS if arm.name in ("sft 1", "dpo 0.1")]
    said = list[str]()

    def race(judge):
        said.clear()
        told: dict[str, Any] = {"steps": 2, "labels": 14, "hours": 1.0, "prompts": 6, "tell": said.append}
        return run_race(problem, arms, setup, judge, Prior.load(), tmp_path, **told)

    first, second = Judge(life=3), Judge(life=1000)
    with pytest.raises(Cut):
        race(first)
    assert sum(line.startswith("training") for line in said) == 2
    rungs = race(second)
    assert not any("2 steps" in line for line in said)  # the first rung's models are there
    assert first.asked + second.asked == sum(rung.labels for rung in rungs) == 14
    lines = [tuple(json.loads(line)[:3]) for line in (tmp_path / "rung-0" / "labels.jsonl").read_text().splitlines()]
    assert len(lines) == len(set(lines)) == 7  # no answer is read twice
    third = Judge(life=0)
    again = race(third)
    assert third.asked == 0 and [r.standings for r in again] == [r.standings for r in rungs]
