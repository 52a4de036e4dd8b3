"""`make advice-regret`: what following the advice costs, in worlds that nothing was fitted on.

Three generators: a fifth of the worlds that the prior was fitted on had the first's ranges; the second's ranges lie
within those of the fit; the third's reward bends, which no world of the fit had. Races choose the best candidate whose
80% interval is above zero; lines called bold take the best whatever its interval. A reading of the judge has sd 2.5: of
one response, or, in the lines called whole, of a candidate's gain. A world takes a second of a core: twenty minutes in
all, three with --quick.

No world of these seeds was looked at before the prior, the race and the rule for its winner were settled: those were
chosen on worlds of the fit.
"""

from __future__ import annotations

import argparse
import time

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from modeseek.advise import regret
from modeseek.advise.measure import stacks
from modeseek.advise.prior import Prior
from modeseek.advise.ranges import FIRST, FOURTH, SECOND, Ranges

GENERATORS = {
    "a fifth of the fit's ranges": (FIRST, 1_710_000),
    "ranges within the fit's": (SECOND, 1_810_000),
    "a reward that bends": (FOURTH, 1_910_000),
}


def main() -> None:
    """Print the tables."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--worlds", type=int, default=400, help="of each generator")
    asked.add_argument("--stack", type=int, default=100, help="worlds in memory at once")
    asked.add_argument("--quick", action="store_true", help="60 worlds of each generator")
    asked.add_argument("--only", default="", help="generators whose name has this in it")
    found = asked.parse_args()
    console, prior = Console(width=120), Prior.load()
    found.worlds = min(found.worlds, 60) if found.quick else found.worlds
    tallies = list[regret.Tally]()
    for name, (ranges, seed) in GENERATORS.items():
        if found.only in name:
            started = time.monotonic()
            tallies.append(measure(ranges, seed, found.worlds, found.stack, prior, name))
            show(console, name, tallies[-1])
            console.print(f"{time.monotonic() - started:.0f} s\n")
    if len(tallies) > 1:
        show(console, "all of them", regret.joined(tallies))


def measure(ranges: Ranges, seed: int, worlds: int, stack: int, prior: Prior, name: str) -> regret.Tally:
    """Every way of choosing in that many worlds."""
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=worlds)

        def each():
            for first in range(0, worlds, stack):
                size = min(stack, worlds - first)
                yield from stacks(size, ranges, seed + first, stack=stack)
                progress.advance(task, size)

        return regret.judge_all(each(), prior, seed=seed)


def show(console: Console, name: str, tally: regret.Tally) -> None:
    """One generator's table, and what it says of the goals."""
    table = Table(title=f"{name}: {sum(map(len, tally.best))} worlds, best {torch.cat(tally.best).mean():.2f}")
    for column in ("choice", "gain", "regret", "95% interval", "gain < 0"):
        table.add_column(column, justify="left" if column == "choice" else "right")
    for line in regret.lines(tally):
        table.add_row(
            line.way,
            f"{line.gain:.2f}",
            f"{line.regret:.1%}",
            f"{line.low:.1%} to {line.high:.1%}",
            f"{line.lost} ({line.lost / line.n:.1%})",
        )
    console.print(table)
    constant = regret.best_constant(tally)
    for way in ("prior, rehearsed", "prior, trained"):
        less, low, high = regret.saved(tally, way, constant)
        console.print(f"{way} less regret than {constant}: {less:.1%} ({low:.1%} to {high:.1%}, paired)")
    for labels in regret.LOOKS:
        less, low, high = regret.saved(tally, f"prior + race, {labels}", f"race, {labels}")
        console.print(f"prior + race less regret than race, {labels} labels: {less:.1%} ({low:.1%} to {high:.1%})")
    for way, share in regret.coverage(tally).items():
        console.print(f"80% intervals that contain the true gain, {way}: {share:.1%}")
    console.print(f"worlds outside what the prior knows: {torch.cat(tally.outside).double().mean():.1%}")


if __name__ == "__main__":
    main()
