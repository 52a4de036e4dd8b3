"""The door: what it says when asked and when it is asked wrongly."""

import gzip
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import fields
from pathlib import Path

import pytest

from conftest import shared
from modeseek import catalogue
from modeseek.cli import COMMANDS, main
from modeseek.commands import objectives, train
from modeseek.config import Run
from modeseek.train import NothingToLearn

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("words, says", [(["--help"], "quickstart"), (["train", "--help"], "train dpo --help")])
def test_help_imports_no_torch(words, says):
    code = f"import sys; from modeseek.cli import main; main({words}); assert 'torch' not in sys.modules"
    assert says in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_flags_that_the_help_of_train_names_are_flags():
    known = {field.name for field in fields(Run)} | {"resume", "dry_run", "help", "flags"}
    named = {flag.split(".")[0].replace("-", "_") for flag in re.findall(r"--([\w.-]+)", train.HELP)}
    assert named <= known and len(named) > 15


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    if command in ("objectives", "train"):
        assert main([command, "--help"]) == 0
    else:
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
    assert capsys.readouterr().out


def test_a_misspelt_command_is_answered_with_the_nearest(capsys):
    assert main(["trian"]) == 2
    assert "did you mean train" in capsys.readouterr().err
    assert main([]) == 2


def test_a_plan_without_a_model_asks_for_one(capsys):
    assert main(["plan", "dpo"]) == 2
    assert "model: none given" in capsys.readouterr().err


def test_a_run_without_anything_to_learn_from_ends_with_one_line(monkeypatch, capsys):
    def nothing(words):
        raise NothingToLearn("do all rewards tie?")

    monkeypatch.setattr(objectives, "main", nothing)
    assert main(["objectives"]) == 1
    assert capsys.readouterr().err == "modeseek objectives: do all rewards tie?\n"


def test_a_disk_that_refuses_is_named_in_one_line_and_a_fault_of_ours_is_not_hidden(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(objectives, "main", lambda words: (tmp_path / "file" / "inside").write_text("x"))
    (tmp_path / "file").write_text("a file, no folder")
    assert main(["objectives"]) == 1
    assert capsys.readouterr().err == f"modeseek objectives: {tmp_path}/file/inside: Not a directory\n"
    monkeypatch.setattr(objectives, "main", lambda words: (tmp_path / "nothing").read_text())
    with pytest.raises(FileNotFoundError):
        main(["objectives"])


def broken(kind, folder):
    good = json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n"
    path = folder / "data.jsonl"
    match kind:
        case "truncated gzip":
            path = folder / "data.jsonl.gz"
            path.write_bytes(gzip.compress(good.encode() * 500)[:60])
        case "wrong column":
            path.write_text(json.dumps({"prompt": "a", "choosen": "b", "rejected": "c"}) + "\n")
        case "not UTF-8":
            path.write_bytes(good.encode() + b'{"prompt": "\xff\xfe", "chosen": "b", "rejected": "c"}\n')
        case "half a line":
            path.write_text(good + good[:25])
        case "boolean response":
            path.write_text(json.dumps({"prompt": "a", "chosen": True, "rejected": "c"}) + "\n")
        case "empty":
            path.write_text("")
        case "missing side":
            path.write_text(good + json.dumps({"prompt": "a", "chosen": "b"}) + "\n")
        case "a directory":
            path = folder
    return path


KINDS = [
    "truncated gzip",
    "wrong column",
    "not UTF-8",
    "half a line",
    "boolean response",
    "empty",
    "missing side",
    "a directory",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", ["check", "train"])
def test_a_broken_file_gets_one_clear_line(kind, command, tiny, tmp_path, capsys):
    path = broken(kind, tmp_path)
    out = tmp_path / "run"
    words = {"check": ["check", str(path)], "train": ["train", "dpo", "--model", str(tiny), "--data", str(path)]}[
        command
    ]
    assert (
        main(
            words
            + (
                ["--output_dir", str(out), "--max_length", "100", "--max_completion_length", "50"]
                if command == "train"
                else []
            )
        )
        == 2
    )
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and str(path) in said[0] and "expected" in said[0]
    assert not out.exists()


def test_the_table_of_the_readme_is_the_one_that_the_code_gives():
    assert catalogue.markdown() in (ROOT / "README.md").read_text()


def test_the_page_of_objectives_is_the_one_that_the_code_gives():
    """After a change: `make docs`."""
    assert (ROOT / "docs" / "objectives.md").read_text() == catalogue.page()


@pytest.mark.slow
def test_the_wheel_holds_the_configs_and_works_outside_the_checkout(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "site")
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import modeseek; print(modeseek.__path__[0]);"
    code += "from modeseek.cli import main; sys.exit(main(['objectives']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert str(tmp_path) in done.stdout and "hypo" in done.stdout


def test_the_dependencies_are_pinned():
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().split()}
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = asked["dependencies"] + asked["optional-dependencies"]["dev"]
    plain = {name.split("[")[0].split(">")[0].split("<")[0].strip().lower() for name in names}
    assert not {name for name in plain if name not in pinned and name.replace("_", "-") not in pinned}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "hypo", "online_dpo"])
def test_a_real_model_trains_on_real_preferences(method, tmp_path, capsys):
    data = "hh_rlhf_harmless_test/harmless-base_test.jsonl.gz"
    words = ["train", method, "--model", str(shared("models/stories260k")), "--data", str(shared(f"data/{data}"))]
    words += ["--output_dir", str(tmp_path), "--max_steps", "2", "--max_completion_length", "64", "--eval_prompts", "4"]
    words += ["--prompts_per_round", "4", *(["--reward", "length:prefer=shorter"] if method == "online_dpo" else [])]
    assert main(words) == 0
    assert "were dropped" in capsys.readouterr().err
    assert main([*words[:-1], words[-1], "--max_steps", "4", "--resume"]) == 0
