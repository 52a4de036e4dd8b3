"""Labels that each way of choosing pairs needs until the policy has 90% of the best gain: worlds as seeds.

All start from the same 40 pairs of others and label 20 at a time. A world in which a way never gets there counts as the
most labels, so that a mean says at least.
"""

from __future__ import annotations

import argparse
import dataclasses

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from modeseek import estimate
from modeseek.advise.acquire import STRATEGIES, buy
from modeseek.advise.worlds import FIRST, generate

GOAL = 0.9


def main() -> None:
    """Print the table."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--worlds", type=int, default=20)
    asked.add_argument("--labels", type=int, default=500)
    asked.add_argument(
        "--misspecification", type=float, default=0.3, help="share of the reward no feature says, at most"
    )
    asked.add_argument("--seed", type=int, default=900_000)
    found = asked.parse_args()
    span = (0.0, found.misspecification)
    ranges = dataclasses.replace(
        FIRST, pairs=(found.labels + 40, found.labels + 40), given=0.0, hidden=(0.0, 0.0), misspecification=span
    )
    worlds = generate(found.worlds, ranges, found.seed)
    needed, reached, end = {}, {}, {}
    with Progress(console=Console(stderr=True)) as progress:
        for name, strategy in progress.track(STRATEGIES.items(), description="strategies"):
            curve = list(buy(worlds, strategy, labels=found.labels, seed=found.seed))
            share = torch.stack([s for _, s in curve], 1)  # [W, looks]
            spent = torch.tensor([n for n, _ in curve], dtype=torch.float64)
            there = share >= GOAL
            needed[name] = torch.where(there.any(1), spent[there.int().argmax(1)], float(found.labels))
            reached[name], end[name] = int(there.any(1).sum()), share[:, -1]
    table = Table(
        title=f"labels to {GOAL:.0%} of the best gain, {found.worlds} worlds, misspecification to {span[1]:g}"
    )
    for column in ("pairs", "labels", "less random's", "reached", "share of the best gain at the end"):
        table.add_column(column)
    for name, labels in sorted(needed.items(), key=lambda item: float(item[1].mean())):
        table.add_row(
            name,
            str(estimate.mean(labels.numpy())),
            str(estimate.mean_difference(labels.numpy(), needed["random"].numpy())),
            f"{reached[name]} of {found.worlds}",
            str(estimate.mean(end[name].numpy())),
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
