import io
import json

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import mannwhitneyu

from conftest import shared
from modeseek.data import files
from modeseek.data.checks import check, render
from modeseek.data.records import Record
from modeseek.data.template import Template
from modeseek.data.tokenise import tokenise
from small_tokenizers import CHATML, byte_level


def pair(prompt, chosen, rejected, row=0, **more):
    return Record(prompt=prompt, responses=(chosen, rejected), source="f", row=row, **more)


def found(report):
    return {name: finding["rows"] for name, finding in report["findings"].items() if finding["rows"]}


def shown(report):
    console = Console(file=io.StringIO(), width=160)
    console.print(render(report))
    return console.file.getvalue()


def test_a_sound_set_has_no_findings():
    report = check([pair(f"question {i}", f"good {i}", f"bad {i}") for i in range(5)])
    assert found(report) == {}
    assert "Nothing found" in shown(report)


@pytest.mark.parametrize(
    "records, findings",
    [
        ([pair("q", "a", "b"), pair("q", "a", "b")], {"duplicate": 1}),
        ([pair("q", "a", "a")], {"identical responses": 1}),
        ([pair("q", "a b", "a  b")], {"identical but for spacing": 1}),
        ([pair("q", "a", "b"), pair("Q ", "b", "a")], {"contradicted": 2}),
        ([pair("q", "a", "b"), pair("q", "b", "a", tie=True)], {"tie": 1}),
        ([pair("q", "", "b"), pair("r", "a", " ")], {"empty chosen": 1, "empty rejected": 1}),
        ([pair("", "a", "b")], {"empty prompt": 1}),
        ([pair("q", "a", "b", prompts_differ=True)], {"prompts differ": 1}),
        ([Record(prompt="q", responses=("a",), labels=(x,)) for x in (True, False)], {"contradicted": 2}),
        ([Record(prompt="q", responses=("",))], {"empty response": 1}),
        (
            [pair("a question of some length", *("a question of some length " + x for x in "ab"))],
            {"prompt repeated in every response": 1},
        ),
        ([pair("q", "a", "b", rewards=(1.0, 2.0))], {"scores against the order": 1}),
    ],
)
def test_each_fault_is_found_and_nothing_else(records, findings):
    sound = [pair(f"other question {i}", f"good {i}", f"bad {i}") for i in range(3)]
    assert found(check([*sound, *records])) == findings


def test_a_finding_names_its_rows():
    report = check([pair("q", "a", "b", row=1), pair("q", "a", "a", row=2)])
    assert report["findings"]["identical responses"] == {"rows": 1, "share": 0.5, "examples": ["f:2"]}


def test_labels_and_kinds_are_counted():
    records = [Record(prompt="q", responses=(str(i),), labels=(i > 0,)) for i in range(3)]
    report = check([*records, Record(prompt="alone"), Record(prompt="q", responses=("a",))])
    assert report["labels"] == {"good": 2, "bad": 1}
    assert report["kinds"] == {"labelled responses": 3, "prompts alone": 1, "demonstrations": 1}


def test_prompts_shared_with_held_out_rows_are_found_however_they_are_spelt():
    report = check([pair("What is it?", "a", "b")], held_out=[pair("what  IS it?", "c", "d"), pair("other", "a", "b")])
    assert report["held_out"]["prompt also in training"]["rows"] == 1


def test_length_alone_is_measured_by_accuracy_and_auc():
    # longer wins, longer wins, a draw, shorter wins: 2.5 of 4
    sizes = [(5, 2), (9, 4), (3, 3), (1, 8)]
    records = [pair(f"q{i}", "x" * a, "y" * b) for i, (a, b) in enumerate(sizes)]
    predicts = check(records)["length_predicts"]
    assert predicts["accuracy"]["value"] == 2.5 / 4
    good, bad = zip(*sizes, strict=True)
    auc = mannwhitneyu(good, bad).statistic / 16
    assert predicts["auc"]["value"] == pytest.approx(auc)
    assert predicts["accuracy"]["low"] < 2.5 / 4 < predicts["accuracy"]["high"]


def test_an_interval_is_never_a_point():
    accuracy = check([pair(f"q{i}", "long text", "short") for i in range(20)])["length_predicts"]["accuracy"]
    # Wilson at 20 of 20: the lower end is n / (n + z^2)
    assert (accuracy["value"], accuracy["high"]) == (1.0, 1.0)
    assert accuracy["low"] == pytest.approx(20 / (20 + 1.959964**2), rel=1e-6)


def test_rows_of_one_prompt_are_no_independent_evidence():
    rng = np.random.default_rng(0)
    wins = rng.random(50) < 0.6
    once = [pair(f"q{i}", "xxx" if win else "x", "yy") for i, win in enumerate(wins)]
    one, ten = (check(records)["length_predicts"]["accuracy"] for records in (once, once * 10))
    for end in ("value", "low", "high"):
        assert ten[end] == pytest.approx(one[end])


@pytest.mark.slow
def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = {"accuracy": 0, "auc": 0}
    for _ in range(200):
        records = []
        for i in range(30):
            shift = rng.normal()  # hard and easy prompts: rows of a prompt hang together
            for _ in range(3):
                a, b = (np.exp(rng.normal(5 + 0.5 * shift, 0.5, 2))).astype(int) + 1
                records.append(pair(f"q{i}", "x" * int(a), "y" * int(b)))
        said = check(records)["length_predicts"]
        for name in covered:  # chosen and rejected are drawn alike: the truth is a half
            covered[name] += said[name]["low"] <= 0.5 <= said[name]["high"]
    assert 180 <= covered["accuracy"] <= 200 and 180 <= covered["auc"] <= 200


def test_with_a_model_the_report_shows_what_is_read_and_what_is_lost():
    template = Template(byte_level(template=CHATML))
    records = [
        pair("and what is the sky like?", "blue", "green"),
        pair("it?", "a", "a"),
        pair("[bold]", "foo [red]", "bar"),
    ]
    report = check(records, tokenise(records, template))
    assert report["tokens"]["dropped"] == {"identical responses": 1}
    assert report["template"]["rendering"] == "chat template"
    assert [span["in_loss"] for span in report["template"]["spans"]] == [False, True]
    assert report["lengths"]["chosen"]["tokens"]["max"] > 0
    assert json.loads(json.dumps(report)) == report
    text = shown(report)
    assert "dropped: identical responses" in text and "[bold]" in text and "foo [red]" in text
    assert "<|im_start|>user" in text


@pytest.mark.parametrize(
    "path, longer_wins, faults",
    [  # the figures are those of each folder's README
        pytest.param(
            "hh_rlhf_harmless_test/harmless-base_test.jsonl.gz",
            0.445,
            {"prompts differ": 5, "empty chosen": 4},
            marks=pytest.mark.slow,
        ),
        ("hhh_alignment/pairs.jsonl.gz", 0.634, {}),
        pytest.param(
            "rmb_pairwise/pairs.jsonl.gz",
            None,
            {"duplicate": 30, "identical responses": 11, "empty rejected": 2},
            marks=pytest.mark.slow,
        ),
        ("format_zoo/llamafactory_dpo_en_demo.json.gz", None, {"duplicate": 5}),
        ("format_zoo/llamafactory_dpo_zh_demo.json.gz", None, {"duplicate": 11}),
        ("helpsteer2_rm_scored/helpsteer2_subset_annotated.json.gz", None, {"tie": 29, "scores against the order": 28}),
    ],
)
def test_known_anomalies_of_real_files_are_found(path, longer_wins, faults):
    report = check(files.load(shared(f"data/{path}")))
    assert found(report).items() >= faults.items()
    if longer_wins is not None:
        assert report["length_predicts"]["accuracy"]["value"] == pytest.approx(longer_wins, abs=0.002)
