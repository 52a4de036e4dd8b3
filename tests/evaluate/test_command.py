"""`modeseek evaluate` from its words to its table, its JSON and its page, on a tiny model."""

import json
import shutil
import stat
import sys

import pytest

from modeseek.commands.evaluate import main

SHORT = ["--limit", "6", "--max_completion_length", "12", "--reward", "length:prefer=shorter"]
FAKE = """#!{python}
import json, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--output_path") + 1])
score = 0.25 if "other" in sys.argv[sys.argv.index("--model_args") + 1] else 0.5
found = {{"results": {{"toy": {{"acc,none": score, "acc_stderr,none": 0.1}}}}}}
(folder / "results_1.json").write_text(json.dumps(found))
"""


@pytest.fixture
def other(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "other")
    return str(tmp_path / "other")


def test_seeds_best_of_gold_page_and_json_in_one_go(tiny, other, fable_pairs, tmp_path, capsys):
    third = tmp_path / "third"
    shutil.copytree(tiny, third)
    words = [other, str(third), "--against", str(tiny), "--prompts", str(fable_pairs), *SHORT, "--best_of", "4"]
    words += ["--gold", "keyword:words=[the]", "--page", str(tmp_path / "p.html"), "--output", str(tmp_path / "o.json")]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "o.json").read_text()) == found
    names = {(r.get("policy"), r["name"]) for r in found}
    assert ("all 2 seeds", "win_rate") in names and (other, "kl") in names and (None, "best_of_4/gold") in names
    page = (tmp_path / "p.html").read_text()
    assert "Samples side by side" in page and "The best of N" in page


def test_harness_tasks_stand_beside_the_numbers(tiny, other, fable_pairs, tmp_path, monkeypatch, capsys):
    fake = tmp_path / "bin" / "lm-eval"
    fake.parent.mkdir()
    fake.write_text(FAKE.format(python=sys.executable))
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr("modeseek.evaluate.harness.program", lambda: str(fake))
    assert (
        main([other, "--against", str(tiny), "--prompts", str(fable_pairs), *SHORT, "--harness", "toy", "--json"]) == 0
    )
    found = {r["name"]: r["value"] for r in json.loads(capsys.readouterr().out)}
    assert (found["toy/acc"], found["reference/toy/acc"], found["regression/toy/acc"]) == (0.25, 0.5, -0.25)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["M", "M", "--against", "R"], "one name twice"),
        (["M", "--against", "R", "--best_of", "1"], "best_of: found 1"),
        (["M", "--against", "R", "--together", "checkpoints", "--temperature", "0.5"], "temperature"),
    ],
)
def test_what_cannot_be_honoured_is_refused_before_anything_is_loaded(words, says):
    with pytest.raises(ValueError, match=says):
        main([*words, "--prompts", "p.jsonl", "--reward", "length"])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--best_of", "4"], "best_of: a judge gives no number"),
        (["--together", "checkpoints"], "together: checkpoints are points of a reward"),
    ],
)
def test_a_judge_gives_no_numbers_and_is_refused_where_one_is_needed(more, says, tiny, other, fable_pairs):
    judge = ["--reward", "judge:endpoint=http://127.0.0.1:9/v1,model=m"]
    with pytest.raises(ValueError, match=says):
        main([other, "--against", str(tiny), "--prompts", str(fable_pairs), *SHORT[:4], *judge, *more])
