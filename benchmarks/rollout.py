"""Rollouts: ours against transformers' `generate()` and `generate_batch`, same model and prompts.

    python benchmarks/rollout.py --model S --rounds 3 --json rollout.json

CPU seconds of one thread (the process's, so that a busy machine disturbs them little), sampling at temperature 1. The
ways are timed in turn within each round; a ratio is the median over rounds of the rounds' ratios. A fortieth of the
vocabulary ends a response, so that lengths are geometric as they are for a trained model (mean near 34 of at most 64);
the model `quickstart` never ends. `modules` is the model's own modules with our attention, which all architectures
share; `ours` drives a Llama by hand. `generate_batch` is transformers' continuous batching, its cache as large as these
requests need (left alone it takes most of the free memory); what it cannot do here is told with its error.
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
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM

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
WAYS = ("ours", "modules", "generate", "generate, static", "generate_batch")
PAGE = 64  # tokens of a page of `generate_batch`'s cache

Way = Callable[[int], int]

NEW = {"S": 64, "M": 64, "quickstart": 96}


def make_prompts(name: str, n: int) -> Batch:
    """Those of a model; the quickstart's prompts have nine tokens."""
    return make_prompts_of(n, MODELS[name]["vocab_size"], 9 if name == "quickstart" else None)


def make_prompts_of(n: int, vocab: int, tokens: int | None = None) -> Batch:
    """n prompts of so many tokens; unset: log-normal lengths, median 128 and sigma 0.6."""
    draw = random.Random(0)
    length = lambda: tokens or int(min(max(draw.lognormvariate(math.log(128), 0.6), 8), 448))
    prompts = [[draw.randrange(4, vocab) for _ in range(length())] for _ in range(n)]
    return Batch.of(prompts, [[] for _ in prompts])


def make(name: str) -> tuple[Any, list[int]]:
    """A Llama of random weights, and the tokens that end its responses."""
    torch.manual_seed(0)
    shape, vocab = MODELS[name], MODELS[name]["vocab_size"]
    config = LlamaConfig(**shape, max_position_embeddings=2048, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    eos = [] if name == "quickstart" else sorted(random.Random(5).sample(range(4, vocab), vocab // 40))
    return LlamaForCausalLM(config).eval(), eos


def ways(name: str, prompts: Batch, k: int) -> dict[str, Way]:
    """Each way of `WAYS` with a model made for it."""
    model, eos = make(name)
    return ways_of(model, prompts, k, eos, NEW[name])


def ways_of(model: Any, prompts: Batch, k: int, eos: list[int], new: int) -> dict[str, Way]:
    """Each way to write k responses to each prompt, as a function of a seed that returns the tokens written."""
    ends = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=model.device)
    ends[eos] = True

    def ours(seed: int) -> int:
        rng = torch.Generator().manual_seed(seed)
        batch = sample(model, prompts.prompt, prompts.prompt_mask, k, rng, eos=eos, max_new=new)
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
            max_new_tokens=new,
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
    continuous = lambda seed: continuously(model, prompts, k, eos, new, seed)
    return dict(zip(WAYS, (ours, modules, generate, static, continuous), strict=True))


def continuously(model: Any, prompts: Batch, k: int, eos: list[int], new: int, seed: int) -> int:
    """By `generate_batch`."""
    ids = [p[there].tolist() for p, there in zip(prompts.prompt, prompts.prompt_mask, strict=True)]
    pages = k * sum(-(-(len(x) + new) // PAGE) for x in ids)
    on_gpu = model.device.type == "cuda"
    options: dict[str, Any] = {} if on_gpu else {"use_cuda_graph": False, "use_async_batching": False}
    told = ContinuousBatchingConfig(
        page_size=PAGE, num_blocks=pages + len(ids), max_batch_tokens=2048, seed=seed, **options
    )
    drawn = GenerationConfig(
        max_new_tokens=new,
        do_sample=True,
        top_k=0,
        top_p=1.0,
        temperature=1.0,
        num_return_sequences=k,
        eos_token_id=eos or -1,
        pad_token_id=0,
    )
    attention = model.config._attn_implementation
    try:
        found = model.generate_batch(ids, generation_config=drawn, continuous_batching_config=told)
    finally:
        model.set_attn_implementation(attention)  # it leaves its own behind
    failed = [x.error for x in found.values() if x.error is not None]
    if failed or len(found) != k * len(ids):
        raise RuntimeError(f"{len(found)} of {k * len(ids)} requests came back, {len(failed)} failed: {failed[:1]}")
    return sum(len(x.generated_tokens) for x in found.values())


def measure(name: str, n: int, k: int, rounds: int, only: list[str]) -> dict[str, Any]:
    timed = {way: run for way, run in ways(name, make_prompts(name, n), k).items() if way in only}
    failed: dict[str, str] = {}
    for way, run in list(timed.items()):  # what is made once is made now
        try:
            run(0)
        except Exception as error:  # transformers' own ways may not know this device
            failed[way] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            del timed[way]
    if "ours" in failed:
        raise RuntimeError(failed["ours"])
    seconds: dict[str, list[float]] = {way: [] for way in timed}
    tokens: dict[str, list[int]] = {way: [] for way in timed}
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
        "failed": failed,
    }


def table(rows: list[dict[str, Any]]) -> str:
    found = [way for way in WAYS if way in rows[0]["seconds"] or way in rows[0]["failed"]]
    head = ["model", "prompts", "k", *(f"{w}, s" for w in found), *(f"{w} / ours" for w in found[1:])]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        say = lambda kind, way, form, row=row: form.format(row[kind][way]) if way in row[kind] else "fails"
        cells = [row["model"], str(row["prompts"]), str(row["k"])]
        cells += [say("seconds", w, "{:.3g}") for w in found] + [say("ratio", w, "{:.1f}x") for w in found[1:]]
        lines.append("| " + " | ".join(cells) + " |")
    said = {f"`{way}` fails here: {why}" for row in rows for way, why in row["failed"].items()}
    return "\n".join([*lines, "", *sorted(said)])


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--model", choices=[*MODELS, "all"], default="all")
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--threads", type=int, default=1)
    asked.add_argument("--only", choices=WAYS, action="append", help="beside ours; several: give it several times")
    asked.add_argument("--json", type=Path, default=None)
    given = asked.parse_args()
    torch.set_num_threads(given.threads)
    transformers.logging.set_verbosity_error()
    names = ["quickstart", "S"] if given.model == "all" else [given.model]
    only = ["ours", *(given.only or WAYS)]
    rows = [measure(name, n, k, given.rounds, only) for name in names for n, k in SHAPES[name]]
    print(table(rows))
    if given.json:
        given.json.write_text(json.dumps({"threads": given.threads, "rounds": given.rounds, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
