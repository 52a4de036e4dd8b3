"""What the quickstart says of its runs: a table, fables side by side, and a paragraph that its numbers write."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from modeseek.data.fables import judge
from modeseek.record import RunData, read
from modeseek.report.curves import number

MOST_WORDS = 60  # of a fable that rambles
ACCURACY = "eval/rewards/accuracies"


@dataclass(frozen=True)
class Range:
    """A mean over seeds, and the outermost ends of the seeds' intervals."""

    mean: float
    low: float
    high: float

    @staticmethod
    def of(found: Sequence[tuple[float, float, float]]) -> Range:
        """From each seed's value and interval."""
        values, lows, highs = zip(*found, strict=True)
        return Range(sum(values) / len(values), min(lows), max(highs))


@dataclass(frozen=True)
class Ended:
    """One arm's runs, by seed."""

    name: str
    runs: Mapping[int, RunData]

    @property
    def learns_from(self) -> str:
        return str(next(iter(self.runs.values())).card["learns_from"])

    def last(self, metric: str) -> dict[int, float]:
        """Where each seed ended."""
        return {seed: float(_result(run, metric)["value"]) for seed, run in self.runs.items()}

    def range(self, metric: str) -> Range:
        """Where the seeds ended, with their intervals over prompts."""
        found = [_result(run, metric) for run in self.runs.values()]
        return Range.of([(float(r["value"]), float(r["low"]), float(r["high"])) for r in found])

    def change(self, metric: str) -> Range:
        """By how much a metric moved, over the seeds."""
        moved = []
        for run in self.runs.values():
            values = [row[f"eval/{metric}"] for row in run.rows if f"eval/{metric}" in row]
            moved.append(values[-1] - values[0])
        return Range.of([(x, x, x) for x in moved])


def ended(paths: Sequence[Path]) -> list[Ended]:
    """The runs in these directories by arm, in the order in which they are named."""
    groups: dict[str, dict[int, RunData]] = {}
    for path in paths:
        run = read(path)
        groups.setdefault(str(run.card["method"]), {})[int(run.card["seed"])] = run
    return [Ended(name, dict(sorted(runs.items()))) for name, runs in groups.items()]


def before(arms: Sequence[Ended], metric: str) -> Range:
    """The reference: what was measured before any step, once a seed."""
    rows = [run.rows[0] for run in arms[0].runs.values()]
    names = (f"eval/{metric}", f"eval/{metric}/low", f"eval/{metric}/high")
    return Range.of([(row[names[0]], row[names[1]], row[names[2]]) for row in rows])


def table(arms: Sequence[Ended]) -> Table:
    """A row an arm; under each number the ends of its interval."""
    out = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", show_edge=False)
    out.add_column("method\nlearns from", no_wrap=True)
    for name in ("true\nreward", "win\nrate", "KL\nnats", "degene-\nrate", "chosen\nlogp"):
        out.add_column(name, justify="right", no_wrap=True)
    start = [_cell(before(arms, metric), write) for metric, write in COLUMNS]
    start[2] = _two("0", "")  # the KL to itself: each sample says 0
    out.add_row(_two("reference", "before training"), *start, "")
    for arm in arms:
        cells = [_cell(arm.range(metric), write) for metric, write in COLUMNS]
        moved = _cell(arm.change("logps/chosen"), lambda x: f"{x:+.1f}" if abs(x) < 9.95 else f"{x:+.0f}")
        out.add_row(_two(arm.name, arm.learns_from), *cells, moved)
    return out


def legend(arms: Sequence[Ended]) -> str:
    """How to read the table."""
    seeds, recipe = len(arms[0].runs), _card(arms)["recipe"]
    told = recipe["prompts"] * recipe["samples"]
    return (
        f"Mean of {_count(seeds, 'seed')} after {recipe['steps']} steps, {told} fables a seed. "
        "Below it the lowest and the highest end of the seeds' 95% intervals over prompts; for the chosen "
        "log-prob (its change on held-out pairs) the range of the seeds. The reward is from -4 to 3. Degenerate: "
        "broken sentences, loops, no end."
    )


def paragraph(arms: Sequence[Ended]) -> str:
    """What the numbers say of coverage, and what they do not. Every ordering is counted over the seeds."""
    by = {arm.name: arm for arm in arms}
    hypo, said = by.get("HyPO"), [_about_the_pairs(arms)]
    if "DPO" in by:
        said.append(_about_dpo(by["DPO"]))
    if hypo and "DPO" in by:
        reward, kl = _above(hypo, by["DPO"], "reward"), _above(by["DPO"], hypo, "kl")
        said.append(
            "HyPO takes the same pairs and adds fables of its own that nobody labels: it ends with more reward than "
            f"DPO {reward}, and with less KL {kl}."
        )
    rivals = [arm for arm in arms if arm.learns_from == "pairs" and arm.name != "DPO"]
    if hypo and rivals:
        named = ", ".join(
            f"{a.name} at {_ends(a, 'reward')} ({_ends(a, 'degenerate', '.0%')} degenerate)" for a in rivals
        )
        highest = {seed: max(arm.last("reward")[seed] for arm in rivals) for seed in hypo.runs}
        above = sum(value > highest[seed] for seed, value in hypo.last("reward").items())
        said.append(
            f"Cheaper rivals on the same pairs end: {named}. HyPO, at {_ends(hypo, 'reward')} "
            f"({_ends(hypo, 'degenerate', '.0%')}), is above all of them in reward {_of(above, len(hypo.runs))}."
        )
    if hypo and "online DPO" in by:
        said.append(
            "Online DPO is told the true reward of its own fables, which none of these sees, so it runs another race; "
            f"it ends above HyPO {_above(by['online DPO'], hypo, 'reward')}."
        )
    recipe = _card(arms)["recipe"]
    said.append(
        f"There are only {recipe['prompts']} prompts and training draws from the same ones: this measures new answers, "
        "not new prompts. Settings were chosen in pilots by the true reward, which a user would not have."
    )
    return " ".join(said)


def fables(arms: Sequence[Ended], prompts: int = 2) -> list[Text]:
    """The first prompts, each with what the reference and every arm tell: nobody picked them."""
    first = {arm.name: next(iter(arm.runs.values())).samples for arm in arms}
    out = []
    for i in range(min(prompts, *map(len, first.values()))):
        some = first[arms[0].name][i]
        lines = Text()
        lines.append(f"{some['prompt']}\n", "bold")
        lines.append_text(_told("reference", some["reference"], ""))
        for name, samples in first.items():
            one = samples[i]
            note = f"reward {number(one['reward'])}" + (", degenerate" if one["degenerate"] else "")
            lines.append_text(_told(name, one["response"] + ("" if one["finished"] else " ..."), note))
        out.append(lines)
    return out


def tell(console: Console, paths: Sequence[Path]) -> None:
    """Print all of it."""
    arms = ended(paths)
    console.print()
    console.print(table(arms))
    console.print(Text(legend(arms), "dim"))
    seed = next(iter(arms[0].runs))
    console.print(f"\nThe first fables of seed {seed}, not picked:\n", highlight=False)
    for one in fables(arms):
        console.print(one)
    console.print(Text(paragraph(arms)))


COLUMNS: tuple[tuple[str, Callable[[float], str]], ...] = (
    ("reward", lambda x: f"{x:.2f}"),
    ("win_rate", lambda x: f"{x:.0%}"),
    ("kl", lambda x: f"{x:.1f}" if abs(x) < 9.95 else f"{x:.0f}"),
    ("degenerate", lambda x: f"{x:.0%}"),
)


def _about_the_pairs(arms: Sequence[Ended]) -> str:
    bad, told = _degenerate_pairs(arms[0])
    return (
        f"Of the {told} fables in the pairs {bad or 'none'} {'is' if bad < 2 else 'are'} degenerate, of the "
        f"reference's own {before(arms, 'degenerate').mean:.0%} are: the pairs say nothing about such text."
    )


def _about_dpo(dpo: Ended) -> str:
    start, end = {seed: run.rows[0]["eval/degenerate"] for seed, run in dpo.runs.items()}, dpo.last("degenerate")
    worse = sum(end[seed] > start[seed] for seed in end)
    right = [[row[ACCURACY] for row in run.rows if ACCURACY in row][-1] for run in dpo.runs.values()]
    moves = "DPO moves to where they say nothing" if worse == len(end) else "DPO on them"
    return (
        f"{moves}: it ends with more degenerate fables than the reference {_of(worse, len(end))} "
        f"({_ends(dpo, 'degenerate', '.0%')}), while it ranks {sum(right) / len(right):.0%} of held-out pairs right."
    )


def _degenerate_pairs(arm: Ended) -> tuple[int, int]:
    """How many of the pairs' fables are degenerate, and how many there are, all seeds together."""
    found = []
    for run in arm.runs.values():
        for line in Path(run.config["data"]).read_text().splitlines():
            row = json.loads(line)
            found += [judge(row["prompt"], row[side], True).degenerate for side in ("chosen", "rejected")]
    return sum(found), len(found)


def _above(a: Ended, b: Ended, metric: str) -> str:
    ours, theirs = a.last(metric), b.last(metric)
    return _of(sum(ours[seed] > theirs[seed] for seed in ours), len(ours))


def _of(n: int, seeds: int) -> str:
    return f"in {n} of {_count(seeds, 'seed')}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def _ends(arm: Ended, metric: str, form: str = ".2f") -> str:
    low, high = (f"{pick(arm.last(metric).values()):{form}}" for pick in (min, max))
    return low if low == high else f"{low} to {high}"


def _card(arms: Sequence[Ended]) -> Mapping[str, Any]:
    return next(iter(arms[0].runs.values())).card


def _result(run: RunData, metric: str) -> Mapping[str, Any]:
    return next(result for result in run.results if result["name"] == metric)


def _cell(found: Range, write: Callable[[float], str]) -> Text:
    ends = "" if found.low == found.high else f"{write(found.low).removesuffix('%')} to {write(found.high)}"
    return _two(write(found.mean), ends)


def _two(first: str, second: str) -> Text:
    return Text.assemble(first, "\n", (second, "dim"))


def _told(name: str, words: str, note: str) -> Text:
    cut = words.split()
    words = words if len(cut) <= MOST_WORDS else " ".join(cut[:MOST_WORDS]) + " ..."
    body = textwrap.fill(re.sub(r" \.(?!\.)", ".", words), 76, initial_indent="    ", subsequent_indent="    ")
    return Text.assemble((f"  {name}", "cyan"), (f"  {note}" if note else "", "dim"), f"\n{body}\n")
