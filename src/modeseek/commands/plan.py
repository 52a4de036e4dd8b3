"""What will a run take? `modeseek plan CONFIG [--device H100] [--devices 8] [--flags of train]`."""

import json
from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Memory by part, tokens, operations and hours of a run, before anything is loaded; what does not fit, and what
    would make it fit. Other flags are those of `modeseek train`."""

    config: Annotated[str, tyro.conf.Positional]  # YAML file, method or recipe; `all`: a table of the recipes
    device: str = "H100"  # H100, H200, A100, 4090, cpu, or this
    devices: int = 1  # how many of them, under torchrun
    fill: float = 0.5  # share of the longest that prompts and responses are taken to have, where the data are not here
    json: bool = False  # print JSON


def main(words: list[str]) -> int:
    """Print the plan; 1 where the run does not fit."""
    asked, rest = tyro.cli(Plan, args=words, prog="modeseek plan", return_unknown_args=True)
    from rich.console import Console

    from modeseek import config
    from modeseek.plan.devices import device
    from modeseek.plan.plan import gib, plan, remedies
    from modeseek.plan.table import recipes, show

    where = device(asked.device)
    if asked.config == "all":
        if rest:
            raise ValueError(f"{rest[0]}: a table of all recipes takes no flags of one")
        print(recipes(where, fill=asked.fill), end="")
        return 0
    found = plan(config.load(asked.config, rest), where, asked.devices, fill=asked.fill)
    if asked.json:
        print(json.dumps(found.as_dict(), indent=2))
        return 0 if found.fits else 1
    console = Console()
    show(found, console)
    if found.fits:
        return 0
    over = gib(found.peak.total - where.memory)
    console.print(f"[bold red]does not fit[/]: {over} too many when {found.peak.name}", highlight=False)
    dials, after = remedies(found)
    if after is None:
        console.print(f"not even with {', '.join(dials)}: take more devices (--devices 8 --parallel fsdp)")
    else:
        console.print(f"it fits, in {gib(after.peak.total)}, with {', '.join(dials)}", highlight=False, soft_wrap=True)
    return 1
