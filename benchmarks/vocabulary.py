"""How the DPO step's cost grows with the vocabulary: 8k, 32k and 128k tokens, a body of width 256, the same lengths.

    python benchmarks/vocabulary.py --rounds 3 --json vocabulary.json

CPU seconds of one thread for a whole step (forward, backward, clipping, AdamW) on packed rows and on padded ones, timed
in turn; growth is the median over rounds of the rounds' ratios. The optimiser's share is told apart, because both
embeddings grow too.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from step import Fast, Plain, Ways, make_groups, make_model

from modeseek.objectives import DPO

SIZES = (8192, 32_768, 131_072)
GATE, STRETCH = 3.2, 2.8  # 32k to 128k


def measure(vocab: int, rounds: int, *, padded: bool, pairs: int = 8) -> dict[str, list[float]]:
    model = make_model("S", vocab)
    batch = make_groups(pairs, SIZES[0])  # the same tokens for every vocabulary
    batch = batch.fill(ref_logp=torch.full(batch.response.shape, -9.0)).trim()
    ways = Ways(model, {"packed": (Fast, False)} | ({"padded": (Plain, False)} if padded else {}))
    spent: dict[str, list[float]] = {name: [] for name in [*ways.models, "optimiser"]}
    for turn in range(rounds + 1):  # the first makes the moments
        for name in ways.models:
            seconds, _ = ways.step(name, DPO(), batch)
            if turn:
                spent[name].append(seconds)
    for p in ways.models["packed"].parameters():
        p.grad = torch.zeros_like(p)
    for _ in range(rounds):
        begun = time.process_time()
        torch.nn.utils.clip_grad_norm_(ways.models["packed"].parameters(), 1.0)
        ways.optimisers["packed"].step()
        spent["optimiser"].append(time.process_time() - begun)
    return spent


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--padded", action="store_true", help="padded rows too, for comparison")
    ask.add_argument("--json", type=Path, help="write the numbers here as well")
    args = ask.parse_args()
    torch.set_num_threads(1)
    found = {vocab: measure(vocab, args.rounds, padded=args.padded) for vocab in SIZES}
    print("\n| vocabulary | " + " | ".join(f"{name}, CPU s" for name in found[SIZES[0]]) + " |")
    print("|---|" + "---|" * len(found[SIZES[0]]))
    for vocab, spent in found.items():
        print(f"| {vocab} | " + " | ".join(f"{statistics.median(x):.2f}" for x in spent.values()) + " |")
    for name in found[SIZES[0]]:
        grown = statistics.median(b / a for a, b in zip(found[SIZES[1]][name], found[SIZES[2]][name], strict=True))
        print(
            f"{name}: 32k to 128k costs {grown:.2f} times" + (f" (gate {GATE}, stretch {STRETCH})" * (name == "packed"))
        )
    if args.json:
        args.json.write_text(json.dumps({str(vocab): spent for vocab, spent in found.items()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
