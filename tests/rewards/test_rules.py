import dataclasses
import json
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeseek.batch import Batch
from modeseek.rewards import JsonValid, Keyword, Length, Python, Regex, Reply, Table, build_reward, table
from modeseek.rewards.text import TextReward, by_tokens, flatten, replies
from modeseek.stages import score


class Letters:
    """Token 1 is "a", 2 is "b", and so on; 0 ends a text."""

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(96 + i) for i in ids if i)


@dataclasses.dataclass(frozen=True)
class Message:
    role: str
    content: str


def encode(text: str) -> list[int]:
    return [ord(c) - 96 for c in text]


def batch(*groups, finished=None):
    """Each group is a prompt and its responses, in letters."""
    made = Batch.of([encode(p) for p, *_ in groups], [[encode(r) + [0] for r in rs] for _, *rs in groups])
    return made if finished is None else made.fill(finished=torch.tensor(finished))


def reply(response="", prompt="", finished=True, tokens=0):
    return Reply(prompt, response, finished, tokens)


def said(config, text):
    return config(reply(text))


# Text


def test_every_response_is_read_with_its_prompt_and_absent_ones_are_none():
    rows = replies(batch(("hi", "ab", "c"), ("you", "d"), finished=[[True, False], [True, False]]), Letters())
    assert rows == [
        [Reply("hi", "ab", True, 3), Reply("hi", "c", False, 2)],
        [Reply("you", "d", True, 2), None],
    ]


def test_absent_responses_are_nan_and_no_rule_sees_them():
    reward = build_reward(Length(), Letters())(batch(("q", "ab", "c"), ("q", "abc")))
    assert reward[0].tolist() == [3, 2]
    assert reward[1, 0] == 4 and reward[1, 1].isnan()
    filled = score(build_reward(Length(), Letters()))(batch(("q", "ab", "c"), ("q", "abc")))
    assert filled["reward"].dtype == torch.float32


def test_a_cut_off_response_gets_what_unfinished_says_and_is_counted():
    cut = batch(("q", "ab", "abc"), finished=[[True, False]])
    as_it_stands = build_reward(Length(), Letters())
    assert as_it_stands(cut).tolist() == [[3, 4]]
    reward = build_reward(Length(unfinished=-5.0), Letters())
    assert reward(cut).tolist() == [[3, -5]]
    assert isinstance(reward, TextReward)
    assert reward.counts == {"scored": 2, "unfinished": 1}
    reward(cut)
    assert reward.counts == {"scored": 4, "unfinished": 2}


def test_prompts_are_read_as_they_stood_in_the_data_where_they_are_given():
    prompts = lambda b: ["What?", [Message("user", "Why?")]]
    rows = replies(batch(("q", "a"), ("q", "b")), Letters(), prompts)
    assert [group[0].prompt for group in rows if group[0]] == ["What?", "Why?"]
    with pytest.raises(ValueError, match="prompts: found 2 of them, expected one for each of the batch's 1"):
        replies(batch(("q", "a")), Letters(), prompts)


def test_prompts_are_known_by_their_tokens():
    prompts = by_tokens([(encode("q"), "What?"), ([0, 1], [Message("user", "Why?")])])
    both = Batch.of([[0, 1], encode("q")], [[[2]], [[3]]])
    assert [flatten(one) for one in prompts(both)] == ["Why?", "What?"]
    with pytest.raises(ValueError, match="prompts: the one of tokens"):
        prompts(Batch.of([[9]], [[[2]]]))


def test_a_conversation_is_flattened_with_its_roles():
    talk = [Message("system", "Be brief."), Message("user", "Why?")]
    assert flatten(talk) == "system: Be brief.\n\nuser: Why?"


def test_a_batch_without_prompts_has_no_rewards():
    assert build_reward(Length(), Letters())(batch(("q", "a")).prompts(slice(0, 0))).shape == (0, 1)


def test_a_reward_that_reads_text_needs_a_decoder():
    with pytest.raises(ValueError, match="Length reads text, but the policy has no tokenizer"):
        build_reward(Length())


# Length


def test_length_by_hand():
    one = reply("two words", tokens=4)
    assert Length()(one) == 4
    assert Length(unit="characters")(one) == 9
    assert Length(unit="words", prefer="shorter")(one) == -2
    assert Length(prefer="target", target=7, scale=0.5)(one) == -1.5  # 0.5 * -|4 - 7|
    assert Length(prefer="target", target=3)(one) == -1


def test_a_length_target_without_its_preference_is_refused_and_the_other_way_round():
    with pytest.raises(ValueError, match="reward.target: not set"):
        Length(prefer="target")
    with pytest.raises(ValueError, match="reward.target: found 3 with prefer: longer; write prefer: target"):
        Length(target=3)
    with pytest.raises(ValueError, match="reward.target: found -1"):
        Length(prefer="target", target=-1)


@given(st.integers(0, 500), st.integers(0, 500))
def test_no_length_beats_the_target(target, tokens):
    rule = Length(prefer="target", target=target)
    assert rule(reply(tokens=tokens)) <= rule(reply(tokens=target)) == 0


@pytest.mark.parametrize("scale", [0.0, math.nan, math.inf])
@pytest.mark.parametrize("kind", [Length, JsonValid, lambda scale: Keyword(("a",), scale=scale)])
def test_a_scale_that_silences_or_breaks_a_reward_is_refused(kind, scale):
    with pytest.raises(ValueError, match="reward.scale: found"):
        kind(scale=scale)


# Regex and keywords


def test_regex_matches_anywhere_or_counts_up_to_a_cap():
    assert said(Regex(r"\d+"), "a 12 b") == 1
    assert said(Regex(r"\d+"), "none") == 0
    assert said(Regex(r"\A\d"), "a 1") == 0
    assert said(Regex(r"\d", mode="count"), "1 2 3") == 3
    assert said(Regex(r"\d", mode="count", most=2, scale=-0.5), "1 2 3") == -1
    assert said(Regex("yes", ignore_case=True), "YES") == 1


def test_a_bad_pattern_is_named():
    with pytest.raises(ValueError, match=r"reward.pattern: '\(' is not a regular expression"):
        Regex("(")
    with pytest.raises(ValueError, match="write mode: count"):
        Regex("a", most=2)


def test_keywords_are_whole_words_up_to_a_cap():
    art = Keyword(("art", "c++"), most=None)
    assert said(art, "Art for art, not party or smart") == 2
    assert said(art, "c++ and C++.") == 2
    assert said(Keyword(("art",), whole_words=False), "party") == 1
    assert said(Keyword(("art",), ignore_case=False), "Art") == 0
    assert said(Keyword(("a", "b"), most=2), "a b a") == 2


def test_the_longest_keyword_is_found_first():
    assert said(Keyword(("not", "not good"), most=None), "it is not good") == 1


@pytest.mark.parametrize("words", [(), ("a", "")])
def test_keywords_must_be_there(words):
    with pytest.raises(ValueError, match="reward.words: found"):
        Keyword(words)


# JSON


VALUES = st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@settings(max_examples=40)
@given(st.recursive(VALUES, st.lists, max_leaves=5))
def test_what_json_writes_is_valid_and_stops_being_so_with_a_word_behind_it(value):
    text = json.dumps(value)
    assert said(JsonValid(), f"  {text}\n") == 1
    assert said(JsonValid(), f"{text} Done.") == 0


@pytest.mark.parametrize("text", ["", "NaN", "[Infinity]", "{'a': 1}", '{"a": 1', "[1,]", "[" * 100_000])
def test_what_is_not_json_is_worth_nothing(text):
    assert said(JsonValid(), text) == 0


def test_a_number_of_ten_thousand_digits_is_json():
    assert said(JsonValid(), "1" * 10_000) == 1


def test_json_must_be_of_the_kind_and_have_the_keys():
    rule = JsonValid(kind="object", keys=("a", "b"), scale=2.0)
    assert said(rule, '{"a": 1, "b": null, "c": 2}') == 2
    assert said(rule, '{"a": 1}') == 0
    assert said(rule, '["a", "b"]') == 0
    assert said(JsonValid(kind="array"), "[]") == 1
    with pytest.raises(ValueError, match="write kind: object"):
        JsonValid(keys=("a",))


def test_a_fence_is_allowed_where_asked():
    fenced = '```json\n{"a": 1}\n```'
    assert said(JsonValid(), fenced) == 0
    assert said(JsonValid(fenced=True), fenced) == 1
    assert said(JsonValid(fenced=True), '{"a": 1}') == 1


# Python functions

REWARDS = """
limit = 3
def vowels(prompt, response, finished):
    return sum(c in "aeiou" for c in response) - 10 * (not finished) + 100 * (prompt == "q")
def wrong(prompt): return 0
def nothing(prompt, response, finished): return None
def text(prompt, response, finished): return "3"
def nan(prompt, response, finished): return float("nan")
def breaks(prompt, response, finished): return {}["x"]
async def later(prompt, response, finished): return 0
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "mine.py").write_text(REWARDS)
    return str(tmp_path / "mine.py")


def test_a_function_of_a_file_is_called_with_prompt_response_and_finished(file):
    reward = build_reward(Python(f"{file}:vowels", scale=2.0), Letters())
    scores = reward(batch(("q", "ae", "b"), ("r", "aei", "o"), finished=[[True, False], [True, True]]))
    assert scores.tolist() == [[2 * 102, 2 * 90], [2 * 3, 2 * 1]]


def test_a_function_of_a_module_is_found_by_its_import_path(file, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    assert Python("mine:vowels")(reply("ae")) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine", "expected package.module:function or file.py:function"),
        ("{file}:", "expected package.module:function or file.py:function"),
        ("absent/mine.py:vowels", "there is no file absent/mine.py"),
        ("no_such_module:f", "importing no_such_module:f failed: ModuleNotFoundError"),
        ("{file}:vowel", "has no 'vowel'; its functions are .*vowels"),
        ("{file}:limit", "is a int, expected a function"),
        ("{file}:later", "is async"),
        ("{file}:wrong", r"called with \(prompt, response, finished\), which it does not take"),
    ],
)
def test_what_is_wrong_with_a_function_is_said_before_anything_is_scored(file, name, message):
    with pytest.raises(ValueError, match=message):
        build_reward(Python(name.format(file=file)), Letters())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "returned None, expected a number"),
        ("text", "returned '3', expected a number"),
        ("nan", "returned nan, expected a finite number"),
        ("breaks", "raised KeyError: 'x'; the prompt was 'q', the response 'abc', finished True"),
    ],
)
def test_what_a_function_does_wrong_is_said_with_the_response(file, name, message):
    with pytest.raises(ValueError, match=message):
        Python(f"{file}:{name}")(reply("abc", "q"))


def test_a_scored_rule_is_still_its_fields_alone(file):
    """A run card writes them out."""
    for rule in (Python(f"{file}:vowels"), Regex("a"), Keyword(("a",))):
        rule(reply("a"))
        assert vars(rule).keys() == {f.name for f in dataclasses.fields(rule)}


def test_a_file_may_define_dataclasses(tmp_path):
    lines = "from __future__ import annotations", "import dataclasses", "@dataclasses.dataclass", "class A:", "  x: int"
    (tmp_path / "own.py").write_text("\n".join([*lines, "def f(prompt, response, finished): return A(7).x"]))
    assert Python(f"{tmp_path / 'own.py'}:f")(reply()) == 7


def test_a_file_that_does_not_import_is_named(tmp_path):
    (tmp_path / "bad.py").write_text("import no_such_thing")
    with pytest.raises(ValueError, match="importing .*bad.py:f failed: ModuleNotFoundError"):
        Python(f"{tmp_path / 'bad.py'}:f").load()


# Tables


def bandit(contexts, actions):
    return Batch.of([[c] for c in contexts], [[[a] for a in group] for group in actions])


def test_a_table_is_looked_up_by_context_and_action():
    reward = build_reward(Table(((1.0, 2.0), (3.0, 4.0))))
    scores = reward(bandit([1, 0, 1], [[0, 1], [1, 1], [1]]))
    assert scores[:2].tolist() == [[3, 4], [2, 2]]
    assert scores[2, 0] == 4 and scores[2, 1].isnan()


def test_a_table_refuses_what_it_does_not_hold():
    reward = table(torch.tensor([[1.0, 2.0]]))
    with pytest.raises(ValueError, match="action 2 is outside the table, which has 2"):
        reward(bandit([0], [[2]]))
    with pytest.raises(ValueError, match="context 1 is outside the table, which has 1"):
        reward(bandit([1], [[0]]))
    with pytest.raises(ValueError, match="prompts of 1 tokens and responses of 2"):
        reward(Batch.of([[0]], [[[0, 1]]]))
    with pytest.raises(ValueError, match="expected rows of one length"):
        Table(((1.0,), (1.0, 2.0)))


def test_importing_rewards_loads_no_transformers():
    code = "import modeseek.rewards, sys; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
