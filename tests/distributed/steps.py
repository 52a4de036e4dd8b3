"""What one process of a team runs in the tests: steps of several methods, their rows and gradients to a file.

`python steps.py ROOT OUT CASE...` with the environment that torchrun sets, or without it, alone. A case is
`METHOD-PARALLEL-KIND`; KIND is `full`, `lora`, or `whole`: LoRA on a base that, as 4-bit ones, is not cut into pieces.
Behind it may stand
- `:save:NAME`: a checkpoint is written into `ROOT/NAME` after two steps; `:resume:NAME`: two steps from there;
- `:load:MODEL`: what the ranks hold after loading `ROOT/MODEL`; `:peak:MODEL`: what that cost each in memory;
- `:cache:NAME`: the reference's answers are kept in `ROOT/NAME`;
- `:serve:PORT`: samples are drawn by the server there, which is given the weights.
The cases `hang` and `freeze` are a rank that never comes.
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
HANGS = {"hang": 4, "freeze": 4, "backward": 20}  # seconds of patience
OFFLINE = ("pref_ft", "dpo", "kto", "reward_model")
METHODS = {
    "pref_ft": ["--minibatch", "3"],
    "dpo": ["--minibatch", "3"],
    "kto": ["--minibatch", "3"],
    "reward_model": [],
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
    words += ["--parallel", parallel, *METHODS[method], *(["--lora.r", "2"] if kind != "full" else []), *more]
    return load(method, words)


def steps(root: Path, case: str, team: Any) -> dict[str, Any]:
    """The rows of some steps, the gradient of the first, and what is then said of held-out data."""
    from modeseek.build import build
    from modeseek.distributed.team import whole
    from modeseek.runs import held_out, spread

    method, _, kind = case.split("-")
    run = config(root, method, "auto", kind)
    parts = spread(build(run, empty=team.sharded and kind != "whole"), team)
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
        "responses": None if batch is None else batch.response.masked_fill(~batch.mask, -1),
        "held_out": held_out(parts)[0],
    }


def rows(root: Path, case: str, team: Any) -> dict[str, Any]:
    """The third and the fourth step of a run that is saved after two, or goes on from what was saved."""
    from modeseek import checkpoint
    from modeseek.build import build
    from modeseek.runs import spread

    case, verb, name = case.split(":")
    method, _, kind = case.split("-")
    loop = spread(build(config(root, method, "auto", kind), empty=team.sharded), team).loop
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


def loaded(root: Path, case: str, team: Any) -> dict[str, Any]:
    """Every weight and buffer of policy and reference, put together again, and what the policy says with them."""
    from modeseek.build import build
    from modeseek.distributed.deal import tensors
    from modeseek.distributed.team import whole
    from modeseek.runs import spread

    case, _, name = case.split(":")
    method, _, kind = case.split("-")
    run = config(root, method, "auto", kind, "--model", str(root / name))
    parts = spread(build(run, empty=team.sharded), team)
    policy, reference = parts.policy, parts.reference
    batch = parts.train.prompts(torch.arange(3))
    with torch.no_grad():
        said = (policy.score if method == "reward_model" else policy.logp)(batch)
    held = {"policy": policy} if reference is None else {"policy": policy, "reference": reference.module}
    ways = {"paths": None if method == "reward_model" else policy.paths}
    return {"said": said, **ways, **{who: {n: whole(x) for n, x in tensors(m).items()} for who, m in held.items()}}


def peak(root: Path, case: str, team: Any) -> list[int]:
    """By how many bytes the memory of each rank has grown at most when it was dealt its pieces; no pass is made."""
    from resource import RUSAGE_SELF, getrusage

    from modeseek.build import build
    from modeseek.distributed import shard
    from modeseek.runs import spread

    method, _, kind = case.split(":")[0].split("-")
    before, first_pass = 0, shard._begin
    shard._begin = lambda model: None
    for name in ("model", case.split(":")[2]):  # the first one brings what is imported on the way
        before = getrusage(RUSAGE_SELF).ru_maxrss
        more = ["--model", str(root / name), "--dtype", "float32", "--no-measure-kl"]
        spread(build(config(root, method, "auto", kind, *more), empty=team.sharded), team)
    shard._begin = first_pass
    return team.hear((getrusage(RUSAGE_SELF).ru_maxrss - before) * 1024)


def cached(root: Path, case: str, team: Any) -> dict[str, Any]:
    """Two passes over the data with a reference that is asked once about each response."""
    from modeseek.build import build
    from modeseek.runs import spread

    case, _, name = case.split(":")
    method, _, kind = case.split("-")
    run = config(root, method, "auto", kind, "--reference-cache", str(root / name), "--no-measure-kl")
    parts = spread(build(run, empty=team.sharded), team)
    rounds = 2 * -(-len(parts.train) // run.prompts_per_round)
    batches = [parts.loop.draw().batch for _ in range(rounds)]
    counts = team.hear(dict(parts.reference.counts))
    ref = [batch["ref_logp"] for batch in batches]
    return {"ref": ref, "rows": sum(x["computed"] for x in counts), "asked": sum(x["found"] for x in counts)}


def served(root: Path, case: str, team: Any) -> dict[str, Any]:
    """Two steps on a server's samples: what each rank learnt from, and what the server was found to differ by."""
    from modeseek.build import build, sampled_by
    from modeseek.runs import spread

    case, _, port = case.split(":")
    method, _, kind = case.split("-")
    run = config(root, method, "auto", kind, "--sampler", f"vllm:http://127.0.0.1:{port}")
    parts = spread(build(dataclasses.replace(run, output_dir=str(root / case)), empty=team.sharded), team)
    drawn, found = sampled_by(parts.loop), []
    for _ in range(STEPS):
        parts.loop.advance()
        batch = parts.loop.round.batch
        gap = (parts.policy.logp(batch) - batch["old_logp"])[batch.mask].abs().max()
        found.append({"response": batch.response, "old_logp": batch["old_logp"], "moved": float(gap)})
    return {"heard": team.hear(found), "gap": drawn.asked.gap, "syncs": drawn.asked.syncs}


def hang(root: Path, team: Any, how: str) -> dict[str, Any]:
    """The last rank answers no more; unless it is frozen, its threads are alive."""
    if how == "backward":
        return _hang_within(root, dataclasses.replace(team, sharded=True))
    team.at("scoring", 3)
    if team.rank == team.size - 1:
        time.sleep(1.5)  # it has said where it is
        os.kill(os.getpid(), signal.SIGSTOP) if how == "freeze" else time.sleep(600)
    return {"any": team.any(True)}


def _hang_within(root: Path, team: Any) -> dict[str, Any]:
    """After a step, the last rank comes as far as the gradient of its first layer, where the others wait for it."""
    from modeseek.build import build
    from modeseek.distributed.shard import layers
    from modeseek.runs import spread

    parts = spread(build(config(root, "dpo", "auto", "full"), empty=True), team)
    parts.loop.advance()
    if team.rank == team.size - 1:
        wait = lambda grad: time.sleep(600)
        stop = lambda module, given, said: (said[0] if isinstance(said, tuple) else said).register_hook(wait) and None
        layers(parts.policy)[0].register_forward_hook(
            lambda module, given, said: stop(module, given, said) if torch.is_grad_enabled() else None
        )
    return parts.loop.advance()


def main() -> None:
    torch.set_num_threads(1)
    root, out, cases = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    from modeseek.distributed import Team

    with Team.start("auto", cuda=False, hang_timeout=HANGS.get(cases[0], 60)) as team:
        found = {}
        for case in cases:
            began = time.perf_counter()
            if case in HANGS:
                hang(root, team, case)
            verb = case.split(":")[1] if ":" in case else "steps"
            found[case] = VERBS[verb](root, case, dataclasses.replace(team, sharded="-fsdp-" in case))
            if team.leads:
                print(f"{case} {time.perf_counter() - began:.1f} s", flush=True)
        if team.leads:
            torch.save(found, out)


VERBS: dict[str, Any] = {"steps": steps, "save": rows, "resume": rows}
VERBS |= {"load": loaded, "peak": peak, "cache": cached, "serve": served}

if __name__ == "__main__":
    main()
