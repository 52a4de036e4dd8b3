"""Get better data: `modeseek collect MODEL PROMPTS --label SPEC`, and the store's `export`, `import` and `status`."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

USAGE = """usage: modeseek collect MODEL PROMPTS [--plan PLAN.yaml] --label REWARD|people [flags]
       modeseek collect export STORE FILE [--shape pairs|rated] [--by person judge ...]
       modeseek collect import STORE FILE
       modeseek collect status STORE
"""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a store as a file that `modeseek train` and TRL read."""

    store: Annotated[str, tyro.conf.Positional]
    file: Annotated[str, tyro.conf.Positional]  # a name that ends in .jsonl or .parquet
    shape: Literal["pairs", "rated"] = "pairs"  # prompt, chosen, rejected; or prompt, responses, rewards
    by: tuple[Literal["person", "data", "judge", "model", "rule"], ...] = ("person", "data", "judge", "model", "rule")


@dataclass(frozen=True, kw_only=True)
class Import:
    """Put a preference file into a store; again, and nothing is doubled."""

    store: Annotated[str, tyro.conf.Positional]
    file: Annotated[str, tyro.conf.Positional]


@dataclass(frozen=True, kw_only=True)
class Status:
    """What a store holds."""

    store: Annotated[str, tyro.conf.Positional]


def main(words: list[str]) -> int:
    """Get better data."""
    if words and words[0] in ("export", "import", "status"):
        return {"export": _export, "import": _import, "status": _status}[words[0]](words[1:])
    if not words or words[0] in ("-h", "--help"):
        from modeseek.collect.choose import BY_REWARD, WITHOUT

        strategies = "\n".join(f"  {name:<12} {what}" for name, what in (BY_REWARD | WITHOUT).items())
        print(f"{USAGE}\nselect: how pairs are chosen\n{strategies}\n")
        if not words:
            return 2
        words = ["MODEL", "PROMPTS", "--help"]
    if len(words) < 2 or words[0].startswith("-") or words[1].startswith("-"):
        raise ValueError("which model and which prompts? modeseek collect MODEL PROMPTS --label SPEC")
    from modeseek.collect.chunks import collect

    plan = plan_of(words[2:], words[0])
    found = collect(plan, words[1])
    said = ", ".join(f"{n} {name}" for name, n in found.counts.items() if n)
    print(f"{found.store}: {said or 'nothing yet'}")
    if (none := found.counts.get("prompts without a pair", 0)) > found.counts.get("prompts", 0) / 2:
        print(
            f"{none} of {found.counts['prompts']} prompts gave no pair: nothing told their responses apart; take more "
            "(--num_generations), or another label",
            file=sys.stderr,
        )
    if found.waiting:
        print(f"{found.waiting} labels of people are wanted: modeseek label {found.store}")
    else:
        print(f"as training data: modeseek collect export {found.store} pairs.jsonl")
    return 0


def plan_of(flags: list[str], model: str):
    """The plan of `--plan`'s file with the flags on top; MODEL is the first of its policies."""
    from modeseek.collect.plan import Plan, from_dict, load

    tree, where, rest = {}, "plan", list[str]()
    flags = [part for flag in flags for part in (flag.split("=", 1) if flag.startswith("--") else [flag])]
    specs = {}
    while flags:
        flag = flags.pop(0)
        if flag in ("--plan", "--label", "--proxy"):
            if not flags:
                raise ValueError(f"{flag} needs a value")
            specs[flag] = flags.pop(0)
        else:
            rest.append(flag)
    if "--plan" in specs:
        where, tree = specs["--plan"], load(specs["--plan"])
    tree |= {name.lstrip("-"): word for name, word in specs.items() if name != "--plan"}
    plan = tyro.cli(Plan, default=from_dict(tree, where), args=rest, prog="modeseek collect MODEL PROMPTS")
    return replace(plan, policies=tuple(dict.fromkeys((model, *plan.policies))))


def _export(words: list[str]) -> int:
    asked = tyro.cli(Export, args=words, prog="modeseek collect export")
    from modeseek.collect.exports import export
    from modeseek.collect.store import Store

    with Store(asked.store, must_exist=True) as store:
        counts = export(store, asked.file, shape=asked.shape, by=asked.by)
    return _say(asked.file, counts, "rows")


def _import(words: list[str]) -> int:
    asked = tyro.cli(Import, args=words, prog="modeseek collect import")
    from modeseek.collect.exports import bring_in
    from modeseek.collect.store import Store

    with Store(asked.store) as store:
        counts = bring_in(store, asked.file)
    return _say(asked.store, counts, "pairs")


def _status(words: list[str]) -> int:
    asked = tyro.cli(Status, args=words, prog="modeseek collect status")
    from modeseek.collect.store import Store

    with Store(asked.store, must_exist=True) as store:
        for table in ("prompts", "responses", "pairs", "labels"):
            ((n,),) = store.rows(f"select count(*) from {table}{' where undone is null' * (table == 'labels')}")
            print(f"{n:>9} {table}")
        for who, n in store.rows("select annotator, count(*) from labels where undone is null group by annotator"):
            print(f"{n:>9} labels by {who}")
        far = store.progress()
    print(f"{far.got:>9} of {far.wanted} labels that people were asked for")
    return 0


def _say(where: str, counts: dict[str, int], what: str) -> int:
    left_out = {name: n for name, n in counts.items() if name not in (what, "prompts", "responses") and n}
    print(f"{Path(where)}: {counts.get(what, 0)} {what}")
    for name, n in left_out.items():
        print(f"left out: {n} {name}", file=sys.stderr)
    return 0 if counts.get(what) else 1
