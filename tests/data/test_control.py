"""Control words stand before the prompt: of the label in training, of good wherever a prompt is answered."""

import json

import pytest
import torch

from modeseek.build import build
from modeseek.config import load
from modeseek.data.control import by_label, put_before
from modeseek.data.fables import ANIMALS
from modeseek.data.records import DataError, Message, Record
from modeseek.data.template import Template
from modeseek.runs import train
from small_tokenizers import CHATML, byte_level

GOOD, BAD = "soup ", "friends "


def test_words_go_before_what_the_user_says_first():
    assert put_before("<good> ", "what is it?") == "<good> what is it?"
    turns = (Message("system", "be brief"), Message("user", "hello"), Message("user", "again"))
    assert [m.content for m in put_before("+", turns)] == ["be brief", "+hello", "again"]
    assert put_before("", turns) is turns


def test_a_pair_becomes_a_good_and_a_bad_record():
    pair = Record(prompt="q", responses=("a", "b", "c"), rewards=(3.0, 2.0, 1.0), row=4)
    unpaired = Record(prompt="p", responses=("x",), labels=(False,))
    found = by_label([pair, unpaired], GOOD, BAD)
    assert [(r.prompt, r.responses, r.labels) for r in found] == [
        ("soup q", ("a",), (True,)),
        ("friends q", ("c",), (False,)),
        ("friends p", ("x",), (False,)),
    ]
    tie = Record(prompt="q", responses=("a", "b"), tie=True)
    assert by_label([tie], GOOD, BAD) == [tie]
    with pytest.raises(DataError, match="row 7: one response without a label"):
        by_label([Record(prompt="q", responses=("a",), row=7)], GOOD, BAD)


@pytest.mark.parametrize("chat", [None, CHATML])
def test_a_template_is_saved_with_the_words_and_writes_them_once(chat, tmp_path):
    plain = Template(byte_level(template=chat))
    told = plain.steered("+ ")
    told.tokenizer.save_pretrained(tmp_path)
    again = Template.load(str(tmp_path))
    for prompt in ("what?", (Message("user", "what?"),)):
        assert told.prompt_text(prompt) == plain.prompt_text(put_before("+ ", prompt)) == again.prompt_text(prompt)
        assert again.response_ids("it", prompt) == plain.response_ids("it", prompt)
        assert not again.response_text("it", prompt)[1]  # the template is not thought to rewrite its prompt
    assert plain.prefix == "" and "+" not in plain.prompt_text("what?")


@pytest.fixture
def told(tiny, tmp_path):
    """Questions about eight animals, five times each, with one good and one bad answer."""
    rows = [{"prompt": f"the {who}", "chosen": "warm soup", "rejected": "many friends"} for who in ANIMALS * 5]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = {"model": tiny, "data": data, "output_dir": tmp_path / "run", "control_good": GOOD, "control_bad": BAD}
    words |= {"max_length": 60, "max_completion_length": 10, "max_steps": 40, "prompts_per_round": 8, "eval_steps": 0}
    return words | {"learning_rate": 3e-2, "eval_size": 2}


def run_of(words, method="binary_feedme_control"):
    return load(method, [w for key, value in words.items() for w in (f"--{key}", str(value))])


def test_training_says_the_label_and_answering_asks_for_good(told):
    parts = build(run_of(told))
    shown = {parts.train.texts(i)[0].split()[0]: parts.train.texts(i)[1] for i in range(len(parts.train))}
    assert set(shown) == {"soup", "friends"}
    assert parts.train.counts["kept"] == 70  # two responses of each of 35 pairs: one animal is held out
    assert {parts.held_out.texts(i)[0].split()[0] for i in range(len(parts.held_out))} == {"soup"}


def test_after_training_the_words_decide_and_the_model_is_saved_with_good(told):
    folder = train(run_of(told))
    template = Template.load(str(folder / "model"))
    assert template.prefix == GOOD
    from modeseek.build import load_policy
    from modeseek.data.tokenise import tokenise

    policy = load_policy(str(folder / "model"), template, max_new=10)
    records = [Record(prompt=f"the {who}", responses=("warm soup", "many friends")) for who in ANIMALS]
    with pytest.raises(ValueError, match="with 'soup ' before every prompt, and here prompts begin with ''"):
        load_policy(str(folder / "model"), template.steered(""), max_new=10)
    with torch.no_grad():
        good, bad = (
            policy.logp(tokenise(records, template.steered(words)).prompts(slice(None))).sum(-1).exp().mean(0)
            for words in (GOOD, BAD)
        )
    assert good[0] > 0.8 and bad[1] > 0.8


@pytest.mark.parametrize(
    ("method", "change", "match"),
    [
        ("dpo", {}, "they are for sft"),
        ("binary_feedme_control", {"control_bad": ""}, "both are needed"),
        ("binary_feedme_control", {"control_bad": GOOD}, "expected other words"),
        ("binary_feedme_control", {"control_good": "<good> ", "control_bad": "<bad> "}, "as the same tokens"),
    ],
)
def test_words_that_nothing_would_hear_are_refused(told, method, change, match):
    with pytest.raises(ValueError, match=match):
        build(run_of({**told, **change}, method))
