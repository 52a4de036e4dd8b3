"""Rounds: what they are told, what they leave, and that a kill changes nothing."""

import dataclasses
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from collect.stub import by_length, serving
from modeseek import estimate
from modeseek.collect import rounds as told
from modeseek.collect.iterate import Waiting, iterate, stopped
from modeseek.collect.judging import Judging, promotes, reward_of
from modeseek.collect.rounds import apply_flags, from_dict, names, read_tree, run_tree
from modeseek.collect.store import Store
from modeseek.commands.iterate import HELD_OUT, make_start
from modeseek.data import fables
from modeseek.data.files import load
from modeseek.report import rounds as page
from modeseek.rewards import JudgeFailed
from modeseek.runs import train

QUIET = Console(quiet=True)


@pytest.fixture(scope="session")
def start(tmp_path_factory, tiny) -> Path:
    """A model with prompts to collect for and others to judge on."""
    folder = tmp_path_factory.mktemp("rounds")
    (folder / "model").symlink_to(tiny)
    for name, places in (("prompts", fables.PLACES[:1]), ("held_out", fables.PLACES[1:2])):
        told = [fables.PROMPT.format(animal=animal, place=place) for place in places for animal in fables.ANIMALS]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": one}) + "\n" for one in told))
    return folder


@pytest.fixture
def untrained(monkeypatch):
    """A run that takes no step, for what surrounds the training."""
    copy = lambda run, **how: shutil.copytree(run.model, Path(run.output_dir) / "model")
    monkeypatch.setattr("modeseek.collect.iterate.train", copy)


def tree(start: Path, out: Path) -> dict:
    return {
        "model": str(start / "model"),
        "prompts": str(start / "prompts.jsonl"),
        "output_dir": str(out),
        "rounds": 2,
        "collect": {
            "prompts": 8,
            "num_generations": 3,
            "label": "length:unit=words,prefer=shorter",
            "chunk": 4,
            "max_length": 40,
            "max_completion_length": 16,
            "device": "cpu",
        },
        "train": {
            "method": "dpo",
            "max_steps": 2,
            "learning_rate": 1.0e-3,
            "eval_size": 2,
            "eval_steps": 0,
            "save_steps": 1,
            "prompts_per_round": 4,
            "truncate_responses": True,
            "self_test": False,
            "eval_prompts": 2,
        },
        "evaluate": {"prompts": str(start / "held_out.jsonl"), "samples": 2, "limit": 4},
        "promote": "always",
    }


@pytest.fixture
def rounds(start, tmp_path):
    return from_dict(tree(start, tmp_path / "out"))


def content(out: Path) -> dict[str, str]:
    """What must be the same: the store, and every round's data, weights and verdict."""
    with Store(out / "preferences.sqlite", must_exist=True) as store:
        found = {"store": store.digest()}
    for path in sorted(out.glob("round-*/run/model/model.safetensors")) + [out / "model" / "model.safetensors"]:
        found[str(path.relative_to(out))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(out.glob("round-*/round.json")):
        verdict = json.loads(path.read_text())
        found[str(path.relative_to(out))] = json.dumps({k: v for k, v in verdict.items() if k != "seconds"})
    return found


def test_rounds_leave_a_model_a_page_and_a_directory_each(rounds, tmp_path):
    out, rounds = tmp_path / "out", dataclasses.replace(rounds, keep="all")
    html = iterate(rounds, QUIET).read_text()
    assert "2 of 2 rounds done" in html and "<script" not in html
    assert (out / "model" / "model.safetensors").read_bytes() == (
        out / "round-2" / "run" / "model" / "model.safetensors"
    ).read_bytes()
    verdicts = page.read(out)
    assert [v["policy"] for v in verdicts] == [0, 1]  # the second round samples from the first's policy
    with Store(out / "preferences.sqlite") as store:
        writers = store.rows("select writer, count(*), max(step) from responses group by writer")
    assert writers == [("round 1", 24, 2), ("start", 24, None)]
    first, second = (load(str(out / f"round-{n}" / "data.jsonl")) for n in (1, 2))
    assert {r.source for r in first} == {"start"} and {r.source for r in second} == {"start", "round 1"}
    config = yaml.safe_load((out / "round-2" / "run" / "run.yaml").read_text())
    assert config["model"].endswith("round-1/run/model")
    names = {one["name"] for one in verdicts[1]["results"]}
    assert {"reward/difference", "win_rate", "kl", "first/win_rate"} <= names
    before = content(out)
    iterate(rounds, QUIET)  # everything is there
    assert content(out) == before


@pytest.mark.slow
def test_rounds_with_other_settings_are_refused_and_more_rounds_are_not(rounds, tmp_path, untrained):
    one = dataclasses.replace(rounds, rounds=1)
    iterate(one, QUIET)
    before = content(tmp_path / "out")
    with pytest.raises(ValueError, match="promote: .* says 'always' and now it is 'better'"):
        iterate(dataclasses.replace(one, promote="better"), QUIET)
    iterate(rounds, QUIET)
    assert {k: v for k, v in content(tmp_path / "out").items() if "round-1" in k}.items() <= before.items()
    assert (tmp_path / "out" / "round-2" / "round.json").is_file()


def test_rounds_stop_when_nothing_is_brought(rounds, tmp_path, monkeypatch, untrained):
    monkeypatch.setattr("modeseek.collect.judging.promotes", lambda *_: (False, "no"))
    iterate(dataclasses.replace(rounds, rounds=3), QUIET)
    assert [v["promoted"] for v in page.read(tmp_path / "out")] == [False]
    assert not (tmp_path / "out" / "model").exists()
    assert "No policy was promoted" in (tmp_path / "out" / "rounds.html").read_text()


def test_patience_lets_a_round_fail():
    said = lambda *promoted: [{"promoted": one} for one in promoted]
    rounds = lambda patience: told.Rounds(patience=patience)
    assert stopped(said(True, False), rounds(1)) and not stopped(said(True, False), rounds(2))
    assert stopped(said(True, False, False), rounds(2)) and not stopped([], rounds(1))


def test_people_are_waited_for(rounds, tmp_path, untrained):
    collect = dataclasses.replace(rounds.collect, label="people", select="random", overlap=0.0)
    measure = dataclasses.replace(rounds.evaluate, reward="length:unit=words")
    asked = dataclasses.replace(rounds, rounds=1, collect=collect, evaluate=measure)
    with pytest.raises(Waiting, match="8 labels are wanted; run `modeseek label"):
        iterate(asked, QUIET)
    with Store(tmp_path / "out" / "preferences.sqlite") as store:
        while (pair := store.next_pair("ann")) is not None:
            store.label(pair.pair_id, "ann", "a")
    iterate(asked, QUIET)
    assert page.read(tmp_path / "out")[0]["data"]["rows"] == 8
    record = load(str(tmp_path / "out" / "round-1" / "data.jsonl"))[0]
    assert record.meta["labelled_by"] == "ann"


def test_a_round_without_a_winner_trains_nothing(rounds, tmp_path):
    same = dataclasses.replace(rounds.collect, label="keyword:words=[nowhere]")
    iterate(dataclasses.replace(rounds, collect=same), QUIET)
    (verdict,) = page.read(tmp_path / "out")
    assert verdict["says"] == "nothing to learn from: no pair has a winner" and not verdict["promoted"]


@pytest.mark.slow
def test_best_of_n_trains_on_the_best_of_each_prompt(rounds, tmp_path, untrained):
    best = {**rounds.train, "method": "pref_ft"}
    iterate(dataclasses.replace(rounds, rounds=1, data="rated", train=best), QUIET)
    records = load(str(tmp_path / "out" / "round-1" / "data.jsonl"))
    assert len(records) == 8 and all(len(r.responses) == 3 for r in records)
    for record in records:
        assert record.rewards[0] == max(-len(str(x).split()) for x in record.responses)


@pytest.mark.slow
def test_a_round_can_look_at_its_data_before_it_trains(rounds, tmp_path, untrained):
    iterate(dataclasses.replace(rounds, rounds=1, diagnose=True), QUIET)
    (verdict,) = page.read(tmp_path / "out")
    assert {one["section"] for one in verdict["diagnosis"]} == {"on_policyness", "coverage", "risk"}
    known = {one["name"]: one for one in verdict["diagnosis"]}
    assert 0 <= known["pit/chosen"]["value"] <= 1 and known["pit/chosen"]["n"] > 1
    assert "What the data covered" in page.render(tmp_path / "out")


@pytest.mark.parametrize(("prefers", "promoted"), [("shorter", True), ("longer", False)])
def test_a_judge_compares_the_policies_with_each_other_and_never_over_its_budget(
    rounds, tmp_path, monkeypatch, untrained, prefers, promoted
):
    """A judge that goes by length labels and evaluates; the round's policy is the start, cut off after two tokens."""
    load = Judging.policy

    def cut(self, model, template):
        policy = load(self, model, template)
        policy.max_new = 2 if "round-1" in model else policy.max_new
        return policy

    monkeypatch.setattr(Judging, "policy", cut)
    with serving(lambda body: by_length(body, prefers)) as server:
        judge = {"type": "judge", "endpoint": server.url, "model": "m", "cache": str(tmp_path / "judge.sqlite")}
        label = judge | {"max_requests": 50, "backoff": 0.001}
        asked = dataclasses.replace(
            rounds, rounds=1, promote="better", collect=dataclasses.replace(rounds.collect, label=label)
        )
        with pytest.raises(JudgeFailed, match="raise it"):
            iterate(asked, QUIET)
        with pytest.raises(JudgeFailed, match="raise it"):
            iterate(asked, QUIET)
        assert len(server.asked) <= 50
        label["max_requests"] = 1000
        iterate(asked, QUIET)
        with Store(tmp_path / "out" / "preferences.sqlite") as store:
            assert store.rows("select account, requests from paid") == [("iterate", len(server.asked))]
    (verdict,) = page.read(tmp_path / "out")
    results = {one["name"]: one["value"] for one in verdict["results"]}
    assert verdict["promoted"] is promoted
    assert results["first/reward"] == pytest.approx(results["win_rate"], abs=1e-6)
    assert results["first/win_rate"] == results["win_rate"]
    assert (results["win_rate"] > 0.5) is promoted and results["first/reference/reward"] == 0.5


# What is told


def known(value, low, high, name):
    return estimate.Estimate(value=value, low=low, high=high, n=9, name=name, standard_error=0.1)


@pytest.mark.parametrize(
    ("rule", "gain", "low", "promoted"),
    [("better", 0.1, 0.4, True), ("better", -0.1, 0.6, False), ("significant", 0.1, 0.49, False)]
    + [("significant", 0.1, 0.51, True), ("always", -1.0, 0.1, True)],
)
def test_a_policy_is_promoted_by_the_rule_that_was_told(rule, gain, low, promoted):
    results = {
        "reward/difference": known(gain, gain - 1, gain + 1, "reward/difference"),
        "win_rate": known(0.6, low, 0.9, "win_rate"),
    }
    assert promotes(rule, results)[0] is promoted


def test_every_shipped_config_is_read_and_is_a_run():
    assert {"quick", "iterated_dpo", "iterated_best_of_n", "online_hypo"} <= set(names())
    from modeseek import config

    for name in names():
        made = from_dict(read_tree(name), name)
        run = config.from_dict(run_tree(made, {"model": "m", "data": "d", "output_dir": "o", "seed": 0}))
        assert run.max_completion_length == made.collect.max_completion_length


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"round": 3}, "did you mean rounds"),
        ({"train": {"method": "dpoo"}}, "expected one of"),
        ({"collect": {"seed": 1}}, "each round has its own"),
        ({"evaluate": {"sample": 1}}, "did you mean samples"),
        ({"promote": "maybe"}, "promote"),
        ({"rounds": 0}, "expected at least 1"),
        ({"start": "fables", "model": "m"}, "leave one of them out"),
    ],
)
def test_wrong_rounds_are_refused_in_the_user_s_words(change, message):
    with pytest.raises(ValueError, match=message):
        from_dict({"train": {"method": "dpo"}} | change)


def test_what_is_missing_is_said_before_anything_is_spent(rounds):
    for changes, message in (
        ({"prompts": ""}, "prompts: none given"),
        ({"evaluate": told.Measure()}, "name held-out prompts"),
        ({"collect": dataclasses.replace(rounds.collect, label="people")}, "evaluate.reward: none given"),
        ({"train": {"method": "dpo", "model": "x"}}, "train.model: each round has its own"),
        ({"train": {"method": "dpo", "lerning_rate": 1}}, "lerning_rate"),
    ):
        with pytest.raises(ValueError, match=message):
            iterate(dataclasses.replace(rounds, **changes), QUIET)


def test_a_reward_that_tells_no_policies_apart_is_refused(rounds):
    judge = {"type": "judge", "endpoint": "http://127.0.0.1:9/v1", "model": "m"}
    both = {"type": "ensemble", "members": [judge, {"type": "length"}]}
    for reward, message in ((both, "no number across policies"), (judge | {"cache": ""}, "reward.cache: found none")):
        with pytest.raises(ValueError, match=message):
            reward_of(dataclasses.replace(rounds, evaluate=dataclasses.replace(rounds.evaluate, reward=reward)))


def test_flags_reach_into_the_parts():
    tree, rest = apply_flags(
        {"train": {"method": "dpo", "objective": {"type": "dpo", "beta": 0.1}}, "collect": {"prompts": 3}},
        ["--train.objective.beta", "0.5", "--collect.label=length:prefer=shorter", "--rounds", "4"],
    )
    assert tree["train"]["objective"] == {"type": "dpo", "beta": 0.5}
    assert tree["collect"] == {"prompts": 3, "label": "length:prefer=shorter"}
    assert rest == ["--rounds", "4"]


# The page


def test_the_page_escapes_what_a_model_wrote(tmp_path):
    out = tmp_path / "<b>out"
    (out / "round-1").mkdir(parents=True)
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    results = [{"name": n, "value": 0.5, "low": 0.4, "high": None, "n": 9} for n in ("reward", "kl", "win_rate")]
    results += [{"name": f"first/{n}", "value": 0.5, "low": 0.4, "high": 0.6, "n": 9} for n in ("reward", "win_rate")]
    results.append({"name": "first/reference/reward", "value": -1.0, "low": -2, "high": 0, "n": 9})
    side = {"text": evil, "reward": 1.0}
    verdict = {
        "round": 1,
        "policy": 0,
        "collected": {"prompts": 2, evil: 3},
        "data": {"rows": 2},
        "promoted": True,
        "says": evil,
        "results": results,
        "samples": [{"prompt": evil, "before": side, "after": side}],
    }
    (out / "round-1" / "round.json").write_text(json.dumps(verdict))
    (out / "iterate.yaml").write_text(yaml.safe_dump({"rounds": 2, "model": evil}))
    html = page.write(out).read_text()
    assert "<script" not in html and "<img" not in html and "<b>" not in html and "&lt;script&gt;" in html
    assert "1 of 2 rounds done. Round 1&#39;s policy is the last" in html
    assert "from -1.00 at the start" in html


def test_a_page_before_the_first_round_is_over_says_so(tmp_path):
    (tmp_path / "iterate.yaml").write_text("rounds: 2")
    assert "No round is over yet." in page.write(tmp_path).read_text()


# Kills

KILLED = """
import sys, json
from modeseek.collect.rounds import from_dict
print("on", flush=True)
from modeseek.collect.iterate import iterate
from rich.console import Console
iterate(from_dict(json.loads(sys.argv[1])), Console(quiet=True))
"""


@pytest.mark.slow
def test_rounds_killed_at_random_moments_end_as_those_that_were_not(start, tmp_path):
    rng = np.random.default_rng(1)
    begin = lambda: subprocess.Popen(
        [sys.executable, "-c", KILLED, json.dumps(tree(start, tmp_path / "killed"))], stdout=subprocess.PIPE, text=True
    )
    for _ in range(3):
        process = begin()
        process.stdout.readline()
        time.sleep(rng.uniform(3.0, 7.0))  # most of it is the import
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = begin()
    process.communicate()
    assert process.returncode == 0
    iterate(from_dict(tree(start, tmp_path / "whole")), QUIET)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_cut_off_in_the_middle_of_training_goes_on(rounds, tmp_path, monkeypatch):
    """What a kill leaves between two checkpoints: the run's directory without its model."""
    out, one = tmp_path / "out", dataclasses.replace(rounds, rounds=1)
    iterate(one, QUIET)
    before = content(out)
    for path in ("model", "round-1/run/model", "round-1/run/checkpoints/step-00000002"):
        shutil.rmtree(out / path)
    (out / "round-1" / "round.json").unlink()
    resumed = []
    monkeypatch.setattr(
        "modeseek.collect.iterate.train", lambda run, **how: (resumed.append(how["resume"]), train(run, **how))
    )
    iterate(one, QUIET)
    assert resumed == [True]
    assert content(out) == before


@pytest.mark.slow
def test_the_start_that_is_made_on_the_spot_is_made_once(tmp_path):
    make_start(tmp_path / "start", seed=0, steps=1)
    before = (tmp_path / "start" / "model" / "model.safetensors").read_bytes()
    make_start(tmp_path / "start", seed=1, steps=1)
    assert (tmp_path / "start" / "model" / "model.safetensors").read_bytes() == before
    sizes = [len(load(str(tmp_path / "start" / name))) for name in ("prompts.jsonl", "held_out.jsonl")]
    assert sizes == [48 - HELD_OUT, HELD_OUT]
