"""Rollouts: ours against transformers' `generate()` with its dynamic and its static cache, same model and prompts.

    python benchmarks/rollout.py --model S --rounds 3 --json rollout.json

CPU seconds of one thread (the process's, so that a busy machine disturbs them little), sampling at temperature 1. The
ways are timed in turn within each round; a ratio is the median over rounds of the rounds' ratios. A fortieth of the
vocabulary ends a response, so that lengths are geometric as they are for a trained model (mean near 34 of at most 64);
the model `quickstart` never ends. `modules` is the model's own modules with our attention, which all architectures
share; `ours` drives a Llama by hand.
"""

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from modeseek.batch import Batch
from modeseek.policies.decode import lean, sample

MODELS: dict[str, dict[str, Any]] = {
    "S": dict(hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4, vocab_size=8192),
    "M": dict(hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8, vocab_size=32000),
    "quickstart": dict(
        hidden_size=128, intermediate_size=352, num_hidden_layers=2, num_attention_heads=4, vocab_size=100
    ),
}
# (prompts, responses to each)
SHAPES = {
    "S": [(8, 1), (8, 4), (8, 8), (16, 4)],
    "M": [(8, 1), (8, 4), (8, 8)],
    "quickstart": [(16, 1), (8, 2), (16, 2)],
}
NEW = {"S": 64, "M": 64, "quickstart": 96}


def make_prompts(name: str, n: int) -> Batch:
    """Log-normal lengths, median 128 and sigma 0.6; the quickstart's prompts have nine tokens."""
    draw, vocab = random.Random(0), MODELS[name]["vocab_size"]
    length = lambda: 9 if name == "quickstart" else int(min(max(draw.lognormvariate(math.log(128), 0.6), 8), 448))
    prompts = [[draw.randrange(4, vocab) for _ in range(length())] for _ in range(n)]
    return Batch.of(prompts, [[] for _ in prompts])


def ways(name: str, prompts: Batch, k: int) -> dict[str, Callable[[int], int]]:
    """Each way to write k responses to each prompt, as a function of a seed that returns the tokens written."""
    torch.manual_seed(0)
    shape, vocab = MODELS[name], MODELS[name]["vocab_size"]
    model: Any = LlamaForCausalLM(
        LlamaConfig(**shape, max_position_embeddings=2048, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    ).eval()
    eos = [] if name == "quickstart" else sorted(random.Random(5).sample(range(4, vocab), vocab // 40))
    ends = torch.zeros(vocab, dtype=torch.bool)
    ends[eos] = True

    def ours(seed: int) -> int:
        rng = torch.Generator().manual_seed(seed)
        batch = sample(model, prompts.prompt, prompts.prompt_mask, k, rng, eos=eos, max_new=NEW[name])
        return int(batch.mask.sum())

    def modules(seed: int) -> int:
        by_hand, lean.fits = lean.fits, lambda model: False
        try:
            return ours(seed)
        finally:
            lean.fits = by_hand

    def generate(seed: int, **options: Any) -> int:
        torch.manual_seed(seed)
        rows = model.generate(
            prompts.prompt,
            attention_mask=prompts.prompt_mask.long(),
            max_new_tokens=NEW[name],
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            num_return_sequences=k,
            eos_token_id=eos or None,
            pad_token_id=0,
            **options,
        )
        over = ends[rows[:, prompts.prompt.shape[1] :]].int()
        return int((over.cumsum(1) - over == 0).sum())  # up to the first end token

    static = lambda seed: generate(seed, cache_implementation="static")
    return {"ours": ours, "modules": modules, "generate": generate, "generate, static": static}


def measure(name: str, n: int, k: int, rounds: int) -> dict[str, Any]:
    timed = ways(name, make_prompts(name, n), k)
    seconds: dict[str, list[float]] = {way: [] for way in timed}
    tokens: dict[str, list[int]] = {way: [] for way in timed}
    timed["ours"](0)
    for seed in range(rounds):
        for way, run in timed.items():
            begin = time.process_time()
            tokens[way].append(run(seed))
            seconds[way].append(time.process_time() - begin)
    ratio = {w: statistics.median(a / b for a, b in zip(s, seconds["ours"], strict=True)) for w, s in seconds.items()}
    return {
        "model": name,
        "prompts": n,
        "k": k,
        "seconds": {w: statistics.median(s) for w, s in seconds.items()},
        "tokens": {w: statistics.mean(t) for w, t in tokens.items()},
        "ratio": ratio,
    }


def table(rows: list[dict[str, Any]]) -> str:
    found = list(rows[0]["seconds"])
    head = ["model", "prompts", "k", *(f"{w}, s" for w in found), *(f"{w} / ours" for w in found[1:])]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row["model"], str(row["prompts"]), str(row["k"])]
        cells += [f"{row['seconds'][w]:.3g}" for w in found] + [f"{row['ratio'][w]:.1f}x" for w in found[1:]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    asked = argparse.ArgumentParser(description="Rollouts against generate().")
    asked.add_argument("--model", choices=[*MODELS, "all"], default="all")
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--threads", type=int, default=1)
    asked.add_argument("--json", type=Path, default=None)
    given = asked.parse_args()
    torch.set_num_threads(given.threads)
    transformers.logging.set_verbosity_error()
    names = ["quickstart", "S"] if given.model == "all" else [given.model]
    rows = [measure(name, n, k, given.rounds) for name in names for n, k in SHAPES[name]]
    print(table(rows))
    if given.json:
        given.json.write_text(json.dumps({"threads": given.threads, "rounds": given.rounds, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
