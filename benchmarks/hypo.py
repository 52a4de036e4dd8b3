"""What fresh samples cost: a HyPO step over a DPO step on the same pairs, and learning from 16 samples over one.

    python benchmarks/hypo.py --rounds 3 --json hypo.json

Both run in our own loop with the pairs' reference log-probabilities in the cache; HyPO's step holds the rollout, the
reference on what was sampled, and one forward and backward over pairs and samples together. The second table is the
policy-gradient step alone on k responses to each of 8 prompts: its cost should grow with the tokens that are computed,
not with k. CPU seconds of one thread, the ways timed in turn within each round; a ratio is the median over rounds.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peer_ways import NEW, ends
from step import MODELS, make_groups, make_model

from modeseek.batch import Batch
from modeseek.objectives import DPO, HyPO, PolicyGradient
from modeseek.policies.cache import Cached
from modeseek.policies.hf import HFPolicy
from modeseek.policies.pack import tokens
from modeseek.sources import hybrid, offline
from modeseek.stages import refer
from modeseek.train import Loop, Steps

PROMPTS = 8  # a step
GATES = {
    "HyPO step over DPO step, k = 1": (2.0, 1.75),
    "training k = 16 over k = 1, over the token ratio": (1.35, 1.15),
}


def policy_of(model: str) -> HFPolicy:
    made = make_model(model)
    return HFPolicy(made, eos=ends(made.config.vocab_size), max_new=NEW)


def loops(model: str, pairs: Batch, folder: str) -> dict[str, Loop]:
    """DPO's and HyPO's, each with weights of its own."""
    found = {}
    for name in ("DPO", "HyPO"):
        policy = policy_of(model)
        reference: Any = Cached(policy.reference(), folder)
        reference.logp(pairs)
        objective, source = (
            (DPO(), offline(pairs, PROMPTS)) if name == "DPO" else (HyPO(), hybrid(policy, pairs, PROMPTS, 1))
        )
        found[name] = Loop(policy, objective, source, [refer(reference)], Steps(max_steps=99, learning_rate=1e-4))
    return found


def trained(model: str, k: int) -> tuple[Loop, int]:
    """A loop on the same k responses to each prompt again and again, and the tokens it computes a step."""
    policy = policy_of(model)
    batch = make_groups(PROMPTS, policy.model.config.vocab_size, k, response=32, limit=512)
    noise = torch.randn(*batch.fresh.shape, 1, generator=torch.Generator().manual_seed(0))
    batch = batch.fill(advantage=noise.expand(batch.mask.shape))
    batch = Batch.own(batch.prompt, batch.prompt_mask, batch.response, batch.mask, **batch.columns)
    return Loop(policy, PolicyGradient(), lambda rng: batch, [], Steps(max_steps=99)), int(tokens(batch).sum())


def seconds(loop: Loop) -> float:
    begun = time.process_time()
    loop.advance()
    return time.process_time() - begun


def rounds_of(timed: dict[Any, Loop], rounds: int) -> dict[Any, list[float]]:
    for loop in timed.values():
        loop.advance()  # what is made once is made now
    spent: dict[Any, list[float]] = {name: [] for name in timed}
    for _ in range(rounds):
        for name, loop in timed.items():
            spent[name].append(seconds(loop))
    return spent


def ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--model", choices=MODELS, default="S")
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--json", type=Path, help="write the numbers here as well")
    args = ask.parse_args()
    torch.set_num_threads(1)
    vocab = MODELS[args.model]["vocab_size"]
    with tempfile.TemporaryDirectory() as folder:
        pairs = make_groups(PROMPTS, vocab)
        step = rounds_of(dict(loops(args.model, pairs, folder)), args.rounds)
    made = {k: trained(args.model, k) for k in (1, 2, 4, 8, 16)}
    grown = rounds_of({k: loop for k, (loop, _) in made.items()}, args.rounds)
    told = {k: n for k, (_, n) in made.items()}
    found = {
        "HyPO step over DPO step, k = 1": ratio(step["HyPO"], step["DPO"]),
        "training k = 16 over k = 1, over the token ratio": ratio(grown[16], grown[1]) / (told[16] / told[1]),
    }
    print(
        f"\n{args.model}, {PROMPTS} prompts a step, CPU s: "
        + ", ".join(f"{n} {statistics.median(x):.2f}" for n, x in step.items())
    )
    print("\n| k | tokens | CPU s |\n|---|---|---|")
    for k, x in grown.items():
        print(f"| {k} | {told[k]} | {statistics.median(x):.2f} |")
    print("\n| | measured | gate | stretch |\n|---|---|---|---|")
    for name, x in found.items():
        print(f"| {name} | {x:.2f} | {GATES[name][0]} | {GATES[name][1]} |")
    if args.json:
        every = {"ratios": found, "step": step, "training": {str(k): x for k, x in grown.items()}, "tokens": told}
        args.json.write_text(json.dumps(every, indent=1) + "\n")


if __name__ == "__main__":
    main()
