"""What the parts of gpu.py measure with, and the table they fill."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gpu_plan
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM


@dataclass(frozen=True)
class Row:
    """One figure and its goal."""

    part: str
    what: str
    value: float | None  # None: could not be had, and `note` says why
    goal: float | None = None
    at_most: bool = False  # the goal is an upper bound
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.goal is None or self.value is None:
            return None
        return self.value <= self.goal if self.at_most else self.value >= self.goal


@dataclass(frozen=True)
class Bench:
    """Where it runs, and how large it is made."""

    scale: gpu_plan.Scale
    where: torch.device
    rows: list[Row] = field(default_factory=list)

    def model(self, name: str, dtype: torch.dtype = torch.float32) -> Any:
        """Of random weights, made on the device."""
        torch.manual_seed(0)
        with self.where:
            made: Any = Qwen2ForCausalLM(Qwen2Config(**self.scale.models[name]))
        return made.to(dtype).eval()

    def seconds(self, run: Callable[[], Any], times: int = 3, warm: int = 2) -> float:
        """Median wall seconds; the first runs compile."""
        found = []
        for turn in range(warm + times):
            self.wait()
            begun = time.perf_counter()
            run()
            self.wait()
            found += [time.perf_counter() - begun] if turn >= warm else []
        return statistics.median(found)

    def wait(self) -> None:
        if self.where.type == "cuda":
            torch.cuda.synchronize()

    def peak(self, run: Callable[[], Any]) -> float | None:
        """Bytes above what is held before; None on a CPU, which keeps no account."""
        if self.where.type != "cuda":
            run()
            return None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run()
        self.wait()
        return float(torch.cuda.max_memory_allocated() - held)

    def tell(self, *given: Any, **more: Any) -> None:
        self.rows.append(Row(*given, **more))
        print(line(self.rows[-1]), flush=True)


def line(row: Row) -> str:
    value = "–" if row.value is None else f"{row.value:.3g}"
    goal = "" if row.goal is None else f"{'at most' if row.at_most else 'at least'} {row.goal:g}"
    met = {True: "yes", False: "**no**", None: ""}[row.met]
    return f"| {row.part} | {row.what} | {value} | {goal} | {met} | {row.note.replace('|', '/')} |"


def markdown(bench: Bench, about: str) -> str:
    top = [f"{about}\n", "| part | figure | measured | goal | met | |", "|---|---|---|---|---|---|"]
    return "\n".join([*top, *map(line, bench.rows)]) + "\n"
