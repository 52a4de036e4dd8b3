"""Labels that each way of choosing pairs needs until the policy has 90% of the best gain: worlds as seeds.

All start from the same 40 pairs of others and label 20 at a time. A world in which a way never gets there counts as the
most labels, so that a mean says at least. The strategies are those of `advise.acquire`, which know all labels so far,
and the designs of `modeseek collect`, which name the pairs of a chunk before a label of it is known.
"""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Generator, Tensor

from modeseek import estimate
from modeseek.advise.acquire import STRATEGIES, Shop, buy, drawn
from modeseek.advise.generate import generate
from modeseek.advise.ranges import FIRST
from modeseek.collect import choose
from modeseek.collect.rows import Response

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
    asked.add_argument("--only", default="", help="strategies whose name has this in it, beside random")
    found = asked.parse_args()
    span = (0.0, found.misspecification)
    ranges = dataclasses.replace(
        FIRST, pairs=(found.labels + 40, found.labels + 40), given=0.0, hidden=(0.0, 0.0), misspecification=span
    )
    worlds = generate(found.worlds, ranges, found.seed)
    needed, reached, end = {}, {}, {}
    with Progress(console=Console(stderr=True)) as progress:
        named = {f"collect's {name}, of {k}": partial(ahead, name, k) for name in choose.DESIGNS for k in (4, 8)}
        wanted = {n: s for n, s in (STRATEGIES | named).items() if found.only in n or n == "random"}
        for name, strategy in progress.track(wanted.items(), description="strategies"):
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


def ahead(select: str, k: int, shop: Shop, n: int, rng: Generator) -> Tensor:
    """As `collect` does: of each of n prompts' k own responses one pair, by a design that has seen no label."""
    places = drawn(shop, n, k, rng)  # [W, n, k]
    chosen = []
    for seen, world in zip(shop.worlds.seen.flatten(1, 2).numpy(), places, strict=True):
        groups = [("", [Response(text=str(at), draw=str(i)) for i, at in enumerate(row)]) for row in world.tolist()]
        points = choose.projected([seen[row] for row in world.numpy()])
        pairs = [found[0] if found else (0, 1) for found in choose.without_reward(groups, select, 0, points)]
        chosen.append(world.gather(1, torch.tensor(pairs)))
    return torch.stack(chosen)


if __name__ == "__main__":
    main()
