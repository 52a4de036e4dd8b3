"""Reproduce the science, or test an idea of one's own: `modeseek study CONFIG`."""

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

MANY = 12  # parts, from which the terminal shows claims alone


@dataclass(frozen=True, kw_only=True)
class Study:
    """Run a study's cells over paired seeds, test its claims, and write a page. What is finished is not run again."""

    config: Annotated[str, tyro.conf.Positional]  # tajwar, song, all, lm, a YAML file, or a Python file with `study`
    output_dir: str = ""  # unset: runs/study/NAME, with -choose or -quick behind it where that is what runs
    purpose: Literal["choose", "report"] = (
        "choose"  # which seeds: choose while claims are being shaped; report once per release, each opening is logged
    )
    quick: bool = False  # the short form: fewer seeds and steps, too few to conclude from
    seeds: int | None = None  # seeds of every cell; unset: as the study says
    only: tuple[str, ...] = ()  # names of claims; the others still count in the correction
    workers: int = 0  # processes at once; 0: one a core
    on: Literal["processes", "ray"] = "processes"  # ray: the cluster that RAY_ADDRESS names, else a local one
    tune: bool = False  # choose dials on the tune seeds and write them where the study reads them; nothing else runs
    model: str = ""  # of a grid of training runs: folder that save_pretrained wrote, or hub name
    data: str = ""  # of a grid of training runs: preference file or hub name
    reward: str = ""  # of a grid of training runs: how to score, as in --reward length:prefer=shorter
    markdown: str = ""  # also write the table of verdicts there, as docs/studies/NAME.md
    json: bool = False  # print the verdicts as JSON


def main(words: list[str]) -> int:
    """Run a study; 1 when a cell failed."""
    asked = tyro.cli(Study, args=words, prog="modeseek study")
    from modeseek.report import study as page
    from modeseek.studies.conduct import Order, conduct, tune_all

    if asked.seeds is not None and asked.seeds < 1:
        raise ValueError(f"seeds: {asked.seeds}, expected at least 1")
    if asked.workers < 0:
        raise ValueError(f"workers: {asked.workers}, expected at least 0")
    order = Order(**{field.name: getattr(asked, field.name) for field in dataclasses.fields(Order)})
    console = Console(stderr=True)
    if asked.tune:
        for path in tune_all(order, console):
            print(path)
        return 0
    folder, said, failed = conduct(order, console)
    if asked.markdown:
        Path(asked.markdown).parent.mkdir(parents=True, exist_ok=True)
        Path(asked.markdown).write_text(page.markdown(said))
    if asked.json:
        print(json.dumps(said, indent=2))
    else:
        parts = sum(len(claim["parts"]) for one in said["sets"] for claim in one["claims"])
        Console().print(_claims(said) if parts > MANY else _parts(said))
        print(f"the page is {folder / page.PAGE}")
    for outcome in failed:
        print(f"FAILED {outcome.task.job.cell}: {outcome.error}", file=sys.stderr)
    return 1 if failed else 0


def _claims(said: Mapping[str, Any]) -> Table:
    """A line a claim, for the terminal."""
    table = _titled(said, ("claim", "verdict", "parts", "statement"))
    for one in said["sets"]:
        for claim in one["claims"]:
            counts = Counter(part["status"] for part in claim["parts"])
            parts = "\n".join(f"{n} {status}" for status, n in counts.most_common())
            table.add_row(escape(claim["name"]), claim["verdict"], parts, escape(claim["statement"]))
    return table


def _parts(said: Mapping[str, Any]) -> Table:
    """A line a part, or a line a comparison."""
    from modeseek.report.curves import number
    from modeseek.report.study import p_value

    table = _titled(said, ("claim", "verdict", "part", "effect", "n", "adjusted p"))
    effect = lambda x: escape(f"{number(x['effect'])} [{number(x['low'])}, {number(x['high'])}]")
    for one in said["sets"]:
        for claim in one["claims"]:
            for i, part in enumerate(claim["parts"]):
                first = (escape(claim["name"]), claim["verdict"]) if i == 0 else ("", "")
                contrary = part["status"] == "refuted"
                p = p_value(part["adjusted_against" if contrary else "adjusted"]) + (" (contrary)" if contrary else "")
                table.add_row(*first, escape(f"{part['status']}: {part['says']}"), effect(part), str(part["n"]), p)
        for d in one["differences"]:
            pair = escape(f"{d['ours']} less {d['theirs']}")
            clear = "clear" if d["clear"] else "not clear"
            table.add_row(d["metric"], clear, pair, effect(d), str(d["n"]), p_value(d["adjusted"]))
    return table


def _titled(said: Mapping[str, Any], columns: Sequence[str]) -> Table:
    table = Table(title=f"{said['study']}, {'the short form' if said['quick'] else said['purpose'] + ' seeds'}")
    for name in columns:
        table.add_column(name, justify="right" if name in ("effect", "n", "adjusted p") else "left")
    return table
