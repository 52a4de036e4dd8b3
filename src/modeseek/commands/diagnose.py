"""Does my data cover my model, and what will a contrastive run do? `modeseek diagnose MODEL DATA [--reward R]`."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from modeseek.commands.models import model_folder

COLOURS = {"good": "green", "mixed": "yellow", "bad": "red"}


@dataclass(frozen=True, kw_only=True)
class Diagnose:
    """Measure what preference data cover for a model, before training or on a checkpoint."""

    model: Annotated[str, tyro.conf.Positional]  # folder, run's folder or hub name: the model to be trained
    data: Annotated[str, tyro.conf.Positional]  # preference file, folder with one in it, or hub name
    reference: str = ""  # what it is measured against: who wrote the data, or what a run began from (a run knows)
    reward: str = ""  # how responses are scored, as in --reward length:prefer=shorter
    beta: float = 0.1  # of the run that is planned: what a nat of log-ratio is worth
    samples: int = 8  # own responses to each prompt
    prompts: int = 128  # distinct prompts of the data, drawn at random; cost grows with samples x prompts
    split: str = "train"  # split of a hub data set
    max_length: int = 1024  # tokens of prompt and response together, or what the model reads where that is less
    max_completion_length: int = 256  # tokens of a response; own and data ones are cut at the same place
    batch_size: int = 16  # prompts at once
    seed: int = 0
    output: str = "diagnosis"  # folder of diagnosis.json and diagnosis.html
    json: bool = False  # print diagnosis.json in place of the table


def main(words: list[str]) -> int:
    """Does it cover my model?"""
    asked = tyro.cli(Diagnose, args=words, prog="modeseek diagnose")
    _check(asked)
    from modeseek import record
    from modeseek.diagnostics.detector import name_state
    from modeseek.diagnostics.diagnosis import diagnose
    from modeseek.disk import write_bytes, write_json
    from modeseek.report.diagnosis import render

    console = Console(stderr=asked.json)
    started = time.perf_counter()
    look, facts = _look(asked, console)
    is_run = record.is_run(Path(asked.model))
    state = name_state(record.read(asked.model).rows) if is_run else None
    seconds = time.perf_counter() - started
    found = diagnose(look, beta=asked.beta, seed=asked.seed, run=state) | facts | {"seconds": round(seconds, 1)}
    folder = Path(asked.output)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "diagnosis.json", found)
    write_bytes(folder / "diagnosis.html", render(found).encode())
    if asked.json:
        print((folder / "diagnosis.json").read_text())
        return 0
    _show(found, console)
    console.print(f"{folder / 'diagnosis.json'} and {folder / 'diagnosis.html'} hold this.", highlight=False)
    return 0


def _check(asked: Diagnose) -> None:
    for key, least in (("samples", 2), ("prompts", 16), ("batch_size", 1)):
        if getattr(asked, key) < least:
            raise ValueError(f"{key}: found {getattr(asked, key)}, expected at least {least}")
    if asked.beta <= 0:
        raise ValueError(f"beta: found {asked.beta}, expected above 0, such as 0.1")


def _look(asked: Diagnose, console: Console) -> tuple[Any, dict[str, Any]]:
    """One pass over model and data, and what the page says of both."""
    from modeseek.build import context_of, load_policy, raw_prompts
    from modeseek.commands.data_file import data_file
    from modeseek.config import parse_reward
    from modeseek.data.files import load
    from modeseek.data.template import Template
    from modeseek.diagnostics.look import look
    from modeseek.rewards import build_reward

    name = model_folder(asked.model)
    template = Template.load(name)
    policy = load_policy(name, template, max_new=asked.max_completion_length)
    reference = _reference(asked, policy)
    records = load(data_file(asked.data), split=asked.split)
    limit = min(asked.max_length, context_of(policy) or asked.max_length)
    data, left = _groups(asked, records, template, limit)
    reward = build_reward(parse_reward(asked.reward), template, raw_prompts(data)) if asked.reward else None
    n = len(data)
    console.print(
        f"{asked.samples * n} own samples of up to {asked.max_completion_length} tokens; {n} prompts' responses scored",
        highlight=False,
    )
    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} prompts")]
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        tasks = {what: bar.add_task(what, total=n) for what in ("sampled", "scored")}
        seen = look(
            policy,
            data,
            samples=asked.samples,
            reference=reference,
            reward=reward,
            kl=_exact_kl(policy, reference),
            sources=[_writers(record, len(data.texts(i)[1])) for i, record in enumerate(data.records)],
            batch_size=asked.batch_size,
            seed=asked.seed,
            tell=lambda what, done: bar.advance(tasks[what], done),
        )
    facts = {
        "model": asked.model,
        "data": asked.data,
        "reference": asked.reference or (_began_from(asked.model) if reference is not None else ""),
        "reward": asked.reward,
        "seed": asked.seed,
        "max_completion_length": asked.max_completion_length,
        "rows": len(records),
        "left_out": left,
        "examples": _examples(seen, data, template),
    }
    return seen, facts


def _groups(asked: Diagnose, records: Sequence[Any], template: Any, limit: int) -> tuple[Any, dict[str, Any]]:
    """Up to so many groups of distinct prompts, at random, all with two responses (one, where no row has two)."""
    from modeseek.data.tokenise import tokenise

    paired = any(len(record.responses) > 1 for record in records)
    distinct = {repr(record.prompt): record for record in reversed(records) if len(record.responses) > int(paired)}
    if not distinct:
        raise ValueError(f"data: {asked.data} has no responses; a diagnosis compares them with the model's own")
    order = sorted(distinct)
    random.Random(asked.seed).shuffle(order)
    usable = lambda some: tokenise(
        some,
        template,
        max_length=limit,
        max_completion_length=min(asked.max_completion_length, limit // 2),
        truncate_responses=True,  # where own samples are cut
        responses="best_worst" if paired else "best",
    )
    drawn = usable([distinct[key] for key in order[: asked.prompts + asked.prompts // 4]])  # some may be left out
    if len(drawn) < 16:
        raise ValueError(f"data: found {len(drawn)} distinct prompts with usable responses, expected at least 16")
    kept = drawn if len(drawn) <= asked.prompts else usable(drawn.records[: asked.prompts])
    cut = f"of {len(kept.response)} responses cut off"
    counts = {
        **{f"rows left out: {why}": n for why, n in drawn.counts["dropped"].items()},
        cut: kept.counts["responses_truncated"],
    }
    return kept, {why: n for why, n in counts.items() if n}


def _reference(asked: Diagnose, policy: Any) -> Any:
    """What the model is measured against; a run's folder knows what it began from."""
    from modeseek.build import load_policy
    from modeseek.data.template import Template
    from modeseek.policies.hf import Reference

    name = asked.reference or _began_from(asked.model)
    if not name:
        return None
    name = model_folder(name)
    other = load_policy(name, Template.load(name), max_new=asked.max_completion_length)
    sizes = [one.model.get_input_embeddings().num_embeddings for one in (policy, other)]  # type: ignore[operator, union-attr]
    if sizes[0] != sizes[1]:
        raise ValueError(f"reference: {name} reads {sizes[1]} tokens and the model {sizes[0]}: another tokenizer")
    return Reference(other)


def _began_from(model: str) -> str:
    from modeseek import record

    return str(record.read(model).config.get("model", "")) if record.is_run(Path(model)) else ""


def _exact_kl(policy: Any, reference: Any) -> Any:
    if reference is None or not policy.paths["logp"].startswith("packed") or policy.has_adapter:
        return None
    policy.measure_against(reference)
    return policy.kl


def _writers(record: Any, responses: int) -> list[str]:
    """Who wrote chosen and rejected, where the data say."""
    meta = record.meta
    keys = (("chosen_model", "rejected_model"), ("chosen_source", "rejected_source"))
    for pair in keys:
        if pair[0] in meta:
            return [str(meta.get(key) or "") for key in pair[:responses]]
    return [""] * responses


def _examples(seen: Any, data: Any, template: Any, shown: int = 3) -> list[dict[str, str]]:
    """The prompts whose chosen response is least typical of the model, beside what it wrote itself."""
    gap = seen.own_mean_logp.mean(1) - seen.told_mean_logp[:, 0]
    found = []
    for p in (int(i) for i in gap.argsort()[::-1][:shown]):
        prompt, replies = data.texts(p)
        own = template.decode(seen.own_tokens[p]) if seen.own_tokens else ""
        found.append({"prompt": prompt, "chosen": replies[0], "own": own, "nats": f"{gap[p]:.2f}"})
    return found


def _show(found: dict[str, Any], console: Console) -> None:
    """The answers first, then every number with its sentence."""
    from modeseek.diagnostics.diagnosis import SECTIONS

    for one in found["answers"]:
        colour = COLOURS[one["level"]]
        console.print(f"\n[bold]{one['question']}[/] [{colour}]{one['answer']}[/]", highlight=False)
        for why in one["why"]:
            console.print(f"  {escape(why)}", highlight=False)
    for section, title in SECTIONS.items():
        rows = [row for row in found["estimates"] if row["section"] == section]
        if not rows:
            continue
        table = Table(title=f"\n{title}", title_justify="left", expand=True)
        table.add_column("", ratio=2)
        for name in ("value", "95% interval"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("in words", ratio=5)
        for row in rows:
            if row["value"] is not None:
                ends = f"{_end(row['low'])} to {_end(row['high'])}"
                table.add_row(escape(row["label"]), f"{row['value']:.3g}", ends, escape(row["sentence"]))
        if table.row_count:
            console.print(table)
        for reason, labels in _refusals(rows).items():
            console.print(f"{escape(', '.join(labels))}: {escape(reason)}", style="dim", highlight=False)
    if found["run"] is not None:
        said = found["run"]
        console.print(f"\n[bold]The run[/]: {said['title']}; {'; '.join(said['evidence'])}. {said['remedy']}.")
    console.print(
        f"\n{found['prompts']} prompts, {found['samples_per_prompt']} samples each, {found['seconds']} s",
        highlight=False,
    )


def _refusals(rows: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """What is not given, by the reason."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["value"] is None:
            found.setdefault(row["sentence"], []).append(row["label"])
    return found


def _end(x: float | None) -> str:
    return "?" if x is None else f"{x:.3g}"
