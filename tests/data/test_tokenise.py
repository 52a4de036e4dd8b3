import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import shared
from modeseek.batch import Batch
from modeseek.data import files
from modeseek.data.groups import Groups
from modeseek.data.records import DataError, Message, Record
from modeseek.data.template import Template
from modeseek.data.tokenise import tokenise, tokenise_prompts
from small_tokenizers import (
    ALTERNATING,
    CHATML,
    PLAIN_END,
    THINKING,
    TRIMMING,
    WITH_BOS,
    byte_level,
    space_before,
    words,
)

TEMPLATES = {
    "bytes": Template(byte_level()),
    "bytes, pad is a token": Template(byte_level(pad="<|pad|>")),
    "bytes, bos added": Template(byte_level(bos="<|bos|>")),
    "bytes, space added": Template(byte_level(prefix_space=True)),
    "space before, bos is eos": Template(space_before()),
    "chatml": Template(byte_level(template=CHATML)),
    "bos in template and tokenizer": Template(byte_level(bos="<|bos|>", template=WITH_BOS)),
    "trimming": Template(byte_level(template=TRIMMING)),
    "no end in template": Template(byte_level(template=PLAIN_END)),
    "thinking": Template(byte_level(template=THINKING)),
    "chatml, set plain": Template(byte_level(template=CHATML), plain=True),
}
PLAIN = [name for name, template in TEMPLATES.items() if not template.chat]
CHAT = [name for name, template in TEMPLATES.items() if template.chat]
AWKWARD = st.one_of(
    st.sampled_from(
        ["foo", "bar", " ", "  ", "\n", "\n\n", "foo ", " bar", "天", "é\u0301", "🙂", "'", "'tis", ". ", "1", "\t"]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=8),
)
TEXTS = st.lists(AWKWARD, max_size=4).map("".join)
ENDS = st.sampled_from(["", "<|im_end|>", "<|im_end|>\n", "<s>", "<|im_end|><|im_end|>", " <s> "])
QUESTION = (Message("user", "what is it?"),)


@pytest.fixture(params=TEMPLATES)
def template(request):
    return TEMPLATES[request.param]


@given(name=st.sampled_from(PLAIN), prompt=TEXTS, response=TEXTS)
@settings(max_examples=100, deadline=None)
def test_prompt_and_response_tokens_spell_prompt_and_response(name, prompt, response):
    template = TEMPLATES[name]
    before, after = template.prompt_ids(prompt), template.response_ids(response, prompt)
    joined = template.decode([*before, *after])
    started = " " if name == "bytes, space added" and prompt and not prompt.startswith(" ") else ""
    if name == "space before, bos is eos" and not prompt:
        response = response.removeprefix(" ")  # its decoder takes the first space of a text away
    if name != "bytes, space added" or prompt:
        assert joined == started + prompt + response


@given(name=st.sampled_from(list(TEMPLATES)), prompt=TEXTS, response=TEXTS, end=ENDS)
@settings(max_examples=100, deadline=None)
def test_a_response_ends_once_whatever_the_row_or_the_template_put(name, prompt, response, end):
    template = TEMPLATES[name]
    ids = template.response_ids(response + end, prompt)
    assert ids[-1] == template.eos_id
    assert ids.count(template.eos_id) == 1


@given(name=st.sampled_from(list(TEMPLATES)), response=TEXTS)
@settings(max_examples=100, deadline=None)
def test_an_end_token_inside_a_response_is_ordinary_text(name, response):
    template = TEMPLATES[name]
    ids = template.response_ids(f"a{template.eos}b{response}c", QUESTION)
    assert ids.count(template.eos_id) == 1 and ids[-1] == template.eos_id


@given(name=st.sampled_from(PLAIN), prompt=TEXTS, response=TEXTS.filter(lambda x: x == x.rstrip()))
@settings(max_examples=100, deadline=None)
def test_an_end_written_by_the_row_adds_no_tokens(name, prompt, response):
    template = TEMPLATES[name]
    written = template.response_ids(response + template.eos, prompt)
    assert written == template.response_ids(response, prompt)


@given(name=st.sampled_from([n for n in CHAT if n != "thinking"]), prompt=TEXTS, response=TEXTS)
@settings(max_examples=100, deadline=None)
def test_a_chat_reads_as_its_template_renders_it(name, prompt, response):
    template = TEMPLATES[name]
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    rendered = template.tokenizer.apply_chat_template(turns, tokenize=False)
    ids = [*template.prompt_ids(prompt), *template.response_ids(response, prompt)]
    if template.template_ends_turn:
        assert template.show(ids) == rendered.rstrip("\n")
    else:  # the end follows the words, without the template's blank line
        assert template.show(ids) == rendered.removesuffix("\n\n") + template.eos


@given(name=st.sampled_from(list(TEMPLATES)), prompt=st.lists(TEXTS, min_size=1, max_size=3), bos=st.integers(0, 2))
@settings(max_examples=100, deadline=None)
def test_a_prompt_has_one_bos_at_most_and_is_never_empty(name, prompt, bos):
    template = TEMPLATES[name]
    first = (template.bos or "") * (0 if template.chat else bos)
    ids = template.prompt_ids(first + "".join(prompt))
    assert ids
    if template.bos_id is not None:
        assert ids.count(template.bos_id) <= 1


def test_an_empty_response_is_its_end_alone(template):
    ids = template.response_ids("", QUESTION)
    assert ids[-1] == template.eos_id
    assert template.decode(ids).strip() == ""  # one template here puts a space before every response
    assert TEMPLATES["bytes"].response_ids("", "q") == [TEMPLATES["bytes"].eos_id]


def test_the_end_adds_no_space():
    template = TEMPLATES["bytes"]
    [content], _ = template.encode_responses([" blue."])
    assert template.response_ids(" blue.", "The sky is") == [*content, template.eos_id]


def test_a_response_that_would_merge_with_its_prompt_keeps_its_own_tokens():
    template = TEMPLATES["bytes"]
    assert template.merges_boundary("foo", "bar")  # foobar is a token
    assert not template.merges_boundary("the sky", " is")
    assert template.decode(template.response_ids("bar", "foo")) == "bar"


def test_a_response_goes_on_without_the_space_that_a_tokenizer_puts_before_texts():
    template = TEMPLATES["space before, bos is eos"]
    tokens = template.tokenizer.convert_ids_to_tokens(template.response_ids("is blue", "the sky "))
    assert not tokens[0].startswith("▁")
    assert "".join(tokens) == "is▁blue<s>"


def test_messages_without_a_chat_template_are_an_hh_transcript():
    template = TEMPLATES["bytes"]
    prompt = (Message("system", "s"), Message("user", "q"), Message("assistant", ""), Message("user", "r"))
    ids = [*template.prompt_ids(prompt), *template.response_ids("a", prompt)]
    assert template.show(ids) == "\n\nSystem: s\n\nHuman: q\n\nAssistant:\n\nHuman: r\n\nAssistant: a<|im_end|>"


def test_a_string_prompt_is_the_user_s_message_in_a_chat():
    template = TEMPLATES["chatml"]
    assert template.prompt_ids("what is it?") == template.prompt_ids(QUESTION)
    assert template.show(template.prompt_ids(QUESTION)).endswith("<|im_start|>assistant\n")


def test_a_template_that_rewrites_its_prompt_leaves_the_response_as_given_and_is_counted():
    template = TEMPLATES["thinking"]
    response = "because</think>it is the sky, and blue"
    content, rewritten = template.response_text(response, QUESTION)
    assert (content, rewritten) == (response, True)
    shown = template.show([*template.prompt_ids(QUESTION), *template.response_ids(response, QUESTION)])
    assert shown.endswith("<|im_start|>assistant\n<think>\nbecause</think>it is the sky, and blue<|im_end|>")
    groups = tokenise([pair("q", "a", "b")], template)
    assert groups.counts["prompts_rewritten_by_template"] == 2
    assert template.describe()["rewrites_prompts"]
    assert not TEMPLATES["chatml"].describe()["rewrites_prompts"]


def test_a_conversation_that_the_template_refuses_is_dropped_and_counted():
    twice = (Message("user", "q"), Message("user", "r"))
    records = [pair("q", "a", "b"), Record(prompt=twice, responses=("a", "b"))]
    groups = tokenise(records, Template(byte_level(template=ALTERNATING)))
    assert groups.counts["dropped"] == {"refused by the chat template (turns must alternate)": 1}


def test_a_tokenizer_without_an_end_is_refused():
    with pytest.raises(ValueError, match="end token"):
        Template(words(eos=None))


def test_masked_and_unmasked_spans_are_shown():
    groups = tokenise([pair("q", "a", "b")], TEMPLATES["chatml"])
    assert groups.spans(0, 1) == [
        {"text": "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "in_loss": False},
        {"text": "b<|im_end|>", "in_loss": True},
    ]
    assert groups.texts(0)[1] == ["a", "b"]


# Budget: words() has one token a word, and no BOS


WORDS = Template(words())


def said(n: int, first: int = 0) -> str:
    return " ".join(f"w{first + i}" for i in range(n))


def pair(prompt, chosen, rejected, **more) -> Record:
    return Record(prompt=prompt, responses=(chosen, rejected), **more)


def lengths(groups: Groups):
    return groups.prompt.lengths.tolist(), groups.response.lengths.tolist()


def test_a_long_prompt_loses_its_left_side_for_both_responses():
    # 3 + 1 and 5 + 1 response tokens: of 12, 6 are left to a prompt of 10, which loses 4
    groups = tokenise([pair(said(10), said(3, 20), said(5, 30))], WORDS, max_length=12, min_prompt_length=4)
    assert lengths(groups) == ([6], [4, 6])
    assert groups.texts(0)[0] == said(6, 4)
    assert (groups.counts["prompts_truncated"], groups.counts["prompt_tokens_lost"]) == (1, 4)


def test_the_bos_stays_when_the_left_side_goes():
    template = TEMPLATES["bytes, bos added"]
    groups = tokenise([pair("the sky is blue. " * 9, "a", "b")], template, max_length=12)
    ids = groups.prompt[0].tolist()
    assert len(ids) == 10 and ids[0] == template.bos_id  # 12 less one letter and the end
    assert ids[1:] == template.prompt_ids("the sky is blue. " * 9)[-9:]


def test_a_pair_with_a_response_that_does_not_fit_is_dropped_and_counted():
    records = [pair(said(10), said(8), said(2)), pair(said(2), said(8, 10), said(2))]
    groups = tokenise(records, WORDS, max_length=12, min_prompt_length=4)  # 8 + 1 > 12 - 4, but 8 + 1 <= 12 - 2
    assert groups.counts["dropped"] == {"response too long": 1}
    assert groups.records == records[1:]
    assert lengths(groups) == ([2], [9, 3])


def test_a_cut_response_has_no_end_and_is_not_finished():
    records = [pair(said(10), said(8, 20), said(2, 30))]
    groups = tokenise(records, WORDS, max_length=12, min_prompt_length=4, truncate_responses=True)
    assert lengths(groups) == ([4], [8, 3])
    assert WORDS.eos_id not in groups.response[0] and groups.response[1][-1] == WORDS.eos_id
    assert groups.prompts(slice(None))["finished"].tolist() == [[False, True]]
    assert (groups.counts["responses_truncated"], groups.counts["response_tokens_lost"]) == (1, 1)


def test_a_completion_limit_counts_the_end():
    records = [pair("w1", said(3), said(2)), pair("w1", said(4), said(2))]
    assert tokenise(records, WORDS, max_completion_length=4).records == records[:1]


def test_of_a_rated_list_only_the_responses_that_do_not_fit_are_dropped():
    record = Record(prompt="w1", responses=(said(2), said(20), said(3)), rewards=(3.0, 2.0, 1.0))
    groups = tokenise([record], WORDS, max_length=10)
    assert lengths(groups) == ([1], [3, 4])
    assert groups.prompts(slice(None))["reward"].tolist() == [[3.0, 1.0]]
    assert groups.counts["responses_dropped"] == 1


@pytest.mark.parametrize("cut", [False, True])
def test_pairs_that_are_the_same_tokens_are_dropped_and_counted(cut):
    same, alike = pair("w1", "w2", "w2 "), pair("w1", said(20) + " w50", said(20) + " w51")
    groups = tokenise([same, alike, pair("w1", "w2", "w3")], WORDS, max_length=10, truncate_responses=cut)
    assert groups.counts["dropped"]["identical responses"] == 1 + cut
    assert len(groups) == 1


def test_ties_and_sides_of_different_prompts_are_dropped_and_counted():
    records = [pair("w1", "w2", "w3", tie=True), pair("w1", "w2", "w3", prompts_differ=True), pair("w1", "w2", "w3")]
    assert tokenise(records, WORDS).counts["dropped"] == {"tie": 1, "prompts differ": 1}
    assert len(tokenise(records, WORDS, ties="keep")) == 2


def test_rows_of_weight_zero_are_dropped_and_counted():
    """A minibatch of nothing else would divide by zero."""
    groups = tokenise([pair("w1", "w2", "w3", weight=0.0), pair("w1", "w2", "w3", weight=0.5)], WORDS)
    assert (len(groups), groups.counts["dropped"]) == (1, {"weight 0": 1})


def test_the_columns_that_nobody_read_are_named_where_no_row_has_a_response():
    with pytest.raises(DataError, match=r"no response: 1; columns not read: up\)"):
        tokenise([Record(prompt="w1", meta={"up": "w2"})], WORDS, responses="best_worst")


def test_empty_responses_are_kept_and_counted():
    groups = tokenise([pair("w1", "w2", ""), pair("w1", "", "w2")], WORDS)
    assert (len(groups), groups.counts["empty_responses"]) == (2, 2)


def test_a_group_can_be_reduced_to_its_ends_or_its_prompt():
    record = Record(prompt="w1", responses=("w2", "w3", "w4"), rewards=(5.0, 4.0, 1.0))
    bad = Record(prompt="w1", responses=("w2",), labels=(False,))
    best, ends, none = (tokenise([record, bad], WORDS, responses=how) for how in ("best", "best_worst", "none"))
    assert (best.texts(0)[1], best.counts["dropped"]) == (["w2"], {"labelled bad": 1})
    assert (ends.texts(0)[1], ends.counts["dropped"]) == (["w2", "w4"], {"single response": 1})
    assert ends.prompts(slice(None))["margin"].tolist() == [4.0]  # 5 - 1
    assert [none.texts(i)[1] for i in (0, 1)] == [[], []]


def test_limits_that_cannot_be_honoured_are_refused():
    small, records = Template(words(context=8)), [pair("w1", "w2", "w3")]
    assert tokenise(records, small).counts["max_length"] == 8
    assert tokenise(records, WORDS).counts["max_length"] == 1024
    for limits, named in (
        ({"max_length": 9}, "max_length: 8"),
        ({"max_length": 1}, "max_length"),
        ({"max_completion_length": 8}, "max_completion_length"),
        ({"min_prompt_length": 8}, "min_prompt_length"),
    ):
        with pytest.raises(ValueError, match=named):
            tokenise(records, small, **limits)
    with pytest.raises(DataError, match="response too long: 1"):
        tokenise([pair("w1", said(20), "w2")], small)


# Groups


def test_a_batch_of_groups_is_the_batch_of_their_tokens():
    rng = np.random.default_rng(0)
    sizes = [2, 1, 3, 0, 2]
    rows = [
        Record(
            prompt=said(int(rng.integers(1, 6))),
            responses=tuple(said(int(rng.integers(1, 7)), 9 * k) for k in range(size)),
            weight=float(i + 1),
            row=i,
        )
        for i, size in enumerate(sizes)
    ]
    groups = tokenise(rows, WORDS)
    for index in (torch.tensor([4, 0, 2]), torch.tensor([True, False, True, True, False]), slice(1, 4), slice(3, 4)):
        places = torch.arange(5)[index].tolist()
        made = groups.prompts(index)
        expected = Batch.of(
            [WORDS.prompt_ids(rows[i].prompt) for i in places],
            [[WORDS.response_ids(one, rows[i].prompt) for one in rows[i].responses] for i in places],
            weight=[rows[i].weight for i in places],
            row=torch.tensor(places),
            finished=made.present,
        )
        assert made.tensors().keys() == expected.tensors().keys()
        for name, tensor in expected.tensors().items():
            assert torch.equal(made.tensors()[name], tensor) and made.tensors()[name].dtype == tensor.dtype, name


def test_columns_are_there_where_every_row_has_them():
    rated = Record(prompt="w1", responses=("w2", "w3", "w4"), rewards=(3.0, 2.0, 1.0))
    scored = pair("w1", "w2", "w3", rewards=(5.0, 4.0), margin=1.0)
    batch = tokenise([rated, scored], WORDS).prompts(slice(None))
    assert "margin" not in batch
    assert batch["reward"][0].tolist() == [3, 2, 1] and batch["reward"][1, :2].tolist() == [5, 4]
    assert batch["reward"][1, 2].isnan()  # no third response
    assert batch["reward"].dtype == torch.float32
    labelled = tokenise([Record(prompt="w1", responses=("w2",), labels=(x,)) for x in (True, False)], WORDS)
    assert labelled.prompts(slice(None))["label"].tolist() == [[True], [False]]
    assert tokenise([scored], WORDS).prompts(slice(None))["margin"].tolist() == [1.0]
    assert set(tokenise([pair("w1", "w2", "w3")], WORDS).prompts(slice(None)).columns) == {"row", "finished"}


def test_a_row_of_a_batch_leads_to_its_record():
    records = [pair("w1", "w2", "w2"), pair("w1", "w2", "w3", source="f", row=9)]
    groups = tokenise(records, WORDS)
    [row] = groups.prompts(slice(None))["row"].tolist()
    assert (groups.records[row].source, groups.records[row].row) == ("f", 9)


def test_prompts_alone_have_room_for_an_answer():
    groups = tokenise_prompts([said(10), QUESTION], WORDS, max_length=12, max_completion_length=5)
    batch = groups.prompts(slice(None))
    assert batch.response.shape == (2, 0, 0)
    assert groups.prompt.lengths[0] == 7  # 12 - 5
    assert groups.texts(0)[0] == said(7, 3)


def test_left_padding_and_masks_come_from_lengths_where_bos_eos_and_pad_are_one_token():
    tokenizer = space_before()
    tokenizer.pad_token = tokenizer.eos_token
    template = Template(tokenizer)
    batch = tokenise([pair("the sky", "is", "is blue"), pair("it", "foo", "bar")], template).prompts(slice(None))
    assert (batch.prompt[batch.prompt_mask] == template.eos_id).sum() == 2  # each BOS counts
    for p, k in itertools.product(range(2), range(2)):
        assert batch.response[p, k][batch.mask[p, k]][-1] == template.eos_id


# The real model and real files


def test_the_small_real_model_reads_prompt_and_response_as_they_are():
    template = Template.load(str(shared("models/stories260k")))
    ids = [*template.prompt_ids("Once upon a"), *template.response_ids(" time, there was", "Once upon a")]
    assert ids == [*template.tokenizer("Once upon a time, there was")["input_ids"], template.eos_id]
    assert (template.context, template.bos_id, template.eos_id) == (512, 1, 1)


@pytest.mark.slow
def test_rows_of_hh_fit_the_small_real_model_or_are_counted():
    template = Template.load(str(shared("models/stories260k")))
    records = files.load(shared("data/hh_rlhf_harmless_test/harmless-base_test.jsonl.gz"))
    groups = tokenise(records, template, min_prompt_length=256)
    assert groups.counts["kept"] + sum(groups.counts["dropped"].values()) == 2312
    assert groups.counts["dropped"]["prompts differ"] == 5
    batch = groups.prompts(slice(None))
    assert int((batch.prompt_mask.sum(1)[:, None] + batch.mask.sum(2)).max()) == 512
    last = batch.mask.sum(2) - 1
    assert (batch.response.gather(2, last[..., None]) == template.eos_id).all()
    assert ((batch.response == template.eos_id) & batch.mask).sum(2).eq(1).all()
