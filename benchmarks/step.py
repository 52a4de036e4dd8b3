"""The DPO training step: packed rows against padded ones, same pairs, same weights, same loss.

    python benchmarks/step.py --model S --pairs 40 --rounds 3 --json step.json

CPU seconds of one thread (the process's, so that a busy machine disturbs them little), a step being forward,
backward, clipping and AdamW. The ways are timed in turn within each round; a ratio is the median over rounds of the
rounds' ratios. The floor is the matrix products that no way can leave out, at the speed measured here.
"""

import argparse
import copy
import json
import math
import random
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from modeseek.batch import Batch
from modeseek.objectives import DPO, Objective, PolicyGradient
from modeseek.policies.causal import plain_logp
from modeseek.policies.packed import Packed
from modeseek.train import evaluate

MODELS: dict[str, dict[str, Any]] = {
    "S": dict(hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4, vocab_size=8192),
    "M": dict(hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8, vocab_size=32000),
}
BATCH = {"S": 8, "M": 4}  # pairs a step


def make_model(name: str, vocab: int | None = None) -> LlamaForCausalLM:
    """Llama of random weights; input and output embeddings apart."""
    torch.manual_seed(0)
    shape: dict[str, Any] = MODELS[name] | ({"vocab_size": vocab} if vocab else {})
    return LlamaForCausalLM(
        LlamaConfig(**shape, max_position_embeddings=2048, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    ).eval()


def make_groups(n: int, vocab: int, k: int = 2, *, prompt: int = 128, response: int = 64, limit: int = 512) -> Batch:
    """Log-normal lengths: prompts of that median and sigma 0.6, responses of that median and sigma 0.9."""
    draw, prompts, responses = random.Random(0), [], []
    ids = lambda length: [draw.randrange(4, vocab) for _ in range(length)]
    for _ in range(n):
        p = int(min(max(draw.lognormvariate(math.log(prompt), 0.6), 8), limit - 64))
        ends = [int(min(max(draw.lognormvariate(math.log(response), 0.9), 2), limit - p - 1)) for _ in range(k)]
        prompts.append(ids(p))
        responses.append([[*ids(c), 2] for c in ends])
    return Batch.of(prompts, responses)


class Plain(nn.Module):
    """Padded rows through transformers' own forward, logits only where responses are: a competent plain step."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, mask: Tensor, start: int) -> Tensor:
        places = (mask.long().cumsum(1) - 1).clamp(min=0)
        keep = tokens.shape[1] - start
        said = self.model(
            input_ids=tokens, attention_mask=mask.long(), position_ids=places, logits_to_keep=keep, use_cache=False
        )
        return said.logits

    def logp(self, batch: Batch) -> Tensor:
        return plain_logp(self.forward, batch)


class Fast(nn.Module):
    """Packed rows."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, packed = model, Packed(model)
        self.logp, self.evaluate = packed.logp, packed.evaluate


class Ways:
    """The same training in each way, each with its own copy of the weights and its own optimiser."""

    def __init__(self, model: nn.Module, ways: dict[str, tuple[Callable[[nn.Module], nn.Module], bool]]):
        self.models = {name: make(copy.deepcopy(model)) for name, (make, _) in ways.items()}
        self.bf16 = {name: bf16 for name, (_, bf16) in ways.items()}
        adam = lambda m: torch.optim.AdamW(m.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
        self.optimisers = {name: adam(m) for name, m in self.models.items()}

    def step(self, name: str, objective: Objective, batch: Batch) -> tuple[float, float]:
        """CPU seconds, and the loss before the step."""
        model, optimiser = self.models[name], self.optimisers[name]
        start = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16[name]):
            loss = evaluate(objective, model, batch)
        number = (loss.per_prompt * batch.weight).sum() / len(batch)
        number.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        return time.process_time() - start, float(number.detach())


def flops(model: Any, batch: Batch) -> float:
    """Of the products that remain when each prompt is computed once and nothing is padded."""
    c = model.config
    heads = c.num_attention_heads * getattr(c, "head_dim", c.hidden_size // c.num_attention_heads)
    layers, head = c.num_hidden_layers, model.get_output_embeddings().weight.numel()
    weights = sum(m.weight.numel() for m in model.base_model.layers.modules() if isinstance(m, nn.Linear))
    prompts, responses = batch.prompt_mask.sum(1), batch.mask.sum(2)
    shared, said = int(prompts.sum() + responses.sum()), int(responses.sum())
    looked = (prompts * (prompts + 1) / 2).sum() + (
        prompts[:, None] * responses + responses * (responses + 1) / 2
    ).sum()
    return 6 * weights * shared + 6 * head * said + 3.5 * 4 * heads * layers * float(looked)


def speed(width: int, inner: int) -> float:
    """Floating-point operations a second of this thread, on products of the model's shape."""
    a, b, best = torch.randn(1024, width), torch.randn(width, inner), math.inf
    for _ in range(10):
        start = time.process_time()
        for _ in range(5):
            torch.mm(a, b)
        best = min(best, time.process_time() - start)
    return 5 * 2 * 1024 * width * inner / best


def measure(
    model: LlamaForCausalLM, batches: list[Batch], objective: Objective, ways: Ways, rounds: int
) -> dict[str, dict[str, float]]:
    """CPU seconds for all batches in each way: the median over rounds, and the ratio to the first way."""
    times = {name: [0.0] * rounds for name in ways.models}
    losses: dict[str, list[float]] = {name: [] for name in ways.models}
    for name in ways.models:
        ways.step(name, objective, batches[0].prompts(slice(0, 1)))  # whatever is made once is made now
    for turn in range(rounds):
        for batch in batches:
            for name in ways.models:
                seconds, loss = ways.step(name, objective, batch)
                times[name][turn] += seconds
                losses[name] += [loss] if turn == 0 else []
    first = next(iter(times))
    floor = sum(flops(model, b) for b in batches) / speed(model.config.hidden_size, model.config.intermediate_size)
    table = {}
    for name, spent in times.items():
        apart = [abs(a - b) / abs(b) for a, b in zip(losses[name], losses[first], strict=True)]
        table[name] = {
            "seconds": statistics.median(spent),
            "times_faster": statistics.median(a / b for a, b in zip(times[first], spent, strict=True)),
            "over_floor": statistics.median(spent) / floor,
            "loss_apart": max(apart),
        }
    return table


def report(title: str, table: dict[str, dict[str, float]]) -> str:
    """The table in Markdown."""
    rows = [f"\n### {title}\n", "| way | CPU s | times faster | over the floor | loss apart |", "|---|---|---|---|---|"]
    for name, x in table.items():
        numbers = f"{x['seconds']:.2f} | {x['times_faster']:.2f} | {x['over_floor']:.2f} | {x['loss_apart']:.1e}"
        rows.append(f"| {name} | {numbers} |")
    return "\n".join(rows)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--model", choices=MODELS, default="S")
    ask.add_argument("--pairs", type=int, default=40)
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--vocab", type=int, help="another vocabulary than the model's")
    ask.add_argument("--prompt", type=int, default=128, help="median length of prompts")
    ask.add_argument("--samples", type=int, default=2, help="responses to each prompt; other than 2: policy gradient")
    ask.add_argument("--bf16", action="store_true", help="time autocast too")
    ask.add_argument("--only", choices=("padded", "packed"), help="one way, for its peak memory")
    ask.add_argument("--json", type=Path, help="write the numbers here as well")
    args = ask.parse_args()
    torch.set_num_threads(1)

    model = make_model(args.model, args.vocab)
    batch = make_groups(args.pairs, model.config.vocab_size, args.samples, prompt=args.prompt)
    if args.samples == 2:
        objective: Objective = DPO()
        with torch.no_grad():
            parts = [p.fill(ref_logp=Packed(model).logp(p) + 0.1) for p in batch.split(BATCH[args.model])]
    else:
        objective = PolicyGradient()
        noise = torch.randn(*batch.fresh.shape, 1, generator=torch.Generator().manual_seed(0))
        parts = batch.fill(advantage=noise.expand(batch.mask.shape)).split(BATCH[args.model])
    parts = [p.trim() for p in parts]
    ways = {"padded, fp32": (Plain, False), "packed, fp32": (Fast, False)}
    if args.bf16:
        ways |= {"padded, bf16": (Plain, True), "packed, bf16": (Fast, True)}
    if args.only:
        ways = {name: way for name, way in ways.items() if name.startswith(args.only)}
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    before = peak()
    table = measure(model, parts, objective, Ways(model, ways), args.rounds)
    padded = sum(p.mask.shape[0] * p.mask.shape[1] * (p.prompt.shape[1] + p.mask.shape[2]) for p in parts)
    counts = {
        "padded": padded,
        "packed": int(batch.prompt_mask.sum() + batch.mask.sum()),
        "said": int(batch.mask.sum()),
    }
    title = f"{args.model}, {args.pairs} prompts x {args.samples}: " + ", ".join(f"{v} {k}" for k, v in counts.items())
    print(report(title + " tokens", table))
    print(f"\nPeak memory {peak() - before:.0f} MiB above the level before training (all the ways of this run).")
    if args.json:
        args.json.write_text(json.dumps({"title": title, "peak_mib": peak() - before, "ways": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
