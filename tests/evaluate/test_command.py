"""`modeseek evaluate` from its words to its table, its JSON and its page, on a tiny model."""

import json
import re
import shutil
import stat
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from collect.stub import by_length, serving
from modeseek.commands.evaluate import main
from modeseek.config import from_dict, over, read_tree
from modeseek.data.files import load
from modeseek.policies.scratch import small_llama
from modeseek.runs import train
from small_tokenizers import CHATML, byte_level

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


@pytest.fixture
def foreign(tmp_path):
    """A model with bytes for tokens and a chat template."""
    torch.manual_seed(1)
    words = byte_level(template=CHATML)
    ends = {"pad": words.eos_token_id, "bos": words.eos_token_id, "eos": words.eos_token_id}
    model = small_llama(len(words), width=16, layers=1, heads=2, inner=32, context=256, **ends)
    model.save_pretrained(tmp_path / "foreign")
    words.save_pretrained(tmp_path / "foreign")
    return str(tmp_path / "foreign")


@pytest.mark.slow
def test_policies_of_other_tokenizers_are_asked_in_their_own_tokens(
    tiny, foreign, other, fable_pairs, tmp_path, capsys
):
    """Random bytes and random words on the same prompts; the judge sees both as text, and the prompt as it was."""
    words = [foreign, other, "--against", str(tiny), "--prompts", str(fable_pairs), "--limit", "24"]
    words += ["--max_completion_length", "12", "--page", str(tmp_path / "p.html"), "--json"]
    assert main([*words, "--reward", "length:unit=words"]) == 0
    said = capsys.readouterr()
    found = {(r.get("policy"), r["name"]): r for r in json.loads(said.out)}
    assert (other, "kl") in found and (foreign, "kl") not in found
    assert found[foreign, "win_rate"]["n"] == 24 and 0 <= found[foreign, "win_rate"]["standard_error"] < 0.2
    assert "reads other tokens" in said.err and foreign in said.err and f"{other} reads" not in said.err
    assert "win_rate/length_controlled" in {name for policy, name in found if policy == foreign}
    with serving(by_length) as server:
        judge = f"judge:endpoint={server.url},model=m,cache={tmp_path / 'judge.sqlite'}"
        assert main([*words, "--reward", judge]) == 0
        judged = {(r.get("policy"), r["name"]): r["value"] for r in json.loads(capsys.readouterr().out)}
        prompts = {str(record.prompt) for record in load(str(fable_pairs))[:24]}
        asked = {
            re.search(r"<prompt (\w+)>\n(.*?)\n</prompt", b["messages"][1]["content"], re.DOTALL)[2]
            for b in server.asked
        }
    assert asked == prompts
    assert judged[foreign, "win_rate"] < 0.2  # twelve bytes are shorter than twelve words


def test_the_same_words_before_every_prompt_make_no_foreigner_and_others_do(tiny, other, fable_pairs, capsys):
    words = [other, "--against", str(tiny), "--prompts", str(fable_pairs), *SHORT, "--json"]
    named = lambda: {r["name"] for r in json.loads(capsys.readouterr().out)}
    assert main(words) == 0 and "kl" in named()
    told = Path(other) / "tokenizer_config.json"
    told.write_text(json.dumps(json.loads(told.read_text()) | {"prompt_prefix": "the "}))
    assert main(words) == 0 and "kl" not in named()
    with pytest.raises(ValueError, match="together: .* reads other tokens"):
        main([*words, "--together", "checkpoints"])
    told.unlink()
    (Path(other) / "tokenizer.json").unlink()
    assert main(words) == 0 and "kl" in named()


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


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_checkpoints_of_a_run_are_points_and_the_last_is_its_model(tiny, fable_pairs, tmp_path, capsys, lora):
    run = {"method": "dpo", "model": str(tiny), "data": str(fable_pairs), "output_dir": str(tmp_path / "run")}
    run |= {"max_steps": 2, "save_steps": 1, "learning_rate": 0.01, "eval_size": 0, "eval_prompts": 0, "max_length": 64}
    run |= {"max_completion_length": 32, "truncate_responses": True, "prompts_per_round": 8, "self_test": False}
    train(from_dict(over(read_tree("dpo"), run | ({"lora": {"r": 2}} if lora else {}))), console=Console(quiet=True))
    first, last = (str(path) for path in sorted((tmp_path / "run" / "checkpoints").iterdir()))
    words = ["--against", str(tiny), "--prompts", str(fable_pairs), *SHORT, "--json"]
    numbers = lambda *names: [
        {k: v for k, v in row.items() if k != "policy"}
        for row in (main([*names, *words]), json.loads(capsys.readouterr().out))[1]
    ]
    kept = numbers(last)
    assert kept != numbers(first)
    assert kept == numbers(str(tmp_path / "run"))
    assert main([first, last, *words, "--together", "checkpoints", "--page", str(tmp_path / "p.html")]) == 0
    assert "Reward against KL" in (tmp_path / "p.html").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["M/checkpoints/step-00000001", "--against", "R", "--harness", "toy"], "is a checkpoint, and lm-eval reads"),
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


@pytest.mark.parametrize("limit, cut", [("2", True), ("40", False)])
def test_responses_that_are_nearly_all_cut_off_are_pointed_out(limit, cut, tiny, other, fable_pairs, tmp_path, capsys):
    """Two tokens end no fable; the tie that comes of it is no finding."""
    words = [other, "--against", str(tiny), "--prompts", str(fable_pairs), "--reward", "length", "--limit", "6"]
    page = tmp_path / "new" / "page.html"
    assert main([*words, "--max_completion_length", limit, "--page", str(page)]) == 0
    assert ("are cut off at the limit of tokens" in page.read_text()) is cut
    said = " ".join(capsys.readouterr().err.split())
    assert (f"{other}, {tiny}: nearly all responses are cut off" in said) is cut
