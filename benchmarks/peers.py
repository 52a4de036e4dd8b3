"""Against TRL 1.16 and plain transformers: the same models, the same batches, and where it is told the same losses.

    make bench-peers                # an environment of its own, then every case at S and the DPO step in fp32 at M
    python benchmarks/peers.py --case dpo --model M --rounds 3 --peer "TRL, fp32, precomputed"

Each way runs alone in a process of one thread and says its CPU seconds (of the process: a busy machine disturbs them
little), its losses, and its peak memory above the level before training. A round runs every way once; a ratio is the
median over rounds of the rounds' ratios. TRL's trainers run as they are, their step timed from callbacks; `compacted`
turns on by hand the one thing that they do on a GPU only: the output layer on completion tokens alone. Random weights,
log-normal lengths (see step.py); a fortieth of the vocabulary ends a sample, so that lengths are geometric. `rebuilt`
are the steps of trl_step.py, the baseline of gpu.py: their CPU seconds over the real one's are told below the table.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peer_ways import OURS, PAIRS, REBUILT, ways

GOALS = {  # case: {peer: (gate, stretch)}, in times faster, and of memory as a share of the peer's
    "dpo": {
        "TRL, its defaults (bf16, checkpointing)": (6, 8),
        "TRL, fp32, precomputed": (4, 6),
        "TRL, fp32, precomputed, compacted": (2.2, 3),
    },
    "rloo": {"TRL": (10, 14)},
    "online_dpo": {"TRL": (4.5, 6)},
    "rollout k=1": {"generate()": (2, 3), "generate(), static cache": (3, 4.5), "generate_batch": (3, 4.5)},
    "rollout k=4": {"generate()": (4, 6), "generate(), static cache": (3, 4.5), "generate_batch": (3, 4.5)},
    "rollout k=8": {"generate()": (10, 14), "generate(), static cache": (3, 4.5), "generate_batch": (3, 4.5)},
}
NEAR = 0.1  # of the real step's time: how far a rebuilt one's may lie
MEMORY = {"S": (1 / 4, 1 / 5), "M": (1 / 3, 1 / 4)}  # of TRL's precompute, in the DPO step


def alone(case: str, model: str, way: str) -> dict[str, Any]:
    """What a way says of itself, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        words = [sys.executable, __file__, "--case", case, "--model", model, "--way", way, "--json", str(out)]
        done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise RuntimeError(f"{case}, {way}: {done.stderr[-2000:]}")
        return json.loads(out.read_text())


def compare(case: str, model: str, rounds: int, peers: list[str] | None = None) -> dict[str, Any]:
    """Ours and every peer (or those named) `rounds` times, in turn. One that does not run is told with its error."""
    first, *others = ways(case, model)
    if peers and not set(peers) <= {*others}:
        raise SystemExit(f"--peer: {case} is compared with {'; '.join(others)}")
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in (first, *(peers or others))}
    failed: dict[str, str] = {}
    for _ in range(rounds):
        for way in [w for w in found if w not in failed]:
            print(f"{case}, {model}: {way}", end=" ", file=sys.stderr, flush=True)
            try:
                found[way].append(alone(case, model, way))
                print(f"{found[way][-1]['seconds']:.2f} CPU s", file=sys.stderr, flush=True)
            except RuntimeError as error:
                print("does not run", file=sys.stderr, flush=True)
                if way.startswith("modeseek"):
                    raise
                failed[way] = str(error).strip().splitlines()[-1]
    rows = {way: _row(case, way, runs, found[first]) for way, runs in found.items() if way not in failed}
    return {"case": case, "model": model, "rounds": rounds, "ways": rows, "failed": failed}


def _row(case: str, way: str, runs: list[dict[str, Any]], first: list[dict[str, Any]]) -> dict[str, Any]:
    apart = [abs(a - b) for a, b in zip(runs[0]["losses"], first[0]["losses"], strict=True)] if case == "dpo" else []
    faster = [run["seconds"] / mine["seconds"] for run, mine in zip(runs, first, strict=True)]
    return {
        "seconds": statistics.median(run["seconds"] for run in runs),
        "times_faster": statistics.median(faster),
        "from": min(faster),
        "to": max(faster),
        "peak_mib": statistics.median(run["peak_mib"] for run in runs),
        "loss_apart": max(apart, default=None),
        "goal": GOALS.get(case, {}).get(way),
    }


def table(found: dict[str, Any]) -> str:
    """In Markdown."""
    case, model, rows = found["case"], found["model"], found["ways"]
    lines = [f"### {case}, {model}\n", "| way | CPU s | ours is faster by | gate (stretch) | peak MiB | loss apart |"]
    lines.append("|---|---|---|---|---|---|")
    for way, x in rows.items():
        goal = "" if x["goal"] is None else f"{x['goal'][0]:g} ({x['goal'][1]:g})"
        apart = "" if x["loss_apart"] is None else f"{x['loss_apart']:.1e}"
        faster = "" if x is next(iter(rows.values())) else f"{x['times_faster']:.1f}x"
        if faster and found["rounds"] > 1:
            faster += f" ({x['from']:.1f} to {x['to']:.1f})"
        lines.append(f"| {way} | {x['seconds']:.2f} | {faster} | {goal} | {x['peak_mib']:.0f} | {apart} |")
    lines += [f"\n{way} does not run here: `{why}`" for way, why in found["failed"].items()]
    both = [n for n in REBUILT if {f"TRL, {n}", f"rebuilt, {n}"} <= rows.keys()]
    if both:
        over = {n: rows[f"rebuilt, {n}"]["seconds"] / rows[f"TRL, {n}"]["seconds"] for n in both}
        lines.append(
            f"\nRebuilt over real (within {NEAR:.0%}): " + ", ".join(f"{n} {x:.2f}" for n, x in over.items()) + "."
        )
    if case == "dpo" and "TRL, fp32, precomputed" in rows:
        share = rows[OURS]["peak_mib"] / rows["TRL, fp32, precomputed"]["peak_mib"]
        gate, stretch = MEMORY[model]
        lines.append(f"\nPeak memory: {share:.2f} of TRL's precompute (gate {gate:.2f}, stretch {stretch:.2f}).")
    return "\n".join(lines) + "\n"


def processor() -> str:
    """What it ran on: a bf16 product is slow where no unit for it is."""
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = next(
        (x.partition(":")[2].strip() for x in told.splitlines() if x.startswith("model name")), platform.machine()
    )
    return f"{name}, {'with' if 'amx_bf16' in told else 'without'} AMX"


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--case", choices=GOALS, action="append", help="several: give it several times; unset: every one")
    ask.add_argument("--model", choices=PAIRS, default="S")
    ask.add_argument("--rounds", type=int, default=1)
    ask.add_argument("--peer", action="append", help="beside ours only this way; several: give it several times")
    ask.add_argument("--way", help="only this one, in this process")
    ask.add_argument("--markdown", type=Path, help="add the tables to this file")
    ask.add_argument("--json", type=Path, help="write the numbers here")
    args = ask.parse_args()
    import torch

    torch.set_num_threads(1)
    if args.way:
        args.json.write_text(json.dumps(ways(args.case[0], args.model)[args.way]()))
        return
    found = [compare(case, args.model, args.rounds, args.peer) for case in args.case or GOALS]
    text = f"\n{processor()}, one thread, torch {torch.__version__}.\n\n" + "\n".join(map(table, found))
    print(text)
    if args.markdown:
        with args.markdown.open("a") as file:
            file.write(text)
    if args.json:
        args.json.write_text(json.dumps({"processor": processor(), "cases": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
