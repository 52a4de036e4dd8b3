"""A reward model's run says how good it is: accuracy by source, calibration, the pull of length."""

import json

import numpy as np
import pytest

from modeseek.config import load
from modeseek.record import read
from modeseek.rewards.assess import assess
from modeseek.rewards.model import RewardModel
from modeseek.runs import train


def test_a_run_is_assessed_on_its_held_out_pairs(tiny, fable_pairs, tmp_path):
    rows = [json.loads(line) for line in fable_pairs.read_text().splitlines()]
    told = tmp_path / "pairs.jsonl"
    told.write_text("".join(json.dumps(row | {"source": "ab"[i % 2]}) + "\n" for i, row in enumerate(rows)))
    words = {"model": tiny, "data": told, "eval_data": told, "output_dir": tmp_path / "run", "max_steps": 6}
    words |= {"max_length": 120, "max_completion_length": 60, "learning_rate": 1e-2, "prompts_per_round": 8}
    folder = train(load("reward_model", [w for k, v in words.items() for w in (f"--{k}", str(v))]))
    last = [row for row in read(folder).rows if "eval/ece" in row][-1]
    assert (last["eval/accuracy/a"] + last["eval/accuracy/b"]) / 2 == pytest.approx(last["eval/rewards/accuracies"])
    found = assessed(folder, told)
    assert last["eval/ece"] == pytest.approx(found.ece, abs=1e-5)
    assert last["eval/length_correlation"] == pytest.approx(found.length_correlation, abs=1e-5)
    assert last["eval/longer_preferred"] == pytest.approx(found.longer_preferred)


def assessed(folder, pairs):
    """The same from the saved model, without the run."""
    import torch

    from modeseek.data.files import load as records
    from modeseek.data.template import Template
    from modeseek.data.tokenise import tokenise

    model, template = RewardModel.load(str(folder / "model")), Template.load(str(folder / "model"))
    batch = tokenise(records(str(pairs)), template, max_length=120, responses="best_worst").prompts(slice(None))
    with torch.no_grad():
        return assess(model.score(batch).double().numpy(), batch.mask.sum(-1).numpy().astype(np.float64))
