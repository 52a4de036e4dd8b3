"""Tasks done by worker processes here or by a Ray cluster, each kept when it is finished and skipped the next time."""

from __future__ import annotations

import importlib
import os
import pickle
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from modeseek.studies import store
from modeseek.studies.base import World
from modeseek.studies.plan import Task

On = Literal["processes", "ray"]


@dataclass(frozen=True)
class Outcome:
    """A task that came back: the Parquet file's content, or why there is none."""

    task: Task
    content: bytes | None
    error: str
    seconds: float


def perform(task: Task) -> Outcome:
    """Do one task. What goes wrong in a world is an outcome, so that the others go on."""
    started = time.perf_counter()
    try:
        if task.source is not None:
            task.source.install()
        world: World = pickle.loads(task.world)
        cell = task.job.cell
        rows = world.run(cell.method, task.job.seeds, **dict(cell.dials))
        took = time.perf_counter() - started
        return Outcome(task, store.encode(task.job, rows, took), "", took)
    except Exception as error:
        where = traceback.format_exc(limit=-3)
        return Outcome(task, None, f"{type(error).__name__}: {error}\n{where}", time.perf_counter() - started)


def run(
    tasks: Sequence[Task],
    folder: Path,
    *,
    workers: int = 0,
    on: On = "processes",
    console: Console | None = None,
) -> list[Outcome]:
    """Do what is not finished and keep it; the outcomes that failed. `workers` 0: as many as there are cores."""
    waiting = [task for task in tasks if not store.done(folder, task.job)]
    workers = max(1, min(workers or os.cpu_count() or 1, len(waiting)))
    failed: list[Outcome] = []
    if not waiting:
        return failed
    with _bar(console or Console(stderr=True)) as bar:
        line = bar.add_task("study", total=len(tasks), completed=len(tasks) - len(waiting), left="", now="")
        clock = Clock(waiting, workers)
        for outcome in (_on_ray if on == "ray" else _on_processes)(waiting, workers):
            if outcome.content is None:
                failed.append(outcome)
            else:
                store.write(folder, outcome.task.job, outcome.content)
            clock.tick(outcome)
            now = str(outcome.task.job.cell) + (" FAILED" if outcome.content is None else "")
            bar.update(line, advance=1, left=clock.left(), now=now[:60])
    return failed


class Clock:
    """How long it will take: each task left as long as those of its world have taken."""

    def __init__(self, tasks: Sequence[Task], workers: int):
        self.workers = workers
        self.waiting: dict[str, int] = defaultdict(int)
        self.took: dict[str, list[float]] = defaultdict(list)
        for task in tasks:
            self.waiting[task.job.cell.world] += len(task.job.seeds)

    def tick(self, outcome: Outcome) -> None:
        """Count a task that came back."""
        world, n = outcome.task.job.cell.world, len(outcome.task.job.seeds)
        self.waiting[world] -= n
        self.took[world].append(outcome.seconds / n)

    def seconds(self) -> float:
        """Until the last one, if every worker is kept busy. A world not yet seen counts as the mean of the others."""
        means = {world: sum(took) / len(took) for world, took in self.took.items()}
        usual = sum(means.values()) / len(means)
        return sum(n * means.get(world, usual) for world, n in self.waiting.items()) / self.workers

    def left(self) -> str:
        """The same in words."""
        minutes, seconds = divmod(round(self.seconds()), 60)
        return f"about {minutes}:{seconds:02d} left"


def _on_processes(tasks: Sequence[Task], workers: int) -> Iterator[Outcome]:
    """Worker processes of one thread each; no process is started for one worker."""
    if workers == 1:
        yield from map(perform, tasks)
        return
    from joblib import Parallel, delayed, parallel_config

    one_at_a_time: dict[str, Any] = {"return_as": "generator_unordered", "batch_size": 1}
    with parallel_config(backend="loky", n_jobs=workers, inner_max_num_threads=1):
        found: Any = Parallel(**one_at_a_time)(delayed(perform)(task) for task in tasks)
        yield from found


def _on_ray(tasks: Sequence[Task], workers: int) -> Iterator[Outcome]:
    """One core a task on a Ray cluster: the one that RAY_ADDRESS names, or a local one of so many cores."""
    try:
        ray = importlib.import_module("ray")
    except ModuleNotFoundError:
        raise ValueError("on: ray is not installed; write pip install 'modeseek[ray]', or --on processes") from None
    if not ray.is_initialized():
        here = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers, "include_dashboard": False}
        ray.init(log_to_driver=False, **here)
    remote = ray.remote(num_cpus=1)(perform)
    waiting = [remote.remote(task) for task in tasks]
    while waiting:
        ready, waiting = ray.wait(waiting, num_returns=1)
        yield ray.get(ready[0])


def _bar(console: Console) -> Progress:
    words = ("{task.description}", "{task.completed}/{task.total} cells", "{task.fields[left]}", "{task.fields[now]}")
    first, *rest = (TextColumn(word, markup=False) for word in words)
    return Progress(first, BarColumn(), rest[0], TimeElapsedColumn(), *rest[1:], console=console)
