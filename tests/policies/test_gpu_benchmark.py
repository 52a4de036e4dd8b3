"""The GPU benchmark runs, on a CPU and in small; and it needs no package that the machine it is made for lacks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITHOUT = ("trl", "datasets", "tyro", "cattrs", "vllm", "flash_attn")
RUN = """
import runpy, sys

sys.modules |= dict.fromkeys({without}, None)  # as if they were not installed
sys.argv = ["gpu.py", *{words}]
sys.path.insert(0, {folder!r})
runpy.run_path({folder!r} + "/gpu.py", run_name="__main__")
"""


def run(*words: str, without: tuple[str, ...] = ()) -> str:
    code = RUN.format(without=without, words=list(words), folder=str(ROOT / "benchmarks"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_every_part_of_the_gpu_benchmark_runs_without_the_packages_that_a_gpu_machine_lacks(tmp_path):
    plan, found = tmp_path / "plan.json", tmp_path / "gpu.json"
    run("--tiny", "--write-plan", str(plan))
    assert len(json.loads(plan.read_text())) == 4
    said = run("--tiny", "--plan", str(plan), "--json", str(found), without=WITHOUT)
    rows = json.loads(found.read_text())["rows"]
    assert {row["part"] for row in rows} == {"equality", "step", "head", "rollout", "run"}
    same = [row for row in rows if row["part"] == "equality"]
    assert len(same) == 5 and all(row["met"] for row in same)
    goals = [row["what"] for row in rows if row["goal"] is not None]
    assert all(what in said for what in goals)
    assert sum("over TRL's default" in what for what in goals) == 2  # both sizes
