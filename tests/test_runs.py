"""From a preference file to a model directory, through the command line's own functions."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file

from modeseek import checkpoint
from modeseek.build import build
from modeseek.cli import main
from modeseek.config import load
from modeseek.record import read
from modeseek.runs import train

SHORT = {
    "max_steps": 4,
    "prompts_per_round": 4,
    "max_length": 120,
    "max_completion_length": 60,
    "learning_rate": 1e-3,
    "eval_steps": 2,
    "eval_prompts": 3,
    "save_steps": 2,
}


def run_of(method, tiny, pairs, folder, **flags):
    words = {"model": tiny, "data": pairs, "output_dir": folder, **SHORT, **flags}
    if needs_reward(method):
        words.setdefault("reward", "length:prefer=shorter")
    return load(method, [w for key, value in words.items() for w in (f"--{key}", str(value))])


def needs_reward(method):
    return any("score" in str(stage) for stage in yaml.safe_load(_text(method)).get("stages", []))


def _text(method):
    from importlib import resources

    return resources.files("modeseek.configs").joinpath(f"{method}.yaml").read_text()


POLICIES = ["best_of_n", "dpo", "grpo", "hypo", "ipo", "online_dpo", "ppo", "pref_ft", "reinforce", "rloo", "rwr"]
POLICIES += ["hypo_rao_blackwell", "ppo_critic"]


@pytest.mark.parametrize("method", POLICIES)
def test_every_method_trains_a_transformers_model(method, tiny, fable_pairs, tmp_path):
    folder = train(run_of(method, tiny, fable_pairs, tmp_path / "run"))
    data = read(folder)
    steps = [row for row in data.rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in steps)
    last = [row for row in data.rows if "eval/kl" in row][-1]
    assert last["step"] == 4 and last["eval/logps/chosen"] < 0 and last["eval/logps/rejected"] < 0
    assert last["eval/kl"] != 0
    assert data.card["final"]["eval/kl"] == last["eval/kl"]
    assert (folder / "model" / "README.md").exists() and data.samples


def test_kto_learns_from_unpaired_labels(tiny, fable_pairs, tmp_path):
    """The labels of the file, not of a place in a pair: both kinds of response are in a run's first round."""
    rows = [json.loads(line) for line in fable_pairs.read_text().splitlines()]
    unpaired = tmp_path / "unpaired.jsonl"
    sides = [(row["prompt"], row[side], side == "chosen") for row in rows for side in ("chosen", "rejected")]
    text = [json.dumps({"prompt": p, "completion": c, "label": good}) for p, c, good in sides]
    unpaired.write_text("\n".join(text) + "\n")
    folder = train(run_of("kto", tiny, unpaired, tmp_path / "run", prompts_per_round=8))
    steps = [row for row in read(folder).rows if "loss" in row]
    assert len(steps) == 4 and steps[0]["loss"] == pytest.approx(0.5, abs=1e-5)


def test_a_reward_model_is_trained_by_the_same_command_and_scores_as_a_reward(tiny, fable_pairs, tmp_path):
    folder = train(
        run_of("reward_model", tiny, fable_pairs, tmp_path / "rm", max_steps=30, learning_rate=1e-2, eval_steps=10)
    )
    rows = [r for r in read(folder).rows if "loss" in r]
    assert rows[0]["loss"] == pytest.approx(0.693147, abs=1e-6) and rows[-1]["loss"] < 0.65
    flags = {"reward": f"model:path={folder / 'model'}"}
    parts = build(run_of("online_dpo", tiny, fable_pairs, tmp_path / "policy", **flags))
    batch = parts.train.prompts(torch.arange(3))
    own = parts.policy.sample(batch.prompt, batch.prompt_mask, 2, torch.Generator().manual_seed(0))
    assert parts.reward(own).shape == (3, 2) and parts.reward(own).std() > 0


def test_a_critic_learns_what_responses_are_worth(tiny, fable_pairs, tmp_path):
    """Every response is worth 1 (nothing is shorter than the limit of a rule that pays for ending nowhere)."""
    flags = {
        "reward": "keyword:words=[the],scale=1",
        "max_steps": 40,
        "learning_rate": 3e-3,
        "passes": 4,
        "minibatch": 4,
    }
    folder = train(run_of("ppo_critic", tiny, fable_pairs, tmp_path / "run", **flags))
    errors = [row["value_error"] for row in read(folder).rows if "value_error" in row]
    assert sum(errors[-5:]) < 0.5 * sum(errors[:5])


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize("method", ["dpo", "hypo", "ppo_critic"])
def test_a_run_stopped_and_resumed_is_the_run_that_was_not(method, tiny, fable_pairs, tmp_path):
    """Six steps at once, and three and three: weights and rows are the same to the last bit."""
    flags = {"save_steps": 3, "eval_steps": 3, "prompts_per_round": 6} | ({"minibatch": 2} if method != "hypo" else {})
    whole = train(run_of(method, tiny, fable_pairs, tmp_path / "whole", max_steps=6, **flags))
    train(run_of(method, tiny, fable_pairs, tmp_path / "parts", max_steps=3, **flags))
    parts = train(run_of(method, tiny, fable_pairs, tmp_path / "parts", max_steps=6, **flags), resume=True)
    a, b = weights(whole), weights(parts)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert [r for r in read(whole).rows] == [r for r in read(parts).rows]


def test_rows_and_samples_past_the_checkpoint_are_cut_away(tiny, fable_pairs, tmp_path):
    """As after a crash between two checkpoints: what was logged beyond the last one is written again, once."""
    flags = {"max_steps": 6, "save_steps": 3, "eval_steps": 3}
    whole = train(run_of("pref_ft", tiny, fable_pairs, tmp_path / "whole", **flags))
    parts = train(run_of("pref_ft", tiny, fable_pairs, tmp_path / "parts", **{**flags, "max_steps": 3}))
    with (parts / "rows.jsonl").open("a") as rows, (parts / "samples.jsonl").open("a") as samples:
        rows.write('{"step": 4, "loss": 99.0}\n{"step": 5, "loss"')
        samples.write('{"step": 4, "prompt": "p", "response": "r"}\n')
    train(run_of("pref_ft", tiny, fable_pairs, tmp_path / "parts", **flags), resume=True)
    assert read(parts).rows == read(whole).rows and read(parts).samples == read(whole).samples


def test_a_saved_model_says_what_the_trained_one_said(tiny, fable_pairs, tmp_path):
    from modeseek.build import build, load_policy
    from modeseek.data.template import Template

    run = run_of("dpo", tiny, fable_pairs, tmp_path / "run")
    folder = train(run)
    parts = build(run_of("dpo", tiny, fable_pairs, tmp_path / "other"))
    checkpoint.load_weights(checkpoint.weights(checkpoint.latest(folder / "checkpoints")), parts.loop.trainable)
    again = load_policy(str(folder / "model"), Template.load(str(folder / "model")), max_new=20)
    batch = parts.train.prompts(torch.arange(4))
    with torch.no_grad():
        assert torch.equal(parts.policy.logp(batch), again.logp(batch))
    texts = [
        p.sample(batch.prompt, batch.prompt_mask, 1, torch.Generator(), temperature=0.0).response[:, :, :15]
        for p in (parts.policy, again)
    ]
    assert torch.equal(*texts)


def test_an_adapter_trains_against_its_own_base(tiny, fable_pairs, tmp_path):
    folder = train(run_of("dpo", tiny, fable_pairs, tmp_path / "run", **{"lora.r": 4}))
    assert (folder / "model" / "adapter_config.json").exists()
    card = read(folder).card
    assert card["reference"] == "base with adapters off" and card["trained_parameters"] < card["parameters"] / 2
    assert card["self_test"]["reference_gap"] == 0
    assert abs(read(folder).rows[1]["loss"] - 0.6931) < 1e-3


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tiny, fable_pairs, tmp_path):
    """SIGKILL at three random moments, then to the end: the same weights as a run that was left alone."""
    flags = {"max_steps": 12, "save_steps": 1, "eval_steps": 4, "prompts_per_round": 6, "minibatch": 3}
    whole = train(run_of("dpo", tiny, fable_pairs, tmp_path / "whole", **flags))
    words = [sys.executable, "-m", "modeseek", "train", "dpo", "--model", str(tiny), "--data", str(fable_pairs)]
    words += ["--output_dir", str(tmp_path / "killed"), "--resume"]
    words += [w for key, value in {**SHORT, **flags}.items() for w in (f"--{key}", str(value))]
    rng = random.Random(0)
    first = [w for w in words if w != "--resume"]
    for attempt in range(3):
        process = subprocess.Popen(
            first if attempt == 0 else words,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        wait_for_checkpoint(tmp_path / "killed", process)
        time.sleep(rng.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = train(run_of("dpo", tiny, fable_pairs, tmp_path / "killed", **flags), resume=True)
    a, b = weights(whole), weights(finished)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert [r for r in read(whole).rows] == [r for r in read(finished).rows]
    assert not list((tmp_path / "killed" / "checkpoints").glob("draft-*"))


def wait_for_checkpoint(folder, process):
    """Until the process has written a checkpoint that was not there before."""
    before = set(checkpoint.listed(folder / "checkpoints"))
    end = time.time() + 60
    while time.time() < end and process.poll() is None:
        if set(checkpoint.listed(folder / "checkpoints")) - before:
            return
        time.sleep(0.01)


def test_the_best_checkpoint_is_what_is_saved(tiny, fable_pairs, tmp_path):
    flags = {"metric_for_best_model": "eval/logps/chosen", "max_steps": 6, "eval_steps": 1, "save_steps": 1}
    folder = train(run_of("pref_ft", tiny, fable_pairs, tmp_path / "run", save_total_limit=1, **flags))
    rows = {r["step"]: r["eval/logps/chosen"] for r in read(folder).rows if "eval/logps/chosen" in r}
    best = read(folder).card["best"]
    assert best["value"] == max(rows.values()) == rows[best["step"]]
    left = {p.name for p in checkpoint.listed(folder / "checkpoints")}
    assert left == {f"step-{best['step']:08d}", "step-00000006"}


def test_a_run_does_not_overwrite_another(tiny, fable_pairs, tmp_path):
    train(run_of("pref_ft", tiny, fable_pairs, tmp_path / "run"))
    with pytest.raises(ValueError, match="already holds a run.*--resume"):
        train(run_of("pref_ft", tiny, fable_pairs, tmp_path / "run"))
    with pytest.raises(ValueError, match="already holds a run"):  # said before a model is looked for
        train(run_of("pref_ft", "nowhere", fable_pairs, tmp_path / "run"))
    with pytest.raises(ValueError, match="resume: learning_rate was 0.001 and is now 0.01"):
        train(run_of("pref_ft", tiny, fable_pairs, tmp_path / "run", learning_rate=0.01), resume=True)
    with pytest.raises(ValueError, match="holds no run"):
        train(run_of("pref_ft", "nowhere", fable_pairs, tmp_path / "nothing"), resume=True)


def test_a_number_that_is_not_finite_stops_the_run_and_leaves_a_batch(tiny, fable_pairs, tmp_path, monkeypatch, capsys):
    from modeseek.policies.hf import HFPolicy

    real, calls = HFPolicy.logp, []

    def sometimes(self, batch):
        calls.append(1)
        logp = real(self, batch)
        return logp * float("nan") if len(calls) > 12 and logp.requires_grad else logp

    monkeypatch.setattr(HFPolicy, "logp", sometimes)
    monkeypatch.setattr(HFPolicy, "evaluate", None, raising=False)
    words = ["train", "pref_ft", "--model", str(tiny), "--data", str(fable_pairs), "--output_dir", str(tmp_path / "r")]
    words += [w for key, value in {**SHORT, "max_steps": 30, "save_steps": 1}.items() for w in (f"--{key}", str(value))]
    assert main(words) == 1
    assert "not finite" in capsys.readouterr().err
    assert (tmp_path / "r" / "not_finite.safetensors").exists()
    assert checkpoint.listed(tmp_path / "r" / "checkpoints")
    assert any("not finite" in w for w in read(tmp_path / "r").card["warnings"])


REFUSED = [
    ("offset_dpo", {}, "reads margin"),
    ("online_dpo", {}, "--reward"),
    ("online_dpo", {"reward": "model:path=/nowhere"}, "reward model: /nowhere is no folder with a model"),
    ("rloo", {"reward": "length", "source.temperature": 0.7}, "whole distribution"),
    ("rloo", {"reward": "length", "source.top_p": 0.9}, "whole distribution"),
    ("online_dpo", {"reward": "length", "source.num_generations": 1}, "at least 2"),
    ("dpo", {"load_in_4bit": True}, "add lora"),
    ("dpo", {"optim": "adamw_8bit"}, "needs a CUDA device"),
    ("dpo", {"max_completion_length": 200}, "max_completion_length: 200"),
    ("dpo", {"device": "cuda"}, "no CUDA device"),
    ("dpo", {"critic": "some_model"}, "reads no value"),
    ("hypo", {"minibatch": 2}, "at most 0 steps old"),
    ("dpo", {"model": "/nowhere"}, "model: /nowhere is no folder with a model"),
    ("dpo", {"objective.beta": -0.1}, "objective.beta: -0.1, expected at least 0"),
    (
        "rloo",
        {"reward": "length", "stages.kl_shaped.beta": "heavy"},
        "stages.kl_shaped.beta: 'heavy', expected a number",
    ),
    (
        "ppo_critic",
        {"reward": "length", "stages.gae.truncated": "end"},
        "stages.gae.truncated: 'end', expected one of boot",
    ),
    ("dpo", {"metric_for_best_model": "eval/nothing"}, "eval/nothing is not measured"),
]


@pytest.mark.parametrize("method, flags, says", REFUSED, ids=lambda x: str(x)[:50])
def test_what_cannot_be_honoured_is_refused(method, flags, says, tiny, fable_pairs, tmp_path, capsys):
    words = {"model": tiny, "data": fable_pairs, "output_dir": tmp_path / "run", **SHORT, **flags}
    words = [w for k, v in words.items() for w in ([f"--{k}"] if v is True else [f"--{k}", str(v)])]
    assert main(["train", method, *words]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "method, pairs, says",
    [
        ("kto", 5, r"row 11: found no label, expected one, since 10 of 15 rows have one"),
        ("dpo", 0, "labels, which dpo does not read"),
        ("pref_ft", 0, "labels, which pref_ft does not read"),
        ("reward_model", 0, "labels, which reward_model does not read"),
    ],
)
def test_labels_are_read_or_refused(method, pairs, says, tiny, fable_pairs, tmp_path):
    """A bad response that nobody calls bad would be learnt as a good one."""
    told = [json.loads(line) for line in fable_pairs.read_text().splitlines()[:15]]
    rows = [{"prompt": row["prompt"], "completion": row["rejected"], "label": False} for row in told[:10]]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *told[10 : 10 + pairs]]))
    with pytest.raises(ValueError, match=says):
        build(run_of(method, tiny, data, tmp_path / "run", eval_size=0))


def test_demonstrations_are_learnt_by_pref_ft_and_by_no_contrast(tiny, fable_pairs, tmp_path):
    told = [json.loads(line) for line in fable_pairs.read_text().splitlines()]
    data = tmp_path / "demonstrations.jsonl"
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in told]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs, alone = (build(run_of("pref_ft", tiny, path, tmp_path / "run")).train for path in (fable_pairs, data))
    first = [pairs.response[int(k)].tolist() for k in pairs.first[:-1]]
    assert [alone.response[k].tolist() for k in range(len(alone))] == first
    with pytest.raises(ValueError, match="single response: 38"):
        build(run_of("dpo", tiny, data, tmp_path / "run"))


def test_columns_with_other_names_are_the_same_data(tiny, fable_pairs, tmp_path):
    told = [json.loads(line) for line in fable_pairs.read_text().splitlines()]
    renamed, judged = tmp_path / "renamed.jsonl", tmp_path / "judged.jsonl"
    sides = lambda row: {"prompt": row["prompt"], "up": row["chosen"], "down": row["rejected"]}
    renamed.write_text("".join(json.dumps(sides(row)) + "\n" for row in told))
    judged.write_text("".join(json.dumps({**sides(row), "better": 0}) + "\n" for row in told))
    codes = {"response_a": "up", "response_b": "down", "winner": {"column": "better", "a": 0, "b": 1, "tie": 2}}
    part = {"path": str(judged), "columns": codes}
    mixed = tmp_path / "mixed.yaml"
    mixed.write_text(yaml.safe_dump({"extends": "dpo", "mixture": [part], "model": str(tiny), **SHORT}))
    flags = {"columns": "{chosen: up, rejected: down}"}
    expected, *found = (
        build(run).train
        for run in (
            run_of("dpo", tiny, fable_pairs, tmp_path / "run"),
            run_of("dpo", tiny, renamed, tmp_path / "run", **flags),
            load(str(mixed)),
        )
    )
    for other in found:
        assert (other.prompt.ids == expected.prompt.ids).all() and (other.response.ids == expected.response.ids).all()


def test_the_command_line_trains_evaluates_and_reports(tiny, fable_pairs, tmp_path, capsys):
    words = [w for key, value in SHORT.items() for w in (f"--{key}", str(value))]
    run = str(tmp_path / "run")
    assert main(["train", "hypo", "--model", str(tiny), "--data", str(fable_pairs), "--output_dir", run, *words]) == 0
    options = ["--reward", "length:prefer=shorter", "--limit", "5", "--max_completion_length", "20", "--json"]
    capsys.readouterr()
    assert main(["evaluate", run, "--against", str(tiny), "--prompts", str(fable_pairs), *options]) == 0
    found = {r["name"]: r for r in json.loads(capsys.readouterr().out)}
    assert found["kl"]["low"] <= found["kl"]["value"] <= found["kl"]["high"] and found["kl"]["n"] == 5
    assert read(run).results
    assert main(["report", run]) == 0
    assert "hypo" in (tmp_path / "run" / "report.html").read_text()
    assert main(["check", str(fable_pairs), "--model", str(tiny), "--json"]) == 0
    assert main(["objectives"]) == 0
    assert "hypo" in capsys.readouterr().out
