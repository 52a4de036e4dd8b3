"""What one process of a team runs in the tests: steps of several methods, their rows and gradients to a file.

`python steps.py ROOT OUT CASE...` with the environment that torchrun sets, or without it, alone. A case is
`METHOD-PARALLEL-full` or `METHOD-PARALLEL-lora`; with `:save:NAME` behind it a checkpoint is written into `ROOT/NAME`
after two steps, with `:resume:NAME` two steps are taken from there. The cases `hang` and `freeze` are
a rank that never comes.
"""

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

STEPS = 2
HANGS = ("hang", "freeze")
OFFLINE = ("pref_ft", "dpo", "kto")
METHODS = {
    "pref_ft": ["--minibatch", "3"],
    "dpo": ["--minibatch", "3"],
    "kto": ["--minibatch", "3"],
    "hypo": [],
    "rloo": ["--reward", "length:unit=characters", "--source.num-generations", "2"],
    "ppo_critic": ["--reward", "length:unit=characters", "--minibatch", "2"],
}


def config(root: Path, method: str, parallel: str, kind: str, *more: str) -> Any:
    """Rounds of three or five prompts: on four ranks one is without any."""
    from modeseek.config import load

    prompts = "5" if "--minibatch" in METHODS[method] and method != "ppo_critic" else "3"
    words = ["--model", str(root / "model"), "--data", str(root / "pairs.jsonl"), "--dtype", "float64"]
    words += ["--prompts-per-round", prompts, "--microbatch", "1", "--max-steps", "4", "--learning-rate", "0.01"]
    words += ["--max-grad-norm", "0.5", "--eval-size", "4", "--max-length", "128"]
    words += ["--eval-prompts", "0" if method in OFFLINE else "3"]
    words += ["--truncate-responses", "--max-completion-length", "100" if method in OFFLINE else "12"]
    words += ["--parallel", parallel, *METHODS[method], *(["--lora.r", "2"] if kind == "lora" else []), *more]
    return load(method, words)


def steps(root: Path, case: str, team: Any) -> dict[str, Any]:
    """The rows of some steps, the gradient of the first, and what is then said of held-out data."""
    from modeseek.build import build
    from modeseek.distributed.team import whole
    from modeseek.runs import held_out, spread

    method, parallel, kind = case.split("-")
    team = dataclasses.replace(team, sharded=parallel == "fsdp")
    run = config(root, method, "auto", kind)
    parts = spread(build(run), team)
    rows, grads = [], {}
    for step in range(STEPS):
        rows.append(parts.loop.advance())
        if not step:
            grads = {n: whole(p.grad).clone() for n, p in parts.loop.trainable.items() if p.grad is not None}
    batch = parts.loop.round.batch if parts.loop.round else None
    return {
        "rows": rows,
        "grads": grads,
        "weights": {n: whole(p.detach()).clone() for n, p in parts.loop.trainable.items()},
        "responses": None if batch is None else batch.response,
        "held_out": held_out(parts)[0],
    }


def rows(root: Path, case: str, team: Any) -> dict[str, Any]:
    """The third and the fourth step of a run that is saved after two, or goes on from what was saved."""
    from modeseek import checkpoint
    from modeseek.build import build
    from modeseek.runs import spread

    case, verb, name = case.split(":")
    method, parallel, kind = case.split("-")
    team = dataclasses.replace(team, sharded=parallel == "fsdp")
    loop = spread(build(config(root, method, "auto", kind)), team).loop
    if verb == "resume":
        path = checkpoint.latest(root / name)
        assert path is not None
        checkpoint.restore(path, loop)
        return {"rows": [loop.advance(), loop.advance()]}
    saver = checkpoint.Saver(root / name, background=True)
    loop.advance()
    loop.advance()
    saver.save(loop)
    found = {"rows": [loop.advance(), loop.advance()]}  # while it is being written
    saver.wait(loop)
    return found


def hang(team: Any, *, freeze: bool) -> dict[str, Any]:
    """The last rank answers no more; unless it is frozen, its threads are alive."""
    team.at("scoring", 3)
    if team.rank == team.size - 1:
        time.sleep(1.5)  # it has said where it is
        os.kill(os.getpid(), signal.SIGSTOP) if freeze else time.sleep(600)
    return {"any": team.any(True)}


def main() -> None:
    torch.set_num_threads(1)
    root, out, cases = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    from modeseek.distributed import Team

    with Team.start("auto", cuda=False, hang_timeout=4 if cases[0] in HANGS else 60) as team:
        found = {}
        for case in cases:
            began = time.perf_counter()
            if case in HANGS:
                hang(team, freeze=case == "freeze")
            found[case] = (rows if ":" in case else steps)(root, case, team)
            if team.leads:
                print(f"{case} {time.perf_counter() - began:.1f} s", flush=True)
        if team.leads:
            torch.save(found, out)


if __name__ == "__main__":
    main()
