"""What else changed: standard tasks through lm-evaluation-harness, which is run as a program and never imported.

pip install 'modeseek[harness]'
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from modeseek.estimate import Estimate, share

PROGRAM = ("lm-eval", "lm_eval")  # since 0.4.10, and before


def program() -> str:
    """The harness's program, beside this Python or on the path."""
    beside = Path(sys.executable).parent
    for name in PROGRAM:
        found = shutil.which(name, path=str(beside)) or shutil.which(name)
        if found:
            return found
    raise ValueError("harness: lm-eval is not installed; write pip install 'modeseek[harness]', or leave --harness out")


def command(
    model: str,
    tasks: Sequence[str],
    output: str | Path,
    *,
    limit: int | None = None,
    fewshot: int | None = None,
    batch_size: int = 8,
    device: str = "cpu",
    seed: int = 0,
    include: str | Path | None = None,
    executable: str = PROGRAM[0],
) -> list[str]:
    """The words of one run. `include` is a folder of task definitions of one's own; `limit` is documents a task."""
    if not tasks:
        raise ValueError("harness: no tasks were named; write some, such as --harness arc_easy hellaswag")
    if any("," in part for part in (model, *tasks)):
        raise ValueError("harness: a comma in a model's path or a task's name, which lm-eval would split; rename it")
    words = [executable, "--model", "hf", "--model_args", f"pretrained={model}", "--tasks", ",".join(tasks)]
    words += ["--batch_size", str(batch_size), "--device", device, "--seed", str(seed), "--output_path", str(output)]
    for flag, value in (("--limit", limit), ("--num_fewshot", fewshot), ("--include_path", include)):
        words += [] if value is None else [flag, str(value)]
    return words


def run(words: Sequence[str], *, timeout: float | None = None) -> list[Estimate]:
    """Run the harness and read what it wrote under its `--output_path`."""
    output = Path(words[words.index("--output_path") + 1])
    before = set(_results(output))
    try:
        done = subprocess.run(list(words), capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"harness: {words[0]} took longer than {timeout} seconds; lower --limit") from None
    except OSError as error:
        raise ValueError(f"harness: {words[0]} cannot be run: {error.strerror}") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise ValueError(f"harness: {Path(words[0]).name} ended with {done.returncode}: {' | '.join(said)}")
    written = [path for path in _results(output) if path not in before]
    if not written:
        raise ValueError(f"harness: {Path(words[0]).name} wrote no results_*.json under {output}")
    return parse(json.loads(max(written, key=lambda p: p.stat().st_mtime).read_text()))


def parse(results: Mapping[str, Any], *, level: float = 0.95) -> list[Estimate]:
    """Its results as estimates named `task/metric`, other filters as `task/metric,filter`.

    The interval is normal with the harness's own standard error, over documents. A group's mean has its own error; a
    metric without one gets an infinite interval, not a point, and all documents right or wrong get Wilson's.
    """
    try:
        tasks: Mapping[str, Mapping[str, Any]] = {**results["results"], **results.get("groups", {})}
        counts: Mapping[str, Any] = results.get("n-samples", {})
    except (KeyError, TypeError):
        raise ValueError("harness: found no `results`, expected the JSON that lm-eval writes") from None
    found, z = list[Estimate](), float(stats.norm.ppf((1 + level) / 2))
    for task, metrics in tasks.items():
        for key, value in metrics.items():
            name, comma, kind = key.partition(",")
            if not comma or name.endswith("_stderr") or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            error = metrics.get(f"{name}_stderr,{kind}")
            error = float(error) if isinstance(error, int | float) else math.inf
            n = counts.get(task, {}).get("effective", metrics.get("sample_len", 0))
            low, high = float(value) - z * error, float(value) + z * error
            if (
                error == 0 and n and value in (0, 1)
            ):  # all right or all wrong: no spread to go by, and still not certain
                whole = share([float(value)] * int(n), level=level)
                low, high = whole.low, whole.high
            found.append(
                Estimate(
                    value=float(value),
                    low=low,
                    high=high,
                    n=int(n),
                    name=f"{task}/{name}" + ("" if kind == "none" else f",{kind}"),
                    standard_error=error,
                    level=level,
                    interval="normal",
                )
            )
    return found


def changes(ours: Sequence[Estimate], theirs: Sequence[Estimate]) -> list[Estimate]:
    """What the fine-tune did to each task: ours less theirs, `regression/task/metric`.

    The two errors are taken as independent although both saw the same documents, so the intervals are too wide, not
    too narrow. Metrics that only one of the two has are left out.
    """
    before, found = {e.name: e for e in theirs}, list[Estimate]()
    for e in ours:
        if (b := before.get(e.name)) is None:
            continue
        error = math.hypot(e.standard_error, b.standard_error)
        reach, gap = float(stats.norm.ppf((1 + e.level) / 2)) * error, e.value - b.value
        found.append(
            Estimate(
                value=gap,
                low=gap - reach,
                high=gap + reach,
                n=min(e.n, b.n),
                name=f"regression/{e.name}",
                standard_error=error,
                level=e.level,
                interval="normal",
            )
        )
    return found


def _results(folder: Path) -> list[Path]:
    return sorted(folder.rglob("results*.json")) if folder.is_dir() else []
