"""`modeseek quickstart`: what modeseek is for, on a small model made on the spot, in minutes and without a network."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import queue
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from modeseek import report
from modeseek.config import read_tree
from modeseek.quickstart import story
from modeseek.quickstart.arms import FULL, SHORT, Arm, look, train
from modeseek.quickstart.picture import draw
from modeseek.quickstart.world import Recipe, prepare
from modeseek.train import NotFinite

DEFAULT = "runs/quickstart"


@dataclass(frozen=True, kw_only=True)
class Quickstart:
    """Train a small model that tells fables, then DPO, HyPO and online DPO from the same start, and compare them.

    Everything is made on the spot: the model, the pairs and their known reward. Nothing is downloaded.
    """

    seeds: int = 2  # how many: 0, 1, ...; each begins with another model and other pairs
    full: bool = False  # every arm, not only the four that tell the story
    output_dir: str = ""  # unset: runs/quickstart, or the next free name after it
    threads: int = 1  # of each process; there is a process a seed, as far as the cores go
    steps: int = 150  # optimiser steps of each arm

    def __post_init__(self) -> None:
        for name in ("seeds", "threads", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}, expected at least 1")


def main(words: list[str]) -> int:
    """The command: train, print the table and the path of the report."""
    asked = tyro.cli(Quickstart, args=words, prog="modeseek quickstart")
    quickstart(asked, Recipe(steps=asked.steps))
    return 0


def quickstart(asked: Quickstart, recipe: Recipe, console: Console | None = None) -> Path:
    """Run it all; the path of the report, beside which every run has its directory."""
    console = console or Console()
    folder = _folder(asked.output_dir)
    arms = FULL if asked.full else SHORT
    seeds = range(asked.seeds)
    workers = min(asked.seeds, max(1, _cores() // asked.threads))
    many = f"{asked.seeds} seed{'s' if asked.seeds > 1 else ''}, {len(arms)} methods of {recipe.steps} steps each"
    console.print(f"{many}, in {folder}", highlight=False)
    with _bars(console, seeds, arms) as told:
        if workers == 1:
            found = _here(seeds, recipe, arms, folder, asked.threads, told)
        else:
            found = _in_processes(seeds, recipe, arms, folder, asked.threads, told, workers)
    paths = [path for arm in zip(*found, strict=True) for path in arm]  # by arm, then by seed
    story.tell(console, paths)
    page = report.write(paths, folder / "report.html", title="modeseek quickstart: fables")
    draw(paths, folder / "quickstart.svg")
    console.print(f"\nreport: {page}", highlight=False, soft_wrap=True)
    again = f"modeseek train {folder / 'seed-0' / 'hypo' / 'run.yaml'} --objective.kl 0.03 --output_dir runs/mine"
    console.print(f"turn a knob: {again}", highlight=False, soft_wrap=True)
    return page


Tell = Callable[[int, float, str], None]  # seed, work done, what is going on


def one_seed(seed: int, recipe: Recipe, arms: Sequence[Arm], folder: Path, tell: Tell) -> list[Path]:
    """Everything of one seed: the reference, then arm after arm. Their run directories."""
    done = 0.0

    def telling(what: str, work: float, steps: int) -> Callable[[int], None]:
        return lambda step: tell(seed, done + work * step / steps, what)

    world = prepare(seed, recipe, folder, telling("reference", PRETRAINING, recipe.pretraining_steps))
    done += PRETRAINING
    first, paths = look(world.start, world), []
    for arm in arms:
        train(arm, world, first, telling(arm.name, work_of(arm), recipe.steps))
        done += work_of(arm)
        paths.append(folder / arm.folder)
    tell(seed, done, "done")
    return paths


PRETRAINING, TOLD, SAMPLED = 1.5, 1.0, 2.0  # how long they take, roughly, for the estimate of what is left


def work_of(arm: Arm) -> float:
    """Sampling takes most of the time."""
    return TOLD if read_tree(arm.method)["source"]["type"] == "offline" else SAMPLED


@contextmanager
def _bars(console: Console, seeds: Sequence[int], arms: Sequence[Arm]) -> Iterator[Tell]:
    """A bar a seed; where nobody watches, a line whenever a seed begins another part."""
    total = PRETRAINING + sum(map(work_of, arms))
    columns = (TextColumn("{task.description:<24}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    doing: dict[int, str] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bars = {seed: progress.add_task(f"seed {seed}", total=total) for seed in seeds}

        def tell(seed: int, done: float, what: str) -> None:
            if not console.is_terminal and doing.get(seed) != what:
                console.print(f"seed {seed}: {what}", highlight=False)
            doing[seed] = what
            progress.update(bars[seed], completed=done, description=f"seed {seed}: {what}")

        yield tell


def _here(seeds: Sequence[int], recipe: Recipe, arms: Sequence[Arm], folder: Path, threads: int, tell: Tell):
    """One seed after another in this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return [one_seed(seed, recipe, arms, folder / f"seed-{seed}", tell) for seed in seeds]
    finally:
        torch.set_num_threads(before)


def _in_processes(
    seeds: Sequence[int], recipe: Recipe, arms: Sequence[Arm], folder: Path, threads: int, tell: Tell, workers: int
) -> list[list[Path]]:
    """Seeds side by side, a process each: they share nothing, so the numbers are those of one process."""
    context = multiprocessing.get_context("spawn")
    news, stop = context.Queue(), context.Event()
    with ProcessPoolExecutor(workers, context, _begin, (threads, news, stop)) as pool:
        jobs = [pool.submit(_job, seed, recipe, arms, folder / f"seed-{seed}") for seed in seeds]
        try:
            while not all(job.done() for job in jobs):
                failed = next((job for job in jobs if job.done() and job.exception()), None)
                if failed is not None:
                    failed.result()
                with contextlib.suppress(queue.Empty):
                    tell(*news.get(timeout=0.2))
            while not news.empty():
                tell(*news.get())
            return [job.result() for job in jobs]
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


_NEWS: Any = None  # set in each worker by _begin
_STOP: Any = None


def _begin(threads: int, news: Any, stop: Any) -> None:
    """A worker begins. Ctrl-C is the parent's to handle: it tells its workers to stop."""
    global _NEWS, _STOP
    _NEWS, _STOP = news, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)


def _job(seed: int, recipe: Recipe, arms: Sequence[Arm], folder: Path) -> list[Path]:
    try:
        return one_seed(seed, recipe, arms, folder, _post)
    except NotFinite as error:
        raise RuntimeError(f"seed {seed}: {error}") from None  # the batch in it need not travel


def _post(seed: int, done: float, what: str) -> None:
    parent = multiprocessing.parent_process()
    if _STOP.is_set() or (parent and not parent.is_alive()):
        raise RuntimeError(f"seed {seed}: stopped")
    _NEWS.put((seed, done, what))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _folder(asked: str) -> Path:
    """Where to write. No earlier result is touched."""
    if not asked:
        numbered = (Path(f"{DEFAULT}-{n}") for n in itertools.count(2))
        return next(path for path in itertools.chain([Path(DEFAULT)], numbered) if not path.exists())
    path = Path(asked)
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ValueError(f"output_dir: {asked} is not empty; name another, or leave it out for the next free one")
    return path
