"""A save that is cut off at any point leaves the last good checkpoint, and nothing that looks like a newer one."""

import copy
import os

import pytest
import torch

from modeseek import checkpoint
from modeseek.batch import Batch
from modeseek.objectives import SFT
from modeseek.policies.gpt import gpt_policy
from modeseek.sources import offline
from modeseek.train import Loop, Steps, run


def loop(seed=0, steps=6):
    torch.manual_seed(seed)
    data = Batch.of([[1], [2], [3]], [[[4, 0]], [[5, 0]], [[6, 7, 0]]])
    return Loop(gpt_policy(11, eos=0, max_new=3, width=16), SFT(), offline(data, 2), [], Steps(max_steps=steps))


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class Crash(Exception):
    pass


@pytest.mark.parametrize("at", ["write_text", "fsync", "rename"])
def test_a_save_that_is_cut_off_does_not_count(at, tmp_path, monkeypatch):
    now = loop()
    now.advance()
    good = checkpoint.save(tmp_path, now)
    now.advance()

    def crash(*args, **kwargs):
        raise Crash

    with monkeypatch.context() as broken:
        if at == "write_text":
            broken.setattr("pathlib.Path.write_text", crash)
        else:
            broken.setattr(os, at, crash)
        with pytest.raises(Crash):
            checkpoint.save(tmp_path, now)
    assert checkpoint.latest(tmp_path) == good
    again = loop(seed=1)
    checkpoint.restore(good, again)
    assert again.step == 1
    checkpoint.save(tmp_path, now)
    assert not list(tmp_path.glob("draft-*")) and len(checkpoint.listed(tmp_path)) == 2


def test_what_is_restored_is_what_was_saved(tmp_path):
    now = loop()
    for _ in range(3):
        now.advance()
    path = checkpoint.save(tmp_path, now)
    again = loop(seed=5)
    checkpoint.restore(path, again)
    assert torch.equal(weights(again.model), weights(now.model))
    run(now)
    run(again)
    assert torch.equal(weights(again.model), weights(now.model)) and again.step == 6


def test_the_newest_are_kept_and_the_best(tmp_path):
    now = loop()
    best = None
    for step in range(1, 6):
        now.advance()
        path = checkpoint.save(tmp_path, now, keep=2, never_delete=best)
        best = best or path
        assert path.name == f"step-{step:08d}"
    assert [p.name for p in checkpoint.listed(tmp_path)] == [f"step-{s:08d}" for s in (1, 4, 5)]


def test_other_parameters_are_refused(tmp_path):
    now = loop()
    now.advance()
    path = checkpoint.save(tmp_path, now)
    other = loop()
    other.trainable.pop("model.head.weight")
    with pytest.raises(ValueError, match=r"other parameters than this run: model\.head\.weight"):
        checkpoint.restore(path, other)
    assert copy.copy(checkpoint.weights(path)).keys() == now.trainable.keys()
