"""What each command of the command line does with its words. Every one is a call of a public function."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

Positional = tyro.conf.Positional


def train(words: list[str]) -> int:
    """Train a model: `modeseek train CONFIG [--flags]`."""
    from modeseek import config

    if not words or words[0].startswith("-"):
        if words and words[0] in ("-h", "--help"):
            words = ["dpo", "--help"]
        else:
            raise ValueError(f"which config? A YAML file or one of {', '.join(config.names())}")
    resume = [w for w in words if w in ("--resume", "--resume=true")]
    run = config.load(words[0], [w for w in words[1:] if w not in resume])
    from modeseek.runs import train as train_run

    folder = train_run(run, resume=bool(resume))
    print(f"{folder}/model is the model; `modeseek report {folder}` makes its page")
    return 0


@dataclass(frozen=True, kw_only=True)
class Check:
    """Look at a preference data set before anything is trained on it."""

    data: Annotated[str, Positional]  # file or hub name
    model: str = ""  # folder or hub name: also count tokens, and show what its template renders
    eval_data: str = ""  # held-out file, to look for shared prompts
    split: str = "train"  # split of a hub data set
    max_length: int | None = None  # tokens of prompt and response together; unset: what the model reads, else 1024
    max_completion_length: int | None = None  # tokens of a response
    skip_bad_rows: str = ""  # set bad rows aside into this file instead of stopping at the first
    json: bool = False  # print JSON


def check(words: list[str]) -> int:
    """Is this data set sound?"""
    asked = tyro.cli(Check, args=words, prog="modeseek check")
    from modeseek.data import checks, files

    aside = Path(asked.skip_bad_rows) if asked.skip_bad_rows else None
    reading = files.read(asked.data, split=asked.split, skip_bad_rows=aside)
    held = files.load(asked.eval_data, split=asked.split) if asked.eval_data else None
    groups = None
    if asked.model:
        from modeseek.data.tokenise import Template, tokenise

        template = Template.load(asked.model)
        limit = asked.max_length or context(asked.model)
        groups = tokenise(
            reading.records, template, max_length=limit, max_completion_length=asked.max_completion_length
        )
    report = checks.check(reading.records, groups, held)
    report = {"data": asked.data, "bad_rows": len(reading.bad), **report}
    if asked.json:
        print(json.dumps(report, indent=2, ensure_ascii=False, default=str))
    else:
        Console().print(checks.render(report))
    return 0


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Compare a policy with a reference on the same prompts."""

    policy: Annotated[str, Positional]  # folder that save_pretrained wrote, a run's folder, or a hub name
    against: str  # the reference, likewise
    prompts: str  # preference or prompt file, or hub name; only its prompts are read
    reward: str  # how to score, as in --reward length:prefer=shorter
    samples: int = 1  # responses to each prompt
    limit: int = 256  # prompts at most, the first of the file; 0: all
    split: str = "train"  # split of a hub data set
    temperature: float = 1.0  # the KL is measured at 1 only
    max_length: int = 1024  # tokens of prompt and response together
    max_completion_length: int = 256  # tokens of a response
    batch_size: int = 32  # prompts at once
    seed: int = 0
    output: str = ""  # write the numbers there as JSON; a run's folder keeps them for its report
    json: bool = False  # print JSON


def evaluate(words: list[str]) -> int:
    """Did it work?"""
    asked = tyro.cli(Evaluate, args=words, prog="modeseek evaluate")
    from modeseek import record
    from modeseek.build import context_of, load_policy, raw_prompts
    from modeseek.config import parse_reward
    from modeseek.data.files import load
    from modeseek.data.tokenise import Groups, Template
    from modeseek.evaluate import evaluate as compare
    from modeseek.rewards import build_reward

    reward = parse_reward(asked.reward)
    ours, theirs = model_folder(asked.policy), model_folder(asked.against)
    template = Template.load(theirs)
    policy = load_policy(ours, template, max_new=asked.max_completion_length)
    reference = load_policy(theirs, template, max_new=asked.max_completion_length)
    records = load(asked.prompts, split=asked.split)
    records = records[: asked.limit or len(records)]
    limit = min(asked.max_length, context_of(policy) or asked.max_length)
    prompts = Groups.from_prompts(
        records, template, max_length=limit, max_completion_length=asked.max_completion_length
    )
    found = compare(
        policy,
        reference,
        prompts,
        build_reward(reward, template, raw_prompts(prompts)),
        samples_per_prompt=asked.samples,
        batch_size=asked.batch_size,
        seed=asked.seed,
        temperature=asked.temperature,
    )
    results = [{"name": e.name, "value": e.value, "low": e.low, "high": e.high, "n": e.n} for e in found.estimates()]
    if record.is_run(Path(asked.policy)):
        record.write_results(asked.policy, results)
    if asked.output:
        record.write_json(Path(asked.output), results)
    if asked.json:
        print(json.dumps(results, indent=2))
        return 0
    table = Table(title=f"{asked.policy} against {asked.against}, {len(prompts)} prompts")
    for name in ("", "value", "95% interval", "n"):
        table.add_column(name, justify="left" if not name else "right")
    for e in found.estimates():
        table.add_row(e.name, f"{e.value:.4g}", f"{e.low:.4g} to {e.high:.4g}", str(e.n))
    Console().print(table)
    if found.kl is None:
        print("the KL is measured at temperature 1 only", file=sys.stderr)
    return 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """One self-contained HTML page of training runs; runs of the same method with other seeds are one line."""

    runs: Annotated[tuple[str, ...], Positional]  # folders that train wrote
    output: str = ""  # unset: report.html in the first run's folder
    title: str = ""


def report(words: list[str]) -> int:
    """Make the page."""
    asked = tyro.cli(Report, args=words, prog="modeseek report")
    if not asked.runs:
        raise ValueError("which runs? Name at least one folder that train wrote")
    from modeseek.report import write

    out = Path(asked.output or Path(asked.runs[0]) / "report.html")
    print(write(asked.runs, out, asked.title or None))
    return 0


def objectives(words: list[str]) -> int:
    """The table of methods and objectives, from the code."""
    if words and words != ["--json"]:
        raise ValueError(f"unknown words {' '.join(words)!r}; there is --json")
    from modeseek import catalogue

    if words:
        print(json.dumps(catalogue.rows(), indent=2))
    else:
        print(catalogue.text())
    return 0


def quickstart(words: list[str]) -> int:
    """The demo."""
    from modeseek import quickstart as demo

    return demo.main(words)


def model_folder(name: str) -> str:
    """A run's folder stands for the model in it."""
    inside = Path(name) / "model"
    return str(inside) if inside.is_dir() else name


def context(model: str) -> int | None:
    """The tokens that a model reads at most, from its config alone."""
    from modeseek.policies.hf import context_length

    return context_length(model)
