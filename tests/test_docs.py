"""What the pages say can be done can be done: rows, rewards, configs, links and flags."""

import contextlib
import dataclasses
import json
import re
import typing
from pathlib import Path

import pytest

from modeseek.cli import COMMANDS, main
from modeseek.commands import train
from modeseek.config import Run, load, parse_reward, snake
from modeseek.data.shapes import parse
from modeseek.rewards import AnyReward

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)


def test_every_row_of_the_page_on_data_is_read_as_it_says():
    rows = [json.loads(line) for line in blocks("data.md", "jsonl")[0].splitlines()]
    read = [parse(row) for row in rows]
    assert [len(record.responses) for record in read] == [2, 2, 2, 2, 3, 1, 1, 0]
    assert all(record.responses[0] in ("Blue.", " Blue.") for record in read[:-1])
    assert read[4].rewards == (3, 2, -1) and read[5].labels == (True,)


@pytest.mark.parametrize("page, count", [("data.md", 1), ("train.md", 2)])
def test_every_config_of_the_pages_loads(page, count, tmp_path):
    texts = blocks(page, "yaml")
    assert len(texts) == count
    for i, text in enumerate(texts):
        path = tmp_path / f"{i}.yaml"
        path.write_text(text)
        assert load(str(path)).prompts_per_round == 16


def test_every_reward_and_option_is_on_its_page():
    text = (ROOT / "docs" / "rewards.md").read_text()
    for kind in typing.get_args(AnyReward):
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{snake(kind)}` |")]
        options = {field.name for field in dataclasses.fields(kind)} - {"scale", "unfinished"}
        assert options <= set(re.findall(r"`(\w+)`", row)), kind


def test_every_reward_of_the_page_is_understood():
    for spec in re.findall(r"^--reward (.+)$", blocks("rewards.md", "")[0], re.M):
        if spec != "reward.yaml":
            parse_reward(spec.strip("'"))
    with pytest.raises(ValueError, match="keyword, words"):
        parse_reward("keyword:words=[please,thanks]")
    with pytest.raises(ValueError, match="not YAML"):
        parse_reward("{type: keyword")


def test_every_link_between_the_pages_leads_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def said_of(command, capsys):
    """Its --help, flags with underscores."""
    with contextlib.suppress(SystemExit):
        main([command, "--help"])
    return capsys.readouterr().out.replace("-", "_")


def test_every_flag_that_a_page_shows_is_a_flag_of_its_command(capsys):
    fields = " ".join(f"__{field.name}" for field in dataclasses.fields(Run)) + train.HELP.replace("-", "_")
    known = {command: said_of(command, capsys) for command in COMMANDS} | {"train": fields}
    known["plan"] += fields  # which takes the flags of train
    known["iterate"] += " __train."
    shown = 0
    for page in PAGES:
        for command, words in re.findall(r"modeseek ([a-z-]+)((?: +[^\s`|]+)*)", page.read_text()):
            for flag in re.findall(r"(?<!\S)--([a-zA-Z][\w-]*)", words):
                assert f"__{flag.replace('-', '_')}" in known[command], f"{page.name}: modeseek {command} --{flag}"
                shown += 1
    assert shown > 40
