"""A plan as text: what a terminal shows, and the table of recipes in the documentation."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from modeseek import config
from modeseek.plan.devices import GIB, Device, device
from modeseek.plan.lengths import FILL
from modeseek.plan.plan import Plan, gib, plan, remedies

_BEGIN, _END = "<!-- plan: python -m modeseek.plan.table docs/recipes.md -->", "<!-- plan ends -->"


def show(found: Plan, console: Console) -> None:
    """The plan on a terminal."""
    of = f"{found.devices} x {found.device.name}" if found.devices > 1 else found.device.name
    console.print(
        f"[bold]{found.run.method}[/] of {found.run.model} on {of}: {found.parameters:,} parameters, "
        f"{found.trained:,} trained",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_memory(found))
    console.print(_work(found))
    for line in found.assumed:
        console.print(f"assumed: {line}", highlight=False, soft_wrap=True, markup=False)


def _memory(found: Plan) -> Table:
    many = " of each device" if found.devices > 1 else ""
    table = Table(title=f"memory{many} at its fullest moments, {gib(found.device.memory)} there are")
    table.add_column("part")
    for moment in found.moments:
        table.add_column(moment.name, justify="right")
    names = dict.fromkeys(name for m in found.moments for name in m.parts)
    for name in names:
        table.add_row(name, *(gib(m.parts[name]) if name in m.parts else "" for m in found.moments))
    table.add_section()
    table.add_row("in all", *(gib(m.total) for m in found.moments))
    return table


def _work(found: Plan) -> Table:
    cost = found.cost
    table = Table(title="an optimiser step")
    for name in ("", "tokens", "operations", "seconds"):
        table.add_column(name, justify="left" if name == "" else "right")
    tokens = {"training": cost.trained, "scoring": cost.scored, "decoding": cost.sampled}
    for name, seconds in cost.seconds.items():
        work = f"{cost.flops[name]:.2e}" if name in cost.flops else "bound by memory"
        table.add_row(name, f"{tokens[name]:,.0f}" if name in tokens else "", work, f"{seconds:.3g}")
    table.add_section()
    steps = "unknown, give rows" if cost.steps is None else f"{cost.steps:,}"
    hours = "" if cost.hours is None else f"{cost.hours:.1f} hours"
    table.add_row(f"in all, {steps} steps", "", hours, f"{sum(cost.seconds.values()):.3g}")
    return table


def recipes(where: Device, fill: float = FILL) -> str:
    """A table of the published recipes, in Markdown: on one device as they are, on eight with FSDP."""
    rows = [
        "| recipe | parameters, trained (B) | one: GiB | hours | eight: GiB | hours | steps | on one device |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in track(config.recipes(), description="recipes", transient=True, console=Console(stderr=True)):
        run = config.load(name)
        one = plan(run, where, 1, fill=fill)
        eight = plan(replace(run, parallel="fsdp", token_budget=None), where, 8, fill=fill)
        shape = f"{one.parameters / 1e9:.2f}, {one.trained / 1e9:.2g}"
        cells = [f"`{name}`", shape, *_cells(one), *_cells(eight), f"{one.cost.steps:,}", _remedy(one)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _cells(found: Plan) -> tuple[str, str]:
    hours = found.cost.hours
    size = f"{found.peak.total / GIB:.0f}" + ("" if found.fits else " (too many)")
    return size, "?" if hours is None else f"{hours:.1f}"


def _remedy(found: Plan) -> str:
    if found.fits:
        return "fits"
    dials, after = remedies(found)
    said = ", ".join(f"`{dial}`" for dial in dials)
    return f"not even with {said}" if after is None else f"{gib(after.peak.total)} with {said}"


def _into(path: Path, table: str) -> None:
    """The table between the two comments of the page."""
    text = path.read_text()
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{path}: found no {_BEGIN} and {_END}, expected both around the table")
    path.write_text(f"{before}{begin}\n{table}{end}{after}")


if __name__ == "__main__":
    _into(Path(sys.argv[1]), recipes(device("H100")))
