"""Which method, which data next, at what cost? `modeseek advise MODEL DATA [--reward R] [--race] [--collect]`."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from modeseek.commands.models import model_folder


@dataclass(frozen=True, kw_only=True)
class Advise:
    """Rank the methods for this model and these pairs; with --race, train and measure the most promising."""

    model: Annotated[str, tyro.conf.Positional]  # folder that save_pretrained wrote, a run's folder, or a hub name
    data: Annotated[str, tyro.conf.Positional]  # preference file, folder with one in it, or hub name
    reward: str = ""  # what methods on own samples would train with, as in --reward length:prefer=shorter
    judge: str = ""  # what decides the race, likewise; unset: the reward
    budget: str = ""  # of the race, as in labels=200,hours=2; those two are the defaults
    race: bool = False  # train candidates on a slice and judge them on held-out prompts
    collect: bool = False  # also write a plan of what to collect, for modeseek collect
    output_dir: str = "runs/advice"  # advice.json, advice.html, recommended.yaml, and the race's runs
    steps: int = 0  # of the run that is advised; 0: once through the data, 500 at most
    race_steps: int = 40  # of each candidate in the race's first rung; the second has three times as many
    candidates: int = 6  # in the race, beside doing nothing
    lora: int = 16  # rank of the adapters that are trained; 0: the full weights
    learning_rate: float = 0.0  # of every method; 0: each method's own
    prompts: int = 96  # of the data, looked at
    samples: int = 4  # of the model to each of them
    split: str = "train"  # split of a hub data set
    max_length: int = 1024  # tokens of prompt and response together
    max_completion_length: int = 256  # tokens of a response
    device: str = "auto"
    seed: int = 0
    json: bool = False  # print JSON


def main(words: list[str]) -> int:
    """Which method, which data next, at what cost?"""
    asked = tyro.cli(Advise, args=words, prog="modeseek advise")
    _refuse(asked)
    from modeseek import config
    from modeseek.advise.advice import advise
    from modeseek.advise.cost import cost
    from modeseek.advise.prior import Prior
    from modeseek.commands.data_file import data_file

    asked = replace(asked, data=data_file(asked.data))  # the recommended config names the file
    reward = config.parse_reward(asked.reward) if asked.reward else None
    judge = config.parse_reward(asked.judge, "judge") if asked.judge else reward
    model, console, prior = model_folder(asked.model), Console(stderr=True), Prior.load()
    problem = _meet(asked, model, reward, console)
    steps = asked.steps or max(1, min(500, problem.all_pairs // 16))
    price = lambda method: cost(
        method, steps=steps, prompts=16, generations=4, tokens=problem.tokens, speed=problem.speed
    )
    console.print("rehearsing the methods on a twin")
    advice = advise(problem.twin, prior, price, rewarded=reward is not None, seed=asked.seed)
    folder = Path(asked.output_dir)
    tree = {"model": asked.model, "data": asked.data, "reward": asked.reward, "steps": steps, **asdict(advice)}
    tree["best_method"] = None
    if asked.race:
        tree |= _race(asked, model, problem, advice, judge, prior, console)
    _recommend(asked, model, tree, folder, steps)
    if asked.collect:
        tree["collect"] = _collect(asked, model, problem, advice, prior, folder)
    _write(tree, folder)
    if asked.json:
        print(json.dumps(tree, indent=2))
    else:
        show(tree, folder)
    return 0


def _refuse(asked: Advise) -> None:
    parse_budget(asked.budget)
    if asked.budget and not asked.race:
        raise ValueError("budget: given, but only a race spends it; write --race")
    if asked.judge and not asked.race:
        raise ValueError("judge: given, but only a race asks it; write --race")
    if asked.race and not (asked.reward or asked.judge):
        raise ValueError("judge: none given to decide the race; write --judge SPEC or --reward SPEC")
    if asked.samples < 2:
        raise ValueError(f"samples: {asked.samples}, expected at least 2")


def parse_budget(words: str) -> dict[str, float]:
    """`labels=200,hours=2`: what a race may spend."""
    found = {"labels": 200.0, "hours": 2.0}
    for part in filter(None, words.split(",")):
        key, _, value = part.partition("=")
        try:
            amount = float(value)
        except ValueError:
            amount = -1.0
        if key not in found or amount <= 0:
            raise ValueError(f"budget: {part!r}, expected labels=NUMBER or hours=NUMBER, above zero")
        found[key] = amount
    return found


def _meet(asked: Advise, model: str, reward: Any, console: Console) -> Any:
    """The model and the pairs as a problem, with bars for what is sampled and scored."""
    from modeseek.advise.problem import meet
    from modeseek.build import device_of

    with Progress(console=console) as progress:
        tasks = {what: progress.add_task(what, total=None) for what in ("sampled", "scored")}
        return meet(
            model,
            asked.data,
            reward,
            split=asked.split,
            prompts=asked.prompts,
            samples=asked.samples,
            max_length=asked.max_length,
            max_completion_length=asked.max_completion_length,
            device=device_of(asked.device),
            seed=asked.seed,
            tell=lambda what, n: progress.advance(tasks[what], n),
        )


def _race(
    asked: Advise, model: str, problem: Any, advice: Any, judge: Any, prior: Any, console: Console
) -> dict[str, Any]:
    """Run it; what it found, as keys of the advice."""
    from modeseek.advise.book import same_race
    from modeseek.advise.methods import ARMS
    from modeseek.advise.trial import held_out, run_race
    from modeseek.build import raw_prompts
    from modeseek.rewards import build_reward

    setup, folder, budget = _setup(asked, model), Path(asked.output_dir), parse_budget(asked.budget)
    wanted = [(o.name, o.value) for o in advice.options if o.config][: asked.candidates]
    arms = [
        arm for name, value in wanted for arm in ARMS if arm.method and (arm.method.name, arm.dial) == (name, value)
    ]
    # what may change as it goes on
    free = ("budget", "candidates", "collect", "steps", "race", "device", "json", "output_dir")
    same_race(folder, {key: value for key, value in asdict(asked).items() if key not in free})
    rungs = run_race(
        problem,
        arms,
        setup,
        build_reward(judge, problem.template, raw_prompts(held_out(problem, setup, 32))),
        prior,
        folder,
        steps=asked.race_steps,
        labels=int(budget["labels"]),
        hours=budget["hours"],
        tell=lambda line: console.print(line, highlight=False),
    )
    return {**_raced(rungs, len(arms), advice), "judge": asked.judge or asked.reward}


def _raced(rungs: Sequence[Any], candidates: int, advice: Any) -> dict[str, Any]:
    """What the rungs found."""
    from modeseek.advise.trial import winner
    from modeseek.report.advice import said

    last = rungs[-1]
    first = winner(last.standings)
    best = first.arm
    raced = f"{candidates} candidates raced, {len(last.standings) - 1} of them for {last.steps} steps"
    measured = (
        f"{raced}: {said(best.name)} gains {first.gain:.3g} [{first.low:.3g}, {first.high:.3g}] by the judge, and is"
        f" the best with a chance of {first.best:.0%}"
        if best.method is not None
        else f"{raced}: none surely gains by the judge, for no 80% interval is above zero; more labels, or longer"
        " rungs, would tell more"
    )
    told = lambda s: {**{k: v for k, v in vars(s).items() if k != "arm"}, "name": s.arm.name}
    return {
        "verdict": "do nothing" if best.method is None else "train",
        "reasons": [measured, *advice.reasons[:2]],
        "rungs": [
            {"steps": r.steps, "labels": r.labels, "hours": r.hours, "standings": [told(s) for s in r.standings]}
            for r in rungs
        ],
        "judged": sum(r.labels for r in rungs),
        "best_method": "nothing" if best.method is None else best.name,
    }


def _collect(asked: Advise, model: str, problem: Any, advice: Any, prior: Any, folder: Path) -> dict[str, Any]:
    """Write the plan of what to collect; it, and what speaks for it."""
    from modeseek.advise.gather import plan_for
    from modeseek.disk import write_yaml

    found = plan_for(problem.twin, advice, prior, model=model, label=asked.judge or asked.reward, seed=asked.seed)
    limits = {"max_length": asked.max_length, "max_completion_length": asked.max_completion_length}
    plan = {**found.plan, **limits, "store": str(folder / "preferences.sqlite")}
    folder.mkdir(parents=True, exist_ok=True)
    write_yaml(folder / "collect.yaml", plan)
    return {"plan": plan, "reasons": list(found.reasons), "per_label": found.per_label}


def _setup(asked: Advise, model: str) -> Any:
    """What all candidates and the recommended run have in common."""
    from modeseek.advise.candidates import Setup

    return Setup(
        model=model,
        data=asked.data,
        reward=asked.reward,
        split=asked.split,
        learning_rate=asked.learning_rate,
        max_length=asked.max_length,
        max_completion_length=asked.max_completion_length,
        lora=asked.lora,
        device=asked.device,
        seed=asked.seed,
    )


def _recommend(asked: Advise, model: str, tree: dict[str, Any], folder: Path, steps: int) -> None:
    """The config of the winner or of the most promising, of SFT where that is to come first; none where nothing is to
    be trained yet."""
    from modeseek.advise.candidates import tree_of, write
    from modeseek.advise.methods import ARMS

    wanted = {"train": None, "sft first": "sft"}
    first = next((o for o in tree["options"] if o["config"] and wanted.get(tree["verdict"]) in (None, o["name"])), None)
    name = tree["best_method"] or (f"{first['name']} {first['value']:g}" if first else "nothing")
    arm = next(a for a in ARMS if a.name == name)
    if arm.method is None or tree["verdict"] not in wanted:
        (folder / "recommended.yaml").unlink(missing_ok=True)  # of an earlier advice in this folder
        return
    setup = _setup(asked, model)
    run = tree_of(arm, setup, steps=steps, output_dir=folder / "recommended")
    if arm.method.scores and not asked.reward:
        return
    write(run, folder / "recommended.yaml")
    tree["recommended"] = str(folder / "recommended.yaml")


def _write(tree: dict[str, Any], folder: Path) -> None:
    from modeseek.disk import write_json
    from modeseek.report.advice import render

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "advice.json", tree)
    (folder / "advice.html").write_text(render(tree), encoding="utf-8")


def show(tree: dict[str, Any], folder: Path) -> None:
    """The terminal's version."""
    console = Console()
    console.print(f"[bold]{tree['verdict']}[/]", highlight=False)
    for reason in tree["reasons"]:
        console.print(f"  {reason}", highlight=False)
    if tree["outside"]:
        console.print(f"  outside what the prior knows (most of all: {tree['furthest']}): race before you trust it")
    table = Table(title="expected of each method; gains in log-odds over the model as it is, 80% intervals")
    for name in ("method", "dial", "gain", "best", "KL", "hours"):
        table.add_column(name, no_wrap=True)
    for o in tree["options"]:
        table.add_row(
            o["name"],
            f"{o['dial'].rpartition('.')[2]} {o['value']:g}" if o["dial"] else "",
            f"{o['gain']:.2f} [{o['low']:.2f}, {o['high']:.2f}]",
            f"{o['best']:.0%}",
            f"{o['kl']:.1f}",
            f"{o['cost']['hours']:.2g}",
        )
    console.print(table)
    for o in tree["options"][:3]:
        if o["config"]:
            console.print(f"{o['name']}: {o['evidence']}; {o['claim']}; wrong when {o['wrong']}", highlight=False)
    for rung in tree.get("rungs", []):
        told = Table(title=f"race: {rung['steps']} steps, {rung['labels']} labels, {rung['hours']:.2g} hours")
        for name in ("candidate", "gain, judge's unit", "best", "KL", ""):
            told.add_column(name)
        for s in rung["standings"]:
            gain = f"{s['gain']:.3g} [{s['low']:.3g}, {s['high']:.3g}]"
            told.add_row(s["name"], gain, f"{s['best']:.0%}", f"{s['kl']:.2f}", "dropped" if s["dropped"] else "")
        console.print(told)
    if tree.get("recommended"):
        print(f"to train it: modeseek train {tree['recommended']}")
    if tree.get("collect"):
        print(f"to collect: modeseek collect {tree['model']} PROMPTS --plan {folder / 'collect.yaml'}")
    print(f"the page: {folder / 'advice.html'}", file=sys.stderr)
