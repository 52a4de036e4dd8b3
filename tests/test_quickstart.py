import dataclasses
import io
import json
import re
import socket
from pathlib import Path

import pytest
import torch
from rich.console import Console

from modeseek import config, record
from modeseek.data import fables
from modeseek.data.template import Template
from modeseek.quickstart import SHORT, Quickstart, _folder, _in_processes, main, quickstart, story, world
from modeseek.quickstart.arms import FULL, Arm, learns_from, looks
from modeseek.quickstart.world import Recipe

TINY = Recipe(steps=1, pretraining_steps=25, pairs=24, held_out=6, prompts=3, samples=1)
FOX = "tell of the fox in the forest :"


def refused(*args, **kwargs):
    raise AssertionError("the quickstart asked for the network")


def told(asked, recipe):
    words = io.StringIO()
    page = quickstart(asked, recipe, Console(file=words, width=80))
    return words.getvalue(), page


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """One seed of every default arm, with the network cut; what was printed, and the page."""
    folder = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refused)
        patch.setattr(socket, "getaddrinfo", refused)
        return told(Quickstart(seeds=1, output_dir=str(folder / "out")), TINY)


def test_the_table_has_a_row_for_the_reference_and_for_every_arm(tiny):
    words, _ = tiny
    for name in ("reference", *(arm.name for arm in SHORT)):
        assert re.search(rf"^{re.escape(name)} .*%", words, re.M), name
    assert "before training" in words and "own fables + reward" in words
    assert max(map(len, words.split("report: ")[0].splitlines())) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in words  # no cell was cut


def test_a_page_and_a_picture_are_written_and_the_path_is_printed(tiny):
    words, page = tiny
    assert page.name == "report.html" and f"report: {page}" in words
    html = page.read_text()
    assert all(arm.name in html for arm in SHORT) and "Reward and KL over steps" in html
    assert "degenerate text" in html
    assert (page.parent / "quickstart.svg").read_text().startswith("<?xml")


def test_every_run_directory_holds_what_the_report_needs(tiny):
    _, page = tiny
    for arm in SHORT:
        run = record.read(page.parent / "seed-0" / arm.folder)
        assert run.card["method"] == arm.name and run.card["seed"] == 0
        held = [row for row in run.rows if "eval/reward" in row]
        assert [row["step"] for row in held] == [0, 1]
        for name in ("kl", "degenerate", "win_rate", "logps/chosen", "logps/rejected", "rewards/margins"):
            assert all(f"eval/{name}" in row for row in held)
        assert {result["name"] for result in run.results} == {"reward", "win_rate", "kl", "degenerate"}
        assert run.samples[0]["prompt"] == FOX and run.samples[0]["reference"]


def test_before_any_step_every_arm_is_the_reference(tiny):
    _, page = tiny
    rows = [record.read(page.parent / "seed-0" / arm.folder).rows[0] for arm in SHORT]
    for row in rows:
        assert row["eval/kl"] == pytest.approx(0, abs=1e-4) and row["eval/rewards/margins"] == pytest.approx(
            0, abs=1e-4
        )
        assert row["eval/logps/chosen"] == rows[0]["eval/logps/chosen"]


def test_a_run_s_config_can_be_trained_again(tiny):
    path, *flags = tiny[0].split("turn a knob: modeseek train ")[1].split()
    run = config.load(path, flags)
    assert run.max_steps == 1 and run.objective == dataclasses.replace(config.load("hypo").objective, kl=0.03)
    assert run.output_dir == "runs/mine"
    assert Template.load(run.model).decode([1, 2]) == ""
    assert len(Path(run.data).read_text().splitlines()) == TINY.pairs


def test_a_seed_gives_the_same_numbers_again(tiny, tmp_path):
    """In another process, where arms have run before or not: an arm starts from nothing but the seed."""
    arm = next(a for a in SHORT if a.name == "HyPO")
    _, page = tiny
    seen = []
    ((path,),) = _in_processes([0], TINY, [arm], tmp_path, 1, lambda *news: seen.append(news), workers=1)
    again, first = record.read(path), record.read(page.parent / "seed-0" / arm.folder)
    assert again.rows == first.rows and again.samples == first.samples and again.results == first.results
    assert seen[0][2] == "reference" and seen[-1][2] == "done"


@pytest.mark.slow
def test_what_goes_wrong_in_a_process_is_raised_here(tmp_path):
    with pytest.raises(ValueError, match="no method 'hypno'"):
        _in_processes([0, 1], TINY, [Arm("x", "hypno")], tmp_path, 1, lambda *news: None, workers=2)


@pytest.mark.slow
def test_every_arm_runs_and_another_seed_is_another_start(tmp_path):
    words, page = told(Quickstart(seeds=2, full=True, output_dir=str(tmp_path / "out")), TINY)
    starts = [record.read(page.parent / f"seed-{seed}" / "dpo").rows[0]["eval/logps/chosen"] for seed in (0, 1)]
    assert starts[0] != starts[1]
    assert all(re.search(rf"^{re.escape(arm.name)} .*%", words, re.M) for arm in FULL)
    assert max(map(len, words.split("report: ")[0].splitlines())) <= 80


def test_all_eight_and_forty_prompts_are_asked_and_the_first_ones_differ():
    assert len(set(world.prompts(48))) == 48
    assert world.prompts(2) == [FOX, "tell of the hare in the village :"]


def test_an_end_token_inside_a_fable_breaks_it():
    """Special tokens are written out, all but the last end: a decoder that skips them would see a whole fable."""
    template = Template(world.tokenizer())
    fable = "once the fox woke in the forest . the fox gave bread to the widow . so the fox had many friends ."
    ids = template.response_ids(fable, FOX)
    pad = template.tokenizer.convert_tokens_to_ids(fables.PAD)
    batch = world.Batch.of([template.prompt_ids(FOX)], [[ids, [*ids[:8], pad, *ids[8:]], ids[:-1]]])
    batch = batch.fill(finished=torch.tensor([[True, True, False]]))
    whole, broken, cut = world.verdicts(batch, template)[0]
    assert whole.reward == 1 + 1 and not whole.degenerate
    assert broken.broken == 1 and broken.degenerate
    assert not cut.broken and cut.reward == 1 + 1 - 1
    assert world.reward(template)(batch).tolist() == [[2, broken.reward, 1]]


def test_arms_say_what_they_are_shown():
    shown = {arm.name: learns_from(config.from_dict(config.read_tree(arm.method))) for arm in FULL}
    assert shown["DPO"] == "pairs" and shown["HyPO"] == "pairs + own fables" and shown["RLOO"] == "own fables + reward"
    assert len({arm.folder for arm in FULL}) == len(FULL)


def test_measurements_are_where_the_recipe_was_measured():
    assert looks(150) == {25, 50, 75, 100, 150}
    assert looks(1) == {1}


def test_an_earlier_result_is_never_touched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(_folder("")) == "runs/quickstart"
    (tmp_path / "runs/quickstart").mkdir(parents=True)
    assert str(_folder("")) == "runs/quickstart-2"
    (tmp_path / "mine").mkdir()
    assert str(_folder("mine")) == "mine"
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="output_dir: mine is not empty"):
        _folder("mine")
    with pytest.raises(SystemExit, match="2"):
        main(["--seeds", "0"])


# What the story says, from numbers written by hand


def runs(folder, ends):
    """Run directories of two seeds: `ends[arm]` holds (reward, KL, degenerate) of each."""
    shown = {
        "DPO": "pairs",
        "SFT on chosen": "pairs",
        "HyPO": "pairs + own fables",
        "online DPO": "own fables + reward",
    }
    pairs = folder / "pairs.jsonl"
    rows = fables.pairs(5, 0)
    rows[0]["rejected"] = "the fox the fox ."
    world.write_jsonl(pairs, rows)
    paths = []
    for name, seeds in ends.items():
        for seed, (reward, kl, bad) in enumerate(seeds):
            card = {"method": name, "seed": seed, "learns_from": shown[name], "recipe": dataclasses.asdict(Recipe())}
            it = record.Record.start(folder / f"{name}-{seed}", {"data": str(pairs)}, card)
            start = {
                f"eval/{m}{end}": 0.1
                for m in ("reward", "win_rate", "kl", "degenerate")
                for end in ("", "/low", "/high")
            }
            it.row({"step": 0, **start, "eval/rewards/accuracies": 0.5, "eval/logps/chosen": -30.0})
            it.row({"step": 150, "eval/rewards/accuracies": 0.8 + 0.1 * seed, "eval/logps/chosen": -40.0 - seed})
            found = {"reward": reward, "win_rate": 0.5, "kl": kl, "degenerate": bad}
            it.results([{"name": m, "value": v, "low": v - 0.1, "high": v + 0.2, "n": 48} for m, v in found.items()])
            it.samples([{"step": 150, "prompt": FOX, "response": "the fox <pad>", "reward": -1.0, "degenerate": True,
                         "finished": False, "reference": "then it was night ."}])  # fmt: skip
            paths.append(it.path)
    return paths


DRIFT = {
    "SFT on chosen": [(0.7, 1, 0.1), (0.8, 1, 0.1)],
    "DPO": [(-2.2, 109, 1.0), (0.4, 25, 0.8)],
    "HyPO": [(2.1, 3, 0.1), (2.4, 4, 0.1)],
    "online DPO": [(2.8, 4, 0.0), (2.3, 6, 0.0)],
}


def test_the_paragraph_counts_orderings_over_the_seeds(tmp_path):
    said = story.paragraph(story.ended(runs(tmp_path, DRIFT)))
    assert "Of the 20 fables in the pairs 2 are degenerate, of the reference's own 10% are" in said  # one, on two seeds
    assert "more degenerate fables than the reference in 2 of 2 seeds (80% to 100%)" in said
    assert "ranks 85% of held-out pairs right" in said  # the mean of 0.8 and 0.9
    assert "more reward than DPO in 2 of 2 seeds, and with less KL in 2 of 2 seeds" in said
    assert "SFT on chosen at 0.70 to 0.80 (10% degenerate). HyPO, at 2.10 to 2.40 (10%), is above" in said
    assert "is above all of them in reward in 2 of 2 seeds" in said
    assert "above HyPO in 1 of 2 seeds" in said


def test_the_paragraph_says_so_when_the_story_does_not_show(tmp_path):
    flat = DRIFT | {"DPO": [(2.5, 2, 0.05), (2.5, 2, 0.05)]}
    said = story.paragraph(story.ended(runs(tmp_path, flat)))
    assert "DPO moves to where" not in said
    assert "more degenerate fables than the reference in 0 of 2 seeds (5%)" in said
    assert "more reward than DPO in 0 of 2 seeds, and with less KL in 0 of 2 seeds" in said


def test_a_cell_is_the_mean_over_the_widest_of_the_seeds_intervals(tmp_path):
    arms = {arm.name: arm for arm in story.ended(runs(tmp_path, DRIFT))}
    found = arms["DPO"].range("reward")
    assert (found.mean, found.low, found.high) == pytest.approx(((-2.2 + 0.4) / 2, -2.2 - 0.1, 0.4 + 0.2))
    moved = arms["DPO"].change("logps/chosen")
    assert (moved.mean, moved.low, moved.high) == (-10.5, -11, -10)


def test_fables_are_shown_as_they_were_written(tmp_path):
    """Square brackets are no markup, and a fable that was cut off says so."""
    words = io.StringIO()
    paths = runs(tmp_path, DRIFT)
    lines = (paths[0] / "samples.jsonl").read_text().replace("<pad>", "[bold]soup[/bold]")
    (paths[0] / "samples.jsonl").write_text(lines)
    assert json.loads(lines)
    story.tell(Console(file=words, width=80), paths)
    assert "the fox [bold]soup[/bold] ..." in words.getvalue()
    assert "reward -1.00, degenerate" in words.getvalue()
