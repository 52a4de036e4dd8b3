"""`modeseek diagnose` from words to the page."""

import json
import re

import pytest

from conftest import shared
from modeseek.commands.data_file import data_file
from modeseek.commands.diagnose import main
from modeseek.diagnostics.diagnosis import SECTIONS
from modeseek.diagnostics.words import words
from modeseek.estimate import Estimate
from modeseek.report.diagnosis import render

SMALL = ["--samples", "3", "--prompts", "16", "--max-completion-length", "24"]


@pytest.fixture(scope="module")
def found(tiny, fable_pairs, tmp_path_factory):
    """A diagnosis of the tiny model with everything asked for, and its page."""
    out = tmp_path_factory.mktemp("diagnosis")
    words = [str(tiny), str(fable_pairs), "--reward", "length:prefer=shorter", "--reference", str(tiny), *SMALL]
    assert main([*words, "--output", str(out)]) == 0
    return json.loads((out / "diagnosis.json").read_text()), (out / "diagnosis.html").read_text()


def test_the_numbers_are_a_flat_list_with_sentences_and_intervals(found):
    rows = found[0]["estimates"]
    assert {row["section"] for row in rows} == {"on_policyness", "coverage", "geometry", "risk"}
    assert len({row["name"] for row in rows}) == len(rows)
    for row in rows:
        assert {"section", "name", "value", "low", "high", "n", "sentence"} <= row.keys()
        assert row["sentence"].endswith((".", ")."))
        if row["value"] is not None:
            assert row["low"] <= row["value"] + 1e-9 and row["value"] <= row["high"] + 1e-9, row


def test_a_model_measured_against_itself_is_no_way_from_it(found):
    values = {row["name"]: row["value"] for row in found[0]["estimates"]}
    for name in ("kl/k1", "kl/k2", "kl/k3", "kl/rao_blackwell", "kl/forward"):
        assert values[name] == pytest.approx(0, abs=1e-4), name
    assert values["ess"] == pytest.approx(1, abs=1e-4)


def test_the_first_screen_answers_four_questions(found):
    answers, page = found[0]["answers"], found[1]
    assert [one["question"] for one in answers] == [
        "Is my data on-policy?",
        "Does it cover what my model writes?",
        "What may go wrong with DPO on it?",
        "What should I do next?",
    ]
    assert all(one["answer"] in page and one["why"] for one in answers)
    assert page.index("What should I do next?") < page.index(SECTIONS["on_policyness"])


def test_the_page_loads_nothing_and_escapes_what_a_person_wrote(found):
    evil = found[0] | {"data": "<script>alert(1)</script>"}
    evil["examples"] = [{"prompt": "</pre><b>", "chosen": "<img src=x>", "own": "&", "nats": "1"}]
    page = render(evil)
    assert "<script" not in page and "<img" not in page and "</pre><b>" not in page
    assert not re.search(r"<[^>]*(?:src|href)=|https?://", page)


def test_what_cannot_be_given_says_why(tiny, fable_pairs, tmp_path, capsys):
    assert main([str(tiny), str(fable_pairs), *SMALL, "--output", str(tmp_path), "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["estimates"]}
    assert rows["geometry"]["value"] is None and "--reward" in rows["geometry"]["sentence"]
    assert rows["kl/k1"]["value"] is None and "--reference" in rows["kl/k1"]["sentence"]


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--samples", "1"], "samples: found 1"), (["--prompts", "4"], "prompts: found 4"), (["--beta", "0"], "beta")],
)
def test_an_option_that_cannot_be_honoured_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        main(["model", "data", *words])


def test_data_without_responses_are_refused(tiny, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"tell {i}"}) + "\n" for i in range(20)))
    with pytest.raises(ValueError, match="no responses"):
        main([str(tiny), str(path), "--output", str(tmp_path)])


def test_a_folder_stands_for_the_one_data_file_in_it(tmp_path):
    (tmp_path / "README.md").write_text("words")
    (tmp_path / "pairs.jsonl.gz").write_bytes(b"")
    assert data_file(str(tmp_path)) == str(tmp_path / "pairs.jsonl.gz")
    (tmp_path / "more.csv").write_text("")
    assert data_file(str(tmp_path)) == str(tmp_path)  # which of the two? the reader asks
    assert data_file("some/hub-name") == "some/hub-name"


@pytest.mark.slow
@pytest.mark.parametrize("data", ["data/rmb_pairwise", "data/hh_rlhf_harmless_test"])
def test_real_preferences_are_far_from_a_small_story_teller(data, tmp_path):
    words = [str(shared("models/stories260k")), str(shared(data)), "--samples", "4", "--prompts", "32"]
    main([*words, "--max-completion-length", "64", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "diagnosis.json").read_text())
    assert [one["level"] for one in found["answers"][:2]] == ["bad", "bad"]
    assert found["answers"][0]["answer"] == "No: far off-policy"


@pytest.mark.slow
def test_a_story_tellers_own_stories_are_called_its_own(tmp_path):
    """Written to a file as text and read again: what is cut off stays cut off at the same place."""
    import torch

    from modeseek.build import load_policy
    from modeseek.data.template import Template
    from modeseek.data.tokenise import tokenise_prompts

    model = str(shared("models/stories260k"))
    template = Template.load(model)
    policy = load_policy(model, template, max_new=64)
    openings = ["Once upon a time", "One day, a girl", "Tom and his dog", "The big red ball", "There was a little"]
    names = ["Lily", "Tim", "Sue", "Ben", "Mia", "Max", "Amy", "Sam", "Anna", "Jack"]
    texts = [f"{opening} named {name}" for opening in openings for name in names]
    asked = tokenise_prompts(texts, template, max_length=256, max_completion_length=64)
    drawn = policy.sample(*_prompts(asked), 2, torch.Generator().manual_seed(7))
    pairs = tmp_path / "own.jsonl"
    with pairs.open("w") as file:
        for p, prompt in enumerate(texts):
            a, b = (
                _written(template, asked.prompt[p].tolist(), drawn.response[p, k][drawn.mask[p, k]].tolist())
                for k in (0, 1)
            )
            file.write(json.dumps({"prompt": prompt, "chosen": a, "rejected": b}) + "\n")
    main([model, str(pairs), "--prompts", "50", "--max-completion-length", "64", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "diagnosis.json").read_text())
    assert found["answers"][0]["level"] == "good", found["p_value"]


def _written(template, prompt, response):
    """The response as it follows the prompt: alone, its decoder would eat the space that it begins with."""
    return template.decode(prompt + response).removeprefix(template.decode(prompt))


def _prompts(asked):
    batch = asked.prompts(slice(0, len(asked)))
    return batch.prompt, batch.prompt_mask


@pytest.mark.parametrize(
    "name, value, label, sentence",
    [
        ("longer_by_tokens", -14.0, "longer than own", "Data responses are 14 tokens shorter than own samples"),
        ("longer_by_tokens", 3.0, "longer than own", "Data responses are 3 tokens longer than own samples"),
        ("best_of/4", 1.5, "best of 4", "The best of 4 own samples has a mean reward of 1.5."),
        ("support_gap/chosen", 1.0, "support gap, chosen", "Chosen responses cost the model 1 nats a token more"),
    ],
)
def test_a_number_is_said_as_one_would_say_it(name, value, label, sentence):
    said = words(Estimate(value=value, low=value, high=value, n=10, name=name, standard_error=1.0))
    assert said.label == label and said.sentence.startswith(sentence)
