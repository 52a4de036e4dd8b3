"""The examples and the README's commands run."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from modeseek.cli import main

ROOT = Path(__file__).parents[1]
SHORT = "--max_steps 2 --prompts_per_round 4 --max_length 120 --max_completion_length 60 --eval_prompts 2"


def test_dpo_by_hand_agrees_with_the_library():
    spec = importlib.util.spec_from_file_location("by_hand", ROOT / "examples" / "dpo_by_hand.py")
    by_hand = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(by_hand)
    assert by_hand.main() < 1e-6


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tiny, fable_pairs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "M").symlink_to(tiny)
    (tmp_path / "pairs.jsonl").symlink_to(fable_pairs)
    commands = re.findall(r"^modeseek (.+?)\s*(?:#.*)?$", (ROOT / "README.md").read_text(), re.M)
    assert len(commands) > 5
    for command in commands:
        words = shlex.split(command)
        if words[0] == "train":
            words += shlex.split(SHORT)
        if words[0] == "evaluate":
            words += ["--limit", "4", "--max_completion_length", "20"]
        assert main(words) == 0, command
    assert (tmp_path / "runs" / "dpo" / "report.html").exists()
