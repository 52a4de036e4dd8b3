import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import reference_cases, shared
from modeseek.data import files
from modeseek.data.columns import unpair
from modeseek.data.records import DataError, Message, normalise, text
from modeseek.data.shapes import parse
from modeseek.data.transcripts import extract_prompt

USER, REPLY = Message("user", "q"), Message("assistant", "a")
TURN, ANSWER, WORSE = (
    {"role": role, "content": content} for role, content in (("user", "q"), ("assistant", "a"), ("assistant", "b"))
)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [TURN], "chosen": [ANSWER], "rejected": [WORSE]},
        {"prompt": [TURN], "chosen": ANSWER, "rejected": WORSE},
        {"prompt": [TURN], "chosen": "a", "rejected": "b"},
        {"messages": [TURN], "chosen": "a", "rejected": "b"},
        {"chosen": [TURN, ANSWER], "rejected": [TURN, WORSE]},
        {"prompt": "q", "chosen": [TURN, ANSWER], "rejected": [TURN, WORSE]},
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": "a", "rejected": "b"},
        {"prompt": [TURN], "response_a": "b", "response_b": "a", "winner": "model_b"},
    ],
)
def test_one_conversational_pair_in_many_spellings_is_one_record(row):
    record = parse(row)
    assert record.prompt == (USER,)
    assert record.responses == ("a", "b")
    assert not record.prompts_differ and not record.tie


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {"question": "The sky is", "response_j": " blue.", "response_k": " green."},
        {"instruction": "The sky is", "input": "", "chosen": " blue.", "rejected": " green."},
    ],
)
def test_one_standard_pair_in_many_spellings_is_one_record(row):
    record = parse(row)
    assert (record.prompt, record.responses) == ("The sky is", (" blue.", " green."))


def test_an_instruction_with_input_is_one_prompt():
    record = parse({"instruction": "Translate.", "input": "Hund", "output": "dog"})
    assert (record.prompt, record.responses) == ("Translate.\n\nHund", ("dog",))


def test_a_system_column_becomes_the_first_message():
    record = parse({"system": "Be brief.", "prompt": "q", "chosen": "a", "rejected": "b"})
    assert record.prompt == (Message("system", "Be brief."), USER)


@pytest.mark.parametrize("label", [True, 1, "true", "True", "1"])
@pytest.mark.parametrize("response", [{"prompt": "q", "completion": "a"}, {"messages": [TURN, ANSWER]}])
def test_a_labelled_response_is_a_group_of_one(response, label):
    record = parse(response | {"label": label})
    assert (text(record.prompt), record.responses, record.labels) == ("q", ("a",), (True,))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q"},
        {"messages": [TURN]},
        {"prompt": "q", "completion": None},
        {"prompt": "q", "answer": "42", "best_answer": "forty-two"},  # what a reward may read
    ],
)
def test_a_prompt_alone_has_no_responses(row):
    assert parse(row).responses == ()


def test_messages_that_end_with_the_assistant_are_a_demonstration():
    record = parse({"messages": [TURN, ANSWER, TURN, WORSE]})
    assert record.prompt == (USER, REPLY, USER)
    assert record.responses == ("b",)


@pytest.mark.parametrize(
    "row",
    [
        {
            "instruction": "q",
            "completions": [
                {"response": "low", "overall_score": 1.0},
                {"response": "high", "overall_score": 9},
                {"response": "middle", "overall_score": "5"},
            ],
        },
        {"prompt": "q", "responses": ["low", "high", "middle"], "rewards": [1, 9, 5]},
    ],
)
def test_a_rated_list_is_sorted_best_first(row):
    record = parse(row)
    assert record.responses == ("high", "middle", "low")
    assert record.rewards == (9.0, 5.0, 1.0)


def test_scores_of_a_pair_are_its_rewards_and_their_difference_its_margin():
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 8, "score_rejected": 5.5}
    record = parse(row)
    assert (record.rewards, record.margin, record.tie) == ((8.0, 5.5), 2.5, False)
    assert parse(row | {"score_chosen": 5.5}).tie


def test_a_stated_strength_goes_before_scores():
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "chosen_reward": -3.0, "rejected_reward": -1.0}
    record = parse(row | {"preference_strength": 0})
    assert (record.margin, record.tie, record.rewards) == (0.0, True, (-3.0, -1.0))


def test_codes_of_a_winner_are_named_by_the_mapping():
    columns = {"response_a": "response 1", "response_b": "response 2"}
    zero_based = columns | {"winner": {"column": "label", "a": 0, "b": 1, "tie": 2}}
    row = {"prompt": "q", "response 1": "one", "response 2": "two", "label": 1}
    assert parse(row, columns=zero_based).responses == ("two", "one")
    one_based = columns | {"winner": {"column": "label", "a": 1, "b": 2, "tie": 0}}
    assert parse(row, columns=one_based).responses == ("one", "two")
    assert parse(row | {"label": 2}, columns=zero_based).tie
    with pytest.raises(DataError, match="winner: \\{column: label"):
        parse(row, columns=columns | {"winner": "label"})


def test_weight_source_and_the_columns_not_read_are_kept():
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "weight": 0.5, "source": "forum", "chosen_model": "m"}
    record = parse(row, source="file.jsonl", number=7)
    assert (record.weight, record.source, record.row) == (0.5, "forum", 7)
    assert record.meta == {"chosen_model": "m"}


@pytest.mark.parametrize(
    "row, named",
    [
        ({"prompt": "q", "chosen": "a"}, "'rejected'"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "'rejected'"),
        ({"prompt": "q", "chosen": True, "rejected": "b"}, "true (a boolean)"),
        ({"prompt": "q", "chosen": ["a", "b"], "rejected": ["c", "d"]}, "list of 2"),
        ({"chosen": "yes", "rejected": "no"}, "no words shared"),
        ({"chosen": "a", "rejected": "b", "prompt": [{"role": "wizard", "content": "x"}]}, "wizard"),
        ({"prompt": [TURN], "chosen": [TURN, ANSWER], "rejected": [ANSWER]}, "turns of user, assistant"),
        ({"prompt": "other", "chosen": [TURN, ANSWER], "rejected": [TURN, WORSE]}, "do not share"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "weight": -1}, "at least 0"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": float("nan")}, "finite"),
        ({"prompt": "q", "responses": ["a", "b"], "rewards": [1.0, float("nan")]}, "finite"),
        ({"prompt": "q", "responses": ["a", "b"], "rewards": [1.0]}, "one number for each"),
        ({"prompt": "q", "responses": ["a", "b"]}, "score"),
        ({"prompt": "q", "completion": "a", "label": 2}, "true or false"),
        ({"prompt": "q", "completion": "a", "label": None}, "'label': found nothing"),
        ({"prompt": "q", "better": "a", "worse": "b"}, "found the columns prompt, better, worse"),
        ({"prompt": "q", "answer_1": "a", "answer_2": "b"}, "found the columns prompt, answer_1, answer_2"),
        ({"prompt": "q", "chosen": "a \ud800", "rejected": "b"}, "half a character (\\ud800) at 2"),
        ({"messages": [{"role": "user", "content": "\udfff"}]}, "half a character"),
        ({"prompt": "q", "response 1": "a", "response 2": "b", "label": 1}, "winner"),
        ({"prompt": "q", "response1": "a", "response2": "b", "annotator": 1}, "response1"),
        ({"text": "words"}, "found the columns text"),
        ({"messages": [TURN], "tools": [{"name": "f"}]}, "tool"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}], "chosen": "a", "rejected": "b"}, "content"),
    ],
)
def test_a_bad_row_gets_one_line_with_file_row_and_what_was_found(row, named):
    with pytest.raises(DataError) as error:
        parse(row, source="pairs.jsonl", number=3)
    said = str(error.value)
    assert said.startswith("pairs.jsonl, row 3") and "\n" not in said
    assert named in said and "expected" in said


def test_a_mapping_is_checked_for_names_and_columns():
    row = {"prompt": "q", "good": "a", "bad": "b"}
    assert parse(row, columns={"chosen": "good", "rejected": "bad"}).responses == ("a", "b")
    with pytest.raises(DataError, match="did you mean 'chosen'"):
        parse(row, columns={"choosen": "good"})
    with pytest.raises(DataError, match="'god'.*the columns are prompt, good, bad"):
        parse(row, columns={"chosen": "god", "rejected": "bad"})


def test_several_columns_can_make_the_prompt():
    row = {"title": "T", "body": "B", "chosen": "a", "rejected": "b"}
    assert parse(row, columns={"prompt": ["title", "body"]}).prompt == "T\n\nB"


# Prompts inside the responses


@pytest.mark.parametrize(
    "chosen, rejected, prompt",
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),
        ("Say foobar", "Say foobaz", "Say"),  # never inside a word
        ("a b\nc", "a b d", "a b"),
        ("x abc", "x abc def", "x"),  # no side is left empty
        ("abc", "abc", ""),
        ("yes ", "no ", ""),
        ("天空是什么？蓝色的。", "天空是什么？绿色的。", "天空是什么？"),
        ("天空是蓝色", "天空是绿色", "天空是"),
        (
            "\n\nHuman: q\n\nAssistant: I think so",
            "\n\nHuman: q\n\nAssistant: I think not",
            "\n\nHuman: q\n\nAssistant:",
        ),
        (
            "### Question: q\n### Response: It is",
            "### Question: q\n### Response: It was",
            "### Question: q\n### Response:",
        ),
        ("q<|im_start|>assistant\nIt is", "q<|im_start|>assistant\nIt was", "q<|im_start|>assistant\n"),
    ],
)
def test_a_shared_prompt_ends_at_a_turn_or_else_between_words(chosen, rejected, prompt):
    split = extract_prompt(chosen, rejected)
    assert split["prompt"] == prompt
    assert (prompt + split["chosen"], prompt + split["rejected"]) == (chosen, rejected)


@given(
    st.text("ab \n", max_size=12), st.text("ab \n", min_size=1, max_size=6), st.text("ab \n", min_size=1, max_size=6)
)
@settings(max_examples=100, deadline=None)
def test_a_shared_prompt_never_ends_inside_a_word(shared_text, a, b):
    split = extract_prompt(shared_text + a, shared_text + b)
    prompt = split["prompt"]
    assert prompt + split["chosen"] == shared_text + a and prompt + split["rejected"] == shared_text + b
    if prompt:
        assert not prompt[-1].isspace()
        assert split["chosen"][0].isspace() and split["rejected"][0].isspace()


def test_messages_share_whole_turns_and_the_response_is_the_assistant_s():
    split = extract_prompt([TURN, ANSWER, TURN, ANSWER], [TURN, ANSWER, TURN, WORSE])
    assert split == {"prompt": [TURN, ANSWER, TURN], "chosen": [ANSWER], "rejected": [WORSE]}
    assert extract_prompt([TURN, ANSWER], [TURN, ANSWER])["chosen"] == [ANSWER]


@pytest.mark.parametrize(
    "chosen, rejected",
    [
        ("\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: c", "\n\nHuman: q\n\nAssistant: b"),
        ([TURN, ANSWER, TURN, ANSWER], [TURN, WORSE]),
        ([TURN, ANSWER], [WORSE, ANSWER]),
    ],
)
def test_sides_that_answer_different_prompts_are_marked(chosen, rejected):
    assert parse({"chosen": chosen, "rejected": rejected}).prompts_differ


def test_other_projects_agree_on_the_text_prompt_and_on_unpairing():
    for case in reference_cases("extract_prompt"):
        assert extract_prompt(**case["inputs"]) == case["expected"]
    for case in reference_cases("unpair"):
        assert unpair(**case["inputs"]) == case["expected"]


def test_prompts_that_read_the_same_are_normalised_to_the_same():
    assert normalise("Ｗhat  is\nit?") == normalise((Message("user", "what is it?"),))


# Real files


def test_no_response_text_of_hh_stands_in_a_prompt():
    path = shared("data/hh_rlhf_harmless_test/harmless-base_test.jsonl.gz")
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).split(b"\n") if line]
    records = files.load(path)
    assert len(records) == len(rows) == 2312
    assert [r.row - 1 for r in records if r.prompts_differ] == [1254, 1688, 1950, 1952, 2036]
    for row, record in zip(rows, records, strict=True):
        written = "".join(f"\n\n{'Human' if m.role == 'user' else 'Assistant'}: {m.content}" for m in record.prompt)
        if record.prompts_differ:
            continue
        for side, response in zip((row["chosen"], row["rejected"]), record.responses, strict=True):
            before, _, last = side.rpartition("\n\nAssistant:")
            assert last == " " + response or (last.strip() == response == "")
            assert written.split() == before.split()
    assert sum(not record.responses[0] for record in records) == 4


@pytest.mark.parametrize(
    "path, rows",
    [
        pytest.param("rmb_pairwise/pairs.jsonl.gz", 14543, marks=pytest.mark.slow),
        ("format_zoo/llamafactory_dpo_en_demo.json.gz", 300),
        ("format_zoo/llamafactory_dpo_zh_demo.json.gz", 300),
        ("format_zoo/medicalgpt_dpo_zh_500.jsonl.gz", 500),
        ("format_zoo/torchtune_hh_rlhf_tiny.json", 1),
        ("format_zoo/torchtune_stack_exchange_paired_tiny.json", 25),
        ("helpsteer2_rm_scored/helpsteer2_subset_annotated.json.gz", 100),
        ("hhh_alignment/pairs.jsonl.gz", 221),
    ],
)
def test_real_pair_files_load_as_they_are(path, rows):
    records = files.load(shared(f"data/{path}"))
    assert len(records) == rows
    assert all(len(record.responses) == 2 and record.prompt for record in records)


def test_real_labelled_responses_load_as_they_are():
    records = files.load(shared("data/format_zoo/llamafactory_kto_en_demo.json.gz"))
    assert [sum(record.labels == (said,) for record in records) for said in (True, False)] == [150, 150]


def test_real_comparisons_load_with_a_mapping_and_their_ties():
    autoj = {"column": "label", "a": 0, "b": 1, "tie": 2}
    records = files.load(
        shared("data/autoj_pairwise/testdata_pairwise.jsonl.gz"),
        columns={"response_a": "response 1", "response_b": "response 2", "winner": autoj},
    )
    assert (len(records), sum(record.tie for record in records)) == (1392, 373)


@pytest.mark.parametrize(
    "path",
    [
        "autoj_pairwise/testdata_pairwise.jsonl.gz",
        "pandalm_test/testset-v1.json.gz",
        "pandalm_test/pandalm-7b-testset-v1.json.gz",
        "rm_bench/chat_filtered.json.gz",
    ],
)
def test_real_files_of_a_shape_of_their_own_are_refused_with_the_columns(path):
    with pytest.raises(DataError, match=r"row 1.*(columns: \{|one row for each pair)"):
        files.load(shared(f"data/{path}"))
