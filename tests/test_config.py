import dataclasses
import typing

import pytest
import yaml

from modeseek.config import OTHERS, OnPolicy, Run, from_dict, load, names, over, read_tree, reward_tree, snake, to_dict
from modeseek.objectives import DPO, AnyObjective
from modeseek.rewards import Length


@pytest.mark.parametrize("cls", typing.get_args(AnyObjective))
def test_a_run_survives_the_round_trip_through_yaml(cls):
    run = Run(objective=cls(), source=OnPolicy(num_generations=3), reward=Length())
    assert from_dict(yaml.safe_load(yaml.safe_dump(to_dict(run)))) == run


@pytest.mark.parametrize("name", names())
def test_every_shipped_config_loads_and_survives_the_round_trip(name):
    run = load(name)
    assert run.method == name
    assert from_dict(yaml.safe_load(yaml.safe_dump(to_dict(run)))) == run


def test_a_flag_beats_the_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "objective: {type: dpo, beta: 0.3}\nsource: {type: on_policy, num_generations: 4}\nlearning_rate: 3e-4\n"
    )
    run = load(str(file), ["--objective.beta", "0.5", "--max_steps", "7", "--skip_bad_rows"])
    assert (run.objective.beta, run.source.num_generations, run.learning_rate) == (0.5, 4, 3e-4)
    assert run.max_steps == 7 and run.skip_bad_rows and run.method == "mine"


def test_flags_reach_the_parts_of_a_run():
    run = load("grpo", ["--reward", "length:prefer=shorter", "--lora.r", "8", "--report_to", "tensorboard"])
    assert run.reward == Length(prefer="shorter") and run.lora.r == 8 and run.report_to == ("tensorboard",)
    run = load("rloo", ["--stages.kl_shaped.beta", "0.2"])
    assert [s.options for s in run.stages if s.name == "kl_shaped"] == [{"beta": 0.2}]
    assert load("dpo", ["--lora", "true"]).lora.r == 16
    assert load("dpo", ["--columns", "{chosen: better}"]).columns == {"chosen": "better"}


MISTAKES = [
    ({"objective": {"type": "dpo", "betta": 1}}, r"run\.objective\.betta: no such key; did you mean beta"),
    ({"learning_rat": 1}, r"run\.learning_rat: .*did you mean learning_rate"),
    ({"objective": {"type": "dppo"}}, r"run\.objective\.type: 'dppo'; did you mean .*choose from"),
    ({"objective": {"beta": 1}}, r"expected keys with a `type`"),
    ({"max_steps": "ten"}, r"run\.max_steps"),
    ({"schedule": "cosin"}, r"schedule: 'cosin'; did you mean cosine"),
    ({"skip_bad_rows": "no"}, "expected true or false"),
    ({"stages": [{"kl_shaped": 3}]}, "stage"),
    ({"max_steps": 0}, "max_steps: 0, expected at least 1"),
    ({"objective": {"type": "dpo", "label_smoothing": 0.7}}, "label_smoothing: 0.7"),
    ({"objective": {"type": "with_kl", "inner": {"type": "ipo", "tau": 0.0}}}, r"tau: 0\.0, expected above 0"),
    ({"columns": "chosen"}, r"run\.columns"),
    ({"max_steps": 1.5}, r"1\.5, expected a whole number"),
    ({"seed": True}, "True, expected a whole number"),
    ({"mixture": [{"path": "a"}, {"path": "b", "wieght": 2}]}, r"run\.mixture\[1\]\.wieght: .*did you mean weight"),
    ({"reward": {"type": "lenght"}}, r"run\.reward\.type: 'lenght'; did you mean length"),
]


@pytest.mark.parametrize("tree, says", MISTAKES, ids=lambda x: str(x)[:40])
def test_a_mistake_is_named(tree, says):
    with pytest.raises(ValueError, match=says):
        from_dict(tree)


@pytest.mark.parametrize("key", OTHERS)
def test_the_keys_of_other_tools_are_answered_with_ours(key):
    assert key not in {f.name for f in dataclasses.fields(Run)}
    with pytest.raises(ValueError, match="write|leave|choose|there is no other|mixture"):
        from_dict({key: 1})
    with pytest.raises(ValueError, match="another tool's"):
        load("dpo", [f"--{key}", "1"])


def test_an_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean hypo"):
        load("hyppo")
    with pytest.raises(ValueError, match="no file nowhere.yaml"):
        load("nowhere.yaml")


def test_what_is_not_yaml_is_said(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("objective: {type: dpo\n")
    with pytest.raises(ValueError, match=r"bad\.yaml: not YAML"):
        read_tree(str(file))


def test_a_flag_that_is_not_yaml_is_named():
    for flag in ("--columns", "--lora.r", "--stages.kl_shaped.beta"):
        with pytest.raises(ValueError, match=f"{flag}: '\\[1' is not YAML"):
            load("rloo", [flag, "[1"])


def test_a_stage_that_the_method_lacks_cannot_be_told_anything():
    with pytest.raises(ValueError, match=r"stages.kl_shaped.beta: this method has no such stage; it has refer"):
        load("dpo", ["--stages.kl_shaped.beta", "1"])


def test_names_of_objectives():
    assert [snake(c) for c in (DPO,)] == ["dpo"]
    assert len({snake(c) for c in typing.get_args(AnyObjective)}) == len(typing.get_args(AnyObjective))


def test_another_type_is_put_in_whole():
    before = {"objective": {"type": "dpo", "beta": 0.1}, "x": 1}
    assert over(before, {"objective": {"type": "sft"}}) == {"objective": {"type": "sft"}, "x": 1}
    assert over(before, {"objective": {"beta": 2}}) == {"objective": {"type": "dpo", "beta": 2}, "x": 1}


@pytest.mark.parametrize(
    "spec, tree",
    [
        ("length:prefer=shorter,scale=-2", {"type": "length", "prefer": "shorter", "scale": -2}),
        ("regex:pattern=[Yy]es|*", {"type": "regex", "pattern": "[Yy]es|*"}),
        ("keyword:words=[please]", {"type": "keyword", "words": ["please"]}),
        ("{type: keyword, words: [please, thanks]}", {"type": "keyword", "words": ["please", "thanks"]}),
        ("judge:endpoint=http://a:1/v1,model=7,cache=", {"endpoint": "http://a:1/v1", "model": "7", "cache": ""}),
    ],
)
def test_a_reward_in_one_word_says_what_a_file_would(spec, tree):
    """The pattern of a regular expression is no YAML: [Yy] would be a list and * an alias."""
    assert reward_tree(spec) == {"type": spec.partition(":")[0]} | tree


@pytest.mark.parametrize(
    "spec, says",
    [
        ("keyword:words=[please,thanks]", r"thanks\]' in .*expected key=value .*words: \[please, thanks\]"),
        ("length:target=[3", "reward.target: not YAML"),
        ("{type: keyword", "reward: not YAML"),
    ],
)
def test_a_reward_that_is_not_one_is_named(spec, says):
    with pytest.raises(ValueError, match=says):
        reward_tree(spec)


@pytest.mark.parametrize(
    "lora, says",
    [
        ({"rank": 8}, "run.lora.rank: no such key; write r$"),
        ({"lora_dropout": 0.1}, "dropout is off"),
        ({"bias": 1}, "no such key; there are r, alpha, target_modules$"),
    ],
)
def test_an_adapters_key_of_another_tool_is_answered_with_ours(lora, says):
    with pytest.raises(ValueError, match=says):
        from_dict({"lora": lora})
