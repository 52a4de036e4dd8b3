"""A study from its name to its page: load, run what is missing, judge, write."""

from __future__ import annotations

import datetime
import importlib.metadata
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from modeseek.disk import write_json
from modeseek.report.study_data import CURVES, STUDY, VERDICTS
from modeseek.studies import SETS, grid, lm, load, store, study_of, summary, tune
from modeseek.studies.base import Study
from modeseek.studies.differences import differences
from modeseek.studies.load import Loaded, Settings
from modeseek.studies.plan import Plan
from modeseek.studies.seeds import Purpose
from modeseek.studies.verdict import ALPHA, judge

COMPARED = ("reward", "kl")  # last values, where a study claims nothing


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to run, and how."""

    config: str
    output_dir: str = ""
    purpose: Purpose = "choose"
    quick: bool = False
    seeds: int | None = None
    only: tuple[str, ...] = ()
    workers: int = 0
    on: grid.On = "processes"
    model: str = ""
    data: str = ""
    reward: str = ""

    def folder(self, name: str) -> Path:
        """Where the results go: report runs, choose runs and short ones are kept apart."""
        kind = "-quick" if self.quick else "" if self.purpose == "report" else f"-{self.purpose}"
        return Path(self.output_dir or f"runs/study/{name}{kind}")

    def command(self) -> str:
        """The command line that does it again."""
        words = ["modeseek study", self.config]
        words += ["--quick"] if self.quick else [f"--purpose {self.purpose}"]
        words += [f"--seeds {self.seeds}"] if self.seeds is not None else []
        words += [f"--{key} {value}" for key in ("model", "data", "reward") if (value := getattr(self, key))]
        return " ".join(words)


def conduct(order: Order, console: Console) -> tuple[Path, dict[str, Any], list[grid.Outcome]]:
    """Run a study and write its results and page; the folder, the verdicts, and what failed."""
    settings, plans, folder = plan(order)
    tasks = list({t.job.name: t for p in plans for t in p.tasks()}.values())
    folder.mkdir(parents=True, exist_ok=True)
    warnings = stale(plans)
    for warning in warnings:
        console.print(f"[bold yellow]WARNING[/] {warning}", highlight=False)
    if order.purpose == "report" and any(not store.done(folder, t.job) for t in tasks):
        _log_opening(folder, settings.name)
    failed = grid.run(tasks, folder, workers=order.workers, on=order.on, console=console)
    warnings += lm.warnings([world for p in plans for world in p.study.worlds])
    said = write(order, settings, plans, folder, warnings, failed)
    return folder, said, failed


def plan(order: Order) -> tuple[Settings, list[Plan], Path]:
    """The settings, a plan for each set, and the output folder."""
    settings = load.settings(order.config)
    folder = order.folder(settings.name)
    if order.quick and order.purpose == "report":
        raise ValueError("quick: it is too short to open the report seeds for; leave --quick or --purpose report out")
    if settings.runs is None and (asked := [k for k in ("model", "data", "reward") if getattr(order, k)]):
        raise ValueError(f"--{asked[0]}: only a grid of training runs reads it, as in `modeseek study lm`")
    if settings.runs is not None:
        told = {"model": order.model, "data": order.data, "reward": order.reward}
        loaded = [Loaded(lm.study_of(settings.name, settings.runs, **told, folder=folder / "runs"))]
    else:
        loaded = [load.load_set(name, order.quick) for name in settings.sets]
    _check_worlds(settings, [world.name for one in loaded for world in one.study.worlds])
    known = [claim.name for one in loaded for claim in one.study.claims]
    if unknown := [name for name in order.only if name not in known]:
        raise ValueError(f"only: no claim {unknown[0]!r}; there are {', '.join(known) or 'none'}")
    plans = [
        Plan(
            loaded=one,
            settings=settings,
            purpose=order.purpose,
            quick=order.quick,
            seed_count=order.seeds,
            tuned=tune.read(tuned_file(one, folder), _whole(one, order).worlds, settings.tune_seeds),
            only=order.only,
        )
        for one in loaded
    ]
    return settings, plans, folder


def _check_worlds(settings: Settings, names: Sequence[str]) -> None:
    """Refuse settings of worlds that the study does not have."""
    short = [key.partition("/")[0] for key in settings.quick.dials]
    for key, said in (("seeds_of", settings.seeds_of), ("chunk_of", settings.chunk_of), ("quick.dials", short)):
        if unknown := [name for name in said if name not in names]:
            raise ValueError(f"{key}: no world {unknown[0]!r}; there are {', '.join(dict.fromkeys(names))}")


def _whole(loaded: Loaded, order: Order) -> Study:
    """The study as it was tuned, not in its short form."""
    shipped = order.quick and loaded.source is None and loaded.study.name in SETS
    return study_of(loaded.study.name) if shipped else loaded.study


def tune_all(order: Order, console: Console) -> list[Path]:
    """Tune the methods of every set; the files written."""
    if order.quick or order.only:
        raise ValueError("tune: it tunes a whole study; leave --quick and --only out")
    _, plans, folder = plan(order)
    written = []
    for one in plans:
        path = tuned_file(one.loaded, folder)
        tune.write(path, tune.tune(one, folder, workers=order.workers, on=order.on, console=console))
        written.append(path)
    return written


def tuned_file(loaded: Loaded, folder: Path) -> Path:
    """A study's tuned dials; those of a grid of training runs belong to its model, and stay in its folder."""
    if any(isinstance(world, lm.LanguageModel) for world in loaded.study.worlds):
        return folder / "tuned.json"
    return tune.file_of(loaded)


def stale(plans: Sequence[Plan]) -> list[str]:
    """Which tuned dials were chosen for another version of their world."""
    return [
        f"{p.study.name}: the dials of {method} in {world} were tuned for other settings; tune again with --tune"
        for p in plans
        for (world, method), tuned in p.tuned.items()
        if tuned.stale
    ]


def write(
    order: Order,
    settings: Settings,
    plans: Sequence[Plan],
    folder: Path,
    warnings: Sequence[str],
    failed: Sequence[grid.Outcome],
) -> dict[str, Any]:
    """Judge what is there and write study.json, verdicts.json, curves.json and the page; the verdicts."""
    asked, sets, drawn = [], [], []
    for p in plans:
        rows = summary.reader(p, folder)
        judged = [j for j in judge(p.study, rows, p.seeds) if j.claim in p.claims()]
        asked.append(summary.asked(p, rows))
        lines: dict[str, Any] = {j.claim.name: summary.curves(j, rows) for j in judged}
        compared: list[dict[str, Any]] = []
        if not p.study.claims:
            cells = p.cells()
            has = [metric for metric in COMPARED if all(metric in rows(cell) for cell in cells)]
            compared = [summary.difference(d) for d in differences(cells, has, rows, p.seeds(cells[0]))]
            lines[""] = [summary.drawn(metric, cells, rows) for metric in has]
        parts = sum(len(claim.parts) for claim in p.study.claims) or len(compared)
        sets.append(
            {
                "set": p.study.name,
                "family": parts,
                "claims": [summary.claim(j) for j in judged],
                "differences": compared,
            }
        )
        drawn.append({"set": p.study.name, "claims": lines, "worlds": summary.worlds(p, rows)})
    head = {
        "study": settings.name,
        "date": datetime.date.today().isoformat(),
        "version": importlib.metadata.version("modeseek"),
        "commit": commit(),
        "command": order.command(),
        "purpose": order.purpose,
        "quick": order.quick,
        "warnings": list(warnings),
        "failed": [{"cell": str(f.task.job.cell), "error": f.error} for f in failed],
    }
    write_json(folder / STUDY, {**head, "sets": asked})
    said = {**head, "alpha": ALPHA, "sets": sets}
    write_json(folder / VERDICTS, said)
    write_json(folder / CURVES, {"sets": drawn})
    from modeseek.report import study as page

    page.write(folder)
    return said


def commit() -> str:
    """The commit of the code in the working directory, with a plus where files differ from it; empty outside git."""
    git = lambda *words: subprocess.run(["git", *words], capture_output=True, text=True, timeout=10)
    try:
        found = git("rev-parse", "--short", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no").stdout.strip() if not found.returncode else ""
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if found.returncode else found.stdout.strip() + ("+" if changed else "")


def _log_opening(folder: Path, name: str) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with (folder / store.OPENINGS).open("a") as file:
        file.write(f"{now}\t{name}\t{commit() or 'not in git'}\n")
