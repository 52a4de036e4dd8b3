"""lm-evaluation-harness as a program: the words it is given, what it writes, and what happens when it fails."""

import json
import stat
import sys

import pytest

from modeseek.evaluate.harness import changes, command, parse, run

# As lm-eval 0.4 writes it, shortened.
RESULTS = {
    "results": {
        "arc_easy": {
            "alias": "arc_easy",
            "acc,none": 0.25,
            "acc_stderr,none": 0.01,
            "acc_norm,none": 0.5,
            "acc_norm_stderr,none": "N/A",
        },
        "gsm8k": {"exact_match,strict-match": 0.125, "exact_match_stderr,strict-match": 0.02},
    },
    "n-samples": {"arc_easy": {"original": 2376, "effective": 100}, "gsm8k": {"original": 1319, "effective": 50}},
}

FAKE = """#!{python}
import json, pathlib, sys
words = sys.argv[1:]
if "broken" in words[words.index("--tasks") + 1]:
    sys.exit("no such task: broken")
folder = pathlib.Path(words[words.index("--output_path") + 1]) / "model"
folder.mkdir(parents=True, exist_ok=True)
(folder / "words.json").write_text(json.dumps(words))
if "silent" not in words[words.index("--tasks") + 1]:
    (folder / "results_2026-01-01T00-00-00.json").write_text({results!r})
"""


@pytest.fixture
def fake(tmp_path):
    path = tmp_path / "lm-eval"
    path.write_text(FAKE.format(python=sys.executable, results=json.dumps(RESULTS)))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_the_words_name_the_model_the_tasks_and_the_limits():
    words = command("runs/dpo/model", ["arc_easy", "gsm8k"], "out", limit=100, fewshot=5, include="mine")
    assert words[:7] == [
        "lm-eval",
        "--model",
        "hf",
        "--model_args",
        "pretrained=runs/dpo/model",
        "--tasks",
        "arc_easy,gsm8k",
    ]
    assert words[words.index("--limit") + 1] == "100"
    assert words[words.index("--num_fewshot") + 1] == "5"
    assert words[words.index("--include_path") + 1] == "mine"
    with pytest.raises(ValueError, match="no tasks"):
        command("m", [], "out")
    with pytest.raises(ValueError, match="a comma"):
        command("m,dtype=float16", ["arc_easy"], "out")


def test_results_are_read_with_their_errors():
    found = {e.name: e for e in parse(RESULTS)}
    assert set(found) == {"arc_easy/acc", "arc_easy/acc_norm", "gsm8k/exact_match,strict-match"}
    acc = found["arc_easy/acc"]
    assert (acc.value, acc.n, acc.standard_error) == (0.25, 100, 0.01)
    assert acc.low == pytest.approx(0.25 - 1.959964 * 0.01)
    assert found["arc_easy/acc_norm"].high == float("inf")  # no error was given: not a point
    with pytest.raises(ValueError, match="no `results`"):
        parse({"config": {}})


def test_the_program_is_run_and_what_it_wrote_is_read(fake, tmp_path):
    words = command("model", ["arc_easy"], tmp_path / "out", executable=fake)
    assert [e.name for e in run(words)] == [e.name for e in parse(RESULTS)]
    assert json.loads((tmp_path / "out/model/words.json").read_text()) == words[1:]


def test_a_failure_says_what_the_program_said(fake, tmp_path):
    with pytest.raises(ValueError, match="lm-eval ended with 1: no such task: broken"):
        run(command("model", ["broken"], tmp_path / "out", executable=fake))
    with pytest.raises(ValueError, match="wrote no results"):
        run(command("model", ["silent"], tmp_path / "out", executable=fake))
    with pytest.raises(ValueError, match="cannot be run"):
        run(command("model", ["arc_easy"], tmp_path / "out", executable=str(tmp_path / "absent")))


def test_old_results_are_not_taken_for_new_ones(fake, tmp_path):
    run(command("model", ["arc_easy"], tmp_path / "out", executable=fake))
    with pytest.raises(ValueError, match="wrote no results"):
        run(command("model", ["silent"], tmp_path / "out", executable=fake))


def test_a_regression_is_the_difference_with_both_errors():
    ours = parse(RESULTS)
    found = {e.name: e for e in changes(ours, [e for e in ours if e.name == "arc_easy/acc"])}
    assert list(found) == ["regression/arc_easy/acc"]
    assert found["regression/arc_easy/acc"].value == 0
    assert found["regression/arc_easy/acc"].standard_error == pytest.approx(0.01 * 2**0.5)


def test_all_documents_right_is_not_certainty():
    found = parse({"results": {"t": {"acc,none": 1.0, "acc_stderr,none": 0.0}}, "n-samples": {"t": {"effective": 4}}})
    # Wilson: 1 / (1 + 1.959964^2 / 4) = 0.5101
    assert (round(found[0].low, 4), found[0].high) == (0.5101, 1.0)
