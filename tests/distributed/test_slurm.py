"""The SLURM example: bash reads it, and what it would start is what torchrun and `modeseek train` understand."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from modeseek.config import load

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm.sbatch"
OPTIONS = {"job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "requeue", "output"}
STAND_INS = {
    "scontrol": '[ "$*" = "show hostnames node[1-2]" ] && printf "node1\\nnode2\\n"',
    "srun": "printf '%s\\0' \"$@\"",
}


@pytest.fixture
def started(tmp_path):
    """The words that srun is given, with stand-ins for SLURM's two commands."""
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    run = tmp_path / "run"
    run.mkdir()

    def start() -> list[str]:
        slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7"}
        told = {"MODEL": "some/model", "DATA": "some pairs.jsonl", "RUN": str(run)}
        env = os.environ | slurm | told | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        said = subprocess.run(["bash", str(SCRIPT)], env=env, capture_output=True, text=True, check=True)
        return said.stdout.rstrip("\0").split("\0")

    return start, run


def test_bash_and_sbatch_can_read_the_example():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    options = re.findall(r"^#SBATCH --([\w-]+)", SCRIPT.read_text(), re.M)
    assert {*options} == OPTIONS and len(options) == len(OPTIONS)
    assert shlex.split(SCRIPT.read_text(), comments=True)


def test_the_example_starts_one_torchrun_per_node_and_a_run_that_goes_together(started):
    from torch.distributed.run import get_args_parser

    start, run = started
    words = start()
    assert words[0] == "torchrun"
    asked = get_args_parser().parse_args(words[1:])
    assert (asked.nnodes, asked.nproc_per_node, asked.rdzv_endpoint) == ("2", "8", "node1:29500")
    assert asked.module and asked.training_script == "modeseek"
    command, method, *flags = asked.training_script_args
    assert command == "train" and "--resume" not in flags
    found = load(method, flags)
    assert (found.model, found.data, found.output_dir) == ("some/model", "some pairs.jsonl", str(run))
    assert (found.parallel, found.bf16, found.background_saves) == ("fsdp", True, True)


def test_after_a_requeue_the_run_goes_on(started):
    start, run = started
    (run / "checkpoints" / "step-00000050").mkdir(parents=True)
    assert start()[-1] == "--resume"
