"""What happens while a run goes on: rows, held-out evaluation, checkpoints, the progress bar, Ctrl-C."""

import signal
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from modeseek import checkpoint
from modeseek.build import Parts
from modeseek.config import Run
from modeseek.diagnostics import detector
from modeseek.diagnostics.states import SICK, told
from modeseek.record import Record, read
from modeseek.runs.doubts import Doubts
from modeseek.runs.held_out import held_out
from modeseek.train import Loop

SHOWN = ("loss", "rewards/margins", "reward", "kl", "eval/reward", "eval/kl")
NARROW = ("loss", "eval/reward")  # where the terminal has few columns


@dataclass
class Watch:
    """What happens after each optimiser step: rows, held-out evaluation, checkpoints, the progress bar."""

    parts: Parts
    record: Record
    folder: Path
    evaluated_at: int = -1
    stopped: bool = False
    best: float | None = None
    best_path: Path | None = None
    last: dict[str, float] = field(default_factory=dict)
    states: list[dict[str, Any]] = field(default_factory=list)  # each change of what the run is doing
    progress: Progress | None = None
    ended: bool = False  # by a state of stop_on
    shown: tuple[str, ...] = SHOWN  # numbers beside the progress bar

    def __post_init__(self) -> None:
        team = self.parts.loop.team
        self.saver = checkpoint.Saver(self.folder / "checkpoints", background=self.parts.run.background_saves)
        self.doubts = Doubts(self.parts.run)
        self.best, self.best_path = team.first(lambda: _best_so_far(self.folder, self.parts.run))
        rows = team.first(lambda: read(self.folder).rows)
        self.seen = detector.Watch(stop_on=self.parts.run.stop_on, rows=[dict(row) for row in rows])
        steps = [row["step"] for row in rows if any(k.startswith("eval/") for k in row)]
        if team.pulse is not None:
            team.pulse.last_words = self._last_words
        self.evaluated_at = steps[-1] if steps else -1  # a resumed run does not measure the same step again

    def __call__(self, loop: Loop, row: dict[str, float]) -> bool:
        run = self.parts.run
        if loop.step % run.logging_steps == 0 or loop.step == run.max_steps:
            self._log(row)
        self.last |= row
        if run.eval_steps and loop.step % run.eval_steps == 0:
            self.evaluate()
        if run.save_steps and loop.step % run.save_steps == 0:
            self.save()
        self._tick(loop)
        self.stopped, self.ended = loop.team.any(self.stopped), loop.team.any(self.ended)
        if self.stopped:
            self.save()
        return self.stopped or self.ended

    def _log(self, row: dict[str, Any]) -> None:
        """Keep a row, and name what the run is doing; a change of state goes to the card, and a sick one is said."""
        self.record.row(row)
        for doubt in self.doubts(row):
            self.record.warn(doubt)
            if self.progress is not None:
                self.progress.console.print(f"[yellow]note[/] {doubt}", highlight=False)
        before = self.seen.verdict
        if not self.ended:  # what ended the run stays its state, whatever its last evaluation shows
            self.ended = self.seen(self.parts.loop, row)
        now = self.seen.verdict
        if now is None or (before is not None and now.state == before.state and not self.ended):
            return
        self.states.append({"step": now.step, "state": now.state})
        self.record.card(state=told(now), states=self.states)
        if self.progress is not None and now.state in SICK:
            self.progress.console.print(f"step {now.step}: {now}", highlight=False, markup=False)

    def evaluate(self) -> None:
        """Measure on held-out pairs and prompts, and keep samples."""
        parts, step = self.parts, self.parts.loop.step
        self.evaluated_at = step
        row, texts = held_out(parts)
        if not row:
            return
        self._log({"step": step, **row})
        if texts:
            self.record.samples([{"step": step, **text} for text in texts])
        self.last |= row
        metric = parts.run.metric_for_best_model
        if not metric:
            return
        if metric not in row:
            raise ValueError(f"metric_for_best_model: {metric} is not measured; there are {', '.join(row)}")
        sign = 1 if parts.run.greater_is_better else -1
        if self.best is None or sign * row[metric] > sign * self.best:
            self.best = row[metric]
            self.best_path = self.saver.save(parts.loop)
            self.record.card(best={"metric": metric, "value": self.best, "step": step})
            self.save()

    def save(self) -> None:
        """A checkpoint of now; older ones go, the best stays."""
        self.saver.save(self.parts.loop, keep=self.parts.run.save_total_limit, never_delete=self.best_path)

    def _last_words(self, message: str) -> str:
        """Said by a process that answers, of one that does not."""
        Record(self.folder).warn(message)
        last = checkpoint.latest(self.folder / "checkpoints")
        return f"The newest checkpoint is {last.name}: go on with --resume" if last else "There is no checkpoint yet"

    def bar(self, console: Console) -> Progress:
        """The progress bar: steps, rate, time left, and the numbers to look at."""
        wide = console.width >= 100
        columns = [
            TextColumn("{task.description}"),
            *([BarColumn(bar_width=None if console.width >= 140 else 20)] if wide else []),
            TextColumn("{task.completed}/{task.total}"),
            *([TextColumn("{task.fields[rate]}"), TimeElapsedColumn()] if wide else []),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[numbers]}"),
            TextColumn("{task.fields[state]}"),
        ]
        self.shown = SHOWN if console.width >= 140 else NARROW
        self.progress = Progress(*columns, console=console, transient=False)
        name, loop = self.parts.run.method or "train", self.parts.loop
        self.progress.add_task(name, total=self.parts.run.max_steps, completed=loop.step, numbers="", rate="", state="")
        return self.progress

    def _tick(self, loop: Loop) -> None:
        if self.progress is not None:
            shown = "  ".join(f"{name} {self.last[name]:.3g}" for name in self.shown if name in self.last)
            speed = self.progress.tasks[0].speed
            rate = f"{speed:.2g}/s" if speed else ""
            state = self.seen.verdict.title if self.seen.verdict else ""
            self.progress.update(self.progress.task_ids[0], completed=loop.step, numbers=shown, rate=rate, state=state)


def _best_so_far(path: Path, run: Run) -> tuple[float | None, Path | None]:
    best = read(path).card.get("best")
    if not run.metric_for_best_model or not best:
        return None, None
    return best["value"], path / "checkpoints" / f"{checkpoint.PREFIX}{best['step']:08d}"


class stopping_softly:
    """Ctrl-C ends after the step in flight, with a checkpoint; a second one ends at once."""

    def __init__(self, watch: Watch):
        self.watch, self.before = watch, None

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGINT, self._ask)

    def __exit__(self, *_: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)

    def _ask(self, _signal: int, _frame: FrameType | None) -> None:
        if self.watch.stopped:
            raise KeyboardInterrupt
        self.watch.stopped = True
