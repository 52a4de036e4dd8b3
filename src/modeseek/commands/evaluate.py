"""Did it work? `modeseek evaluate POLICY --against REF --prompts P --reward R`."""

import json
import sys
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from modeseek.commands.models import context, model_folder


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Compare policies with references on the same prompts: win rate, reward, KL, length, with intervals."""

    # folders of save_pretrained or of runs, RUN/checkpoints/step-N, or hub names
    policies: Annotated[tuple[str, ...], tyro.conf.Positional]
    against: tuple[str, ...] = ()  # the reference, likewise; several: a set of baselines. The KL is to the first
    prompts: str  # preference or prompt file, or hub name; only its prompts are read
    reward: str = ""  # how to score, as in --reward length:prefer=shorter; a judge compares both orders
    together: Literal["seeds", "checkpoints"] = "seeds"  # what several policies are: runs of one method, or a way
    gold: str = ""  # a reward that is believed more: where does the first stop meaning it?
    samples: int = 1  # responses to each prompt
    best_of: int = 0  # sample the first reference so often and draw best-of-N curves; 0: no
    limit: int = 256  # prompts at most, the first of the file; 0: all
    split: str = "train"  # split of a hub data set
    temperature: float = 1.0  # the KL is measured at 1 only
    max_length: int = 1024  # tokens of prompt and response together
    max_completion_length: int = 256  # tokens of a response
    stop_strings: tuple[str, ...] = ()  # texts that end a response too; it keeps them
    token_budget: int | None = None  # tokens in memory at once; unset: all of a batch's
    batch_size: int = 32  # prompts at once
    seed: int = 0
    harness: tuple[str, ...] = ()  # lm-evaluation-harness tasks to run on the first policy and the first reference
    harness_limit: int = 0  # documents of each task; 0: all
    harness_include: str = ""  # folder with task definitions of your own
    # alpaca_eval or mt_bench, and a FILE: write the policy's answers to that benchmark's questions (--prompts) in the
    # form that its own tools read, and compare nothing
    outputs: tuple[str, str] | None = None
    page: str = ""  # write an HTML page there: everything below, with samples side by side
    output: str = ""  # write the numbers there as JSON; a run's folder keeps them for its report
    json: bool = False  # print JSON


def main(words: list[str]) -> int:
    """Did it work?"""
    asked = tyro.cli(Evaluate, args=words, prog="modeseek evaluate")
    from modeseek import record
    from modeseek.disk import write_json
    from modeseek.evaluate.exhibit import row

    if asked.outputs is not None:
        print(_outputs(asked, *asked.outputs))
        return 0
    _refuse(asked)
    trial = _trial(asked)
    found = trial.run()
    tasks = _tasks(asked)
    results = [*found.rows, *map(row, tasks)]
    if len(asked.policies) == 1 and record.is_run(Path(asked.policies[0])):
        record.write_results(asked.policies[0], results)
    if asked.output:
        write_json(Path(asked.output), results)
    if asked.page:
        from modeseek.report.evaluation import write

        told = {"reward": asked.reward, "prompts": asked.prompts, "temperature": asked.temperature, "seed": asked.seed}
        told |= {"samples a prompt": asked.samples, "gold reward": asked.gold}
        told = {name: value for name, value in told.items() if value != ""}
        title = f"{', '.join(asked.policies)} against {', '.join(asked.against)}"
        print(write(trial.exhibit(title, told, tasks), Path(asked.page)), file=sys.stderr)
    if asked.json:
        print(json.dumps(results, indent=2))
    else:
        _print(asked, results, trial.prompts)
    for line in found.notes:
        print(line, file=sys.stderr)
    return 0


def _refuse(asked: Evaluate) -> None:
    if not asked.policies or not asked.against or not asked.reward:
        raise ValueError("which policy, against which? modeseek evaluate POLICY --against REF --prompts P --reward R")
    if asked.harness and (kept := [n for n in (asked.policies[0], asked.against[0]) if "/checkpoints/step-" in n]):
        raise ValueError(f"harness: {kept[0]} is a checkpoint, and lm-eval reads models; name the run, or leave it out")
    for key, names in (("policies", asked.policies), ("against", asked.against)):
        if len(set(names)) < len(names):
            raise ValueError(f"{key}: one name twice; a policy counts once")
    if asked.together == "checkpoints" and asked.temperature != 1:
        raise ValueError("temperature: reward against KL needs 1, where the KL is measured; or write --together seeds")
    if asked.best_of == 1 or asked.best_of < 0:
        raise ValueError(f"best_of: found {asked.best_of}, expected 2 or more, or 0 for none")


def _trial(asked: Evaluate) -> Any:  # a Trial, whose import costs seconds
    from modeseek.build import context_of, raw_prompts
    from modeseek.config import Run, parse_reward
    from modeseek.data.files import load
    from modeseek.data.template import Template
    from modeseek.evaluate.checkpoints import open_policy, shape_of
    from modeseek.evaluate.sides import Side
    from modeseek.evaluate.trial import Trial

    template = Template.load(shape_of(asked.against[0]))
    run = Run(stop_strings=asked.stop_strings, token_budget=asked.token_budget)
    templates = dict.fromkeys((*asked.against, *asked.policies), template)
    opened = lambda name: open_policy(name, templates[name], max_new=asked.max_completion_length, run=run)
    reward, gold = parse_reward(asked.reward), parse_reward(asked.gold, "gold") if asked.gold else None
    reference = opened(asked.against[0])
    records = load(asked.prompts, split=asked.split)
    prompts = _tokens(asked, records[: asked.limit or len(records)], template, context_of(reference))
    sides = dict[str, Side]()
    for name in [name for name in templates if name != asked.against[0]]:
        templates[name] = own = _own(name, template, prompts.records)
        if own is not template:
            sides[name] = _side(asked, name, own, prompts.records)
    return Trial(
        policies=asked.policies,
        baselines=asked.against,
        opened=opened,
        reference=reference,
        prompts=prompts,
        texts=raw_prompts(prompts),
        decoder=template,
        reward=reward,
        gold=gold,
        together=asked.together,
        samples_per_prompt=asked.samples,
        best_of=asked.best_of,
        batch_size=asked.batch_size,
        seed=asked.seed,
        temperature=asked.temperature,
        sides=sides,
    )


def _side(asked: Evaluate, name: str, own: Any, records: Sequence[Any]) -> Any:  # a Side
    """The prompts as a policy of another template reads them; all of them, or there is nothing to compare."""
    from modeseek.build import raw_prompts
    from modeseek.evaluate.checkpoints import shape_of
    from modeseek.evaluate.sides import Side

    prompts = _tokens(asked, records, own, context(shape_of(name)))
    if len(prompts) < len(records):
        raise ValueError(f"prompts: {name} cannot read {len(records) - len(prompts)} of them; leave them out")
    return Side(prompts=prompts, texts=raw_prompts(prompts), decoder=own)


def _tokens(asked: Evaluate, records: Sequence[Any], template: Any, limit: int | None) -> Any:  # Groups
    """Prompts in a template's tokens, `limit` being what its model reads at most; those that are too long are out."""
    from modeseek.data.tokenise import tokenise_prompts

    return tokenise_prompts(
        records,
        template,
        max_length=min(asked.max_length, limit or asked.max_length),
        max_completion_length=asked.max_completion_length,
    )


def _own(name: str, template: Any, records: Sequence[Any]) -> Any:
    """A policy's own template, where it writes these prompts otherwise than the first baseline's."""
    from modeseek.data.template import Template
    from modeseek.evaluate.checkpoints import shape_of

    word = shape_of(name)
    folder = Path(word)
    if folder.is_dir() and not any(
        found for kind in ("tokenizer*", "vocab*", "*.model") for found in folder.glob(kind)
    ):
        print(f"{name} has no tokenizer of its own: it is asked in the first baseline's tokens", file=sys.stderr)
        return template
    own = Template.load(word)
    same = own.tokenizer.get_vocab() == template.tokenizer.get_vocab()
    if same and all(own.prompt_ids(r.prompt) == template.prompt_ids(r.prompt) for r in records):
        return template
    return own


def _outputs(asked: Evaluate, form: str, file: str) -> Path:
    """Answers for a benchmark's own judge."""
    if form not in ("alpaca_eval", "mt_bench"):
        raise ValueError(f"outputs: {form!r}, expected alpaca_eval or mt_bench, and a file")
    if len(asked.policies) != 1 or asked.against or asked.reward:
        raise ValueError(
            "outputs: the answers of one policy are written and nothing is compared: no against, no reward"
        )
    from modeseek.build import load_policy
    from modeseek.config import Run
    from modeseek.data.template import Template
    from modeseek.evaluate import outputs

    (name,) = asked.policies
    questions = outputs.questions(asked.prompts, form)
    template = Template.load(model_folder(name))
    run = Run(stop_strings=asked.stop_strings, token_budget=asked.token_budget)
    ask = outputs.Answerer(
        load_policy(model_folder(name), template, max_new=asked.max_completion_length, run=run),
        template,
        max_length=asked.max_length,
        max_completion_length=asked.max_completion_length,
        batch_size=asked.batch_size,
        seed=asked.seed,
    )
    return outputs.write(outputs.answers(questions, form, ask, name, asked.temperature), form, file)


def _tasks(asked: Evaluate) -> list[Any]:
    """Both models' scores on standard tasks, and what changed."""
    if not asked.harness:
        return []
    import dataclasses
    import tempfile

    from modeseek.evaluate import harness

    found = []
    for name in (asked.policies[0], asked.against[0]):
        with tempfile.TemporaryDirectory() as folder:
            words = harness.command(
                model_folder(name),
                asked.harness,
                folder,
                limit=asked.harness_limit or None,
                include=asked.harness_include or None,
                seed=asked.seed,
                batch_size=asked.batch_size,
                executable=harness.program(),
            )
            found.append(harness.run(words))
    ours, theirs = found
    renamed = [dataclasses.replace(e, name=f"reference/{e.name}") for e in theirs]
    return [*ours, *renamed, *harness.changes(ours, theirs)]


def _print(asked: Evaluate, results: Sequence[dict[str, Any]], prompts: Sized) -> None:
    from rich.console import Console
    from rich.table import Table

    who = [key for key in ("policy", "against") if any(key in row for row in results)]
    table = Table(title=f"{', '.join(asked.policies)} against {', '.join(asked.against)}, {len(prompts)} prompts")
    for name in (*who, "", *(numbers := ("value", "95% interval", "standard error", "n"))):
        table.add_column(name, justify="right" if name in numbers else "left")
    for r in results:
        interval = f"{r['low']:.4g} to {r['high']:.4g}"
        cells = (f"{r['value']:.4g}", interval, f"{r['standard_error']:.3g}", str(r["n"]))
        table.add_row(*(r.get(key, "") for key in who), r["name"], *cells)
    Console().print(table)
