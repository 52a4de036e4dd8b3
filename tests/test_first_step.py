"""What a config lacks is named before a model is loaded, and what its data lack before anything is computed."""

import json
from dataclasses import replace

import pytest

from modeseek.batch import NotFilled
from modeseek.build import build
from modeseek.build.first_step import rehearse
from modeseek.config import OnPolicy, from_dict, load, names


@pytest.mark.parametrize("name", names())
def test_every_shipped_method_takes_its_first_step(name):
    rehearse(load(name))


REF = r"log pi_ref\(y_t\) of the frozen reference, in nats"
LACKING = [
    ({"stages": []}, rf"^stages: DPO reads ref_logp, .*{REF}, which no stage.*; moving_reference or refer would$"),
    (
        {"source": {"type": "on_policy"}, "stages": ["best_worst", "refer"]},
        r"^stages: stages.best_worst reads reward, .*; score would$",
    ),
    (
        {"objective": {"type": "policy_gradient"}, "source": {"type": "on_policy"}, "stages": ["score"]},
        r"PolicyGradient reads advantage.*; greedy_baseline or group_mean or leave_one_out or no_baseline or running",
    ),
    ({"objective": {"type": "kto"}, "stages": ["label_pairs", "refer"]}, r"KTO reads z0.*; mismatched_kl would$"),
    (
        {"objective": {"type": "ppo"}, "source": {"type": "on_policy"}},
        r"PPO reads advantage.*; no stage alone would; `modeseek obj",
    ),
    (
        {
            "objective": {"type": "ppo", "logp_reduction": "minibatch_mean"},
            "source": {"type": "on_policy"},
            "stages": ["score", "recall", "group_mean"],
        },
        "minibatch_mean reads token_share: add share_tokens to before",
    ),
]


@pytest.mark.parametrize("tree, says", LACKING, ids=lambda x: str(x)[:60])
def test_a_stage_that_is_missing_is_named_with_those_that_would_do(tree, says):
    run = from_dict({"model": "a folder that is not there", "data": "neither", "reward": "length", **tree})
    with pytest.raises(ValueError, match=says):
        build(run)


def test_stages_in_the_wrong_order_are_named():
    run = load("rloo", ["--model", "nowhere", "--data", "nowhere", "--reward", "length"])
    at = {spec.name: spec for spec in run.stages}
    swapped = tuple(at[name] for name in ("score", "recall", "kl_shaped", "refer", "leave_one_out"))
    with pytest.raises(ValueError, match=r"^stages: stages.kl_shaped reads ref_logp.*; .*refer.* would$"):
        build(replace(run, stages=swapped))


def told(pairs, folder, **more):
    """The flags of a run on a few fables, with more columns in each row."""
    path = folder / "pairs.jsonl"
    rows = [json.loads(line) | more for line in pairs.read_text().splitlines()[:12]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--data", str(path), "--eval_size", "0", "--max_length", "120", "--max_completion_length", "60"]


def test_what_the_data_lack_is_named_as_theirs(tiny, fable_pairs, tmp_path):
    run = load("offset_dpo", ["--model", str(tiny), *told(fable_pairs, tmp_path)])
    with pytest.raises(ValueError, match="^data: offset_dpo reads margin.*, which these data do not have$"):
        build(run)
    build(replace(run, data=told(fable_pairs, tmp_path, margin=1.5)[1]))


def test_a_margin_that_a_stage_fills_need_not_be_in_the_data(tiny, fable_pairs, tmp_path):
    """Own samples have the gap of their rewards: best_worst fills it."""
    run = load("offset_dpo", ["--model", str(tiny), "--reward", "length", *told(fable_pairs, tmp_path)])
    stages = load("online_dpo").stages
    assert build(replace(run, source=OnPolicy(), stages=stages)).loop.stages


def test_a_round_that_outlives_its_samples_is_refused_before_the_model_answers(tiny, fable_pairs, tmp_path):
    """HyPO's samples are of age 0: two minibatches of a round are one too many."""
    words = ["--model", str(tiny), "--minibatch", "2", "--prompts_per_round", "4", *told(fable_pairs, tmp_path)]
    with pytest.raises(ValueError, match="at most 0 steps old"):
        build(load("hypo", words))


def test_a_column_that_nobody_filled_is_a_key_and_a_value_that_is_wrong():
    error = NotFilled("reward", "stages.best")
    assert isinstance(error, KeyError) and isinstance(error, ValueError)
    assert str(error).startswith("stages.best reads reward, [P, K] what a reward said")
