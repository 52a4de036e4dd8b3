"""On one GPU, within eight minutes: is it right there, and how fast is it? Goals stand beside the figures.

    python benchmarks/gpu.py --write-plan plan.json           # on any machine that has all of modeseek's packages
    PYTHONPATH=src python benchmarks/gpu.py --plan plan.json --markdown gpu.md --json gpu.json     # on the GPU
    python benchmarks/gpu.py --tiny                            # the same code on a CPU, in seconds

Nobody has run this on a GPU yet: whatever it prints there is unverified until its figures stand in docs/performance.md.

Made for an H200 with torch 2.11 and transformers 5.17, and without trl, datasets, tyro, cattrs, vLLM and flash-attn:
it imports only parts of modeseek that need none of them, so what `plan` expects is written beforehand (or asked here,
where all packages are). Models are made from configs (Qwen2 of 0.5B and 1.5B, 152k words, random weights); TRL is the
step of `trl_step.py`. Values, gradients and greedy rollouts are compared first, in float32; where they differ nothing
is timed. What would begin after seven minutes is left out and named.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import gpu_plan
import torch
from gpu_bench import Bench, markdown
from rollout import make_prompts_of, ways_of
from step import Fast, Plain, flops, make_groups
from torch import Tensor, nn
from transformers import logging
from trl_step import Rebuilt

from modeseek.batch import Batch
from modeseek.objectives import DPO, HyPO, Objective
from modeseek.plan.devices import GIB, device
from modeseek.policies.adapter import Lora, adapted
from modeseek.policies.decode import sample
from modeseek.policies.head import Head
from modeseek.policies.hf import HFPolicy
from modeseek.policies.pack import split
from modeseek.policies.pack import tokens as packed_tokens
from modeseek.policies.packed import why_not
from modeseek.sources import hybrid, offline
from modeseek.stages import refer
from modeseek.train import Loop, Steps, evaluate

MINUTES = 7.0  # after which no part begins
SAME = 1e-5  # relative, float32: what equal paths are; ten times as much and nothing is timed


def pairs_of(bench: Bench, model: Any) -> list[Batch]:
    """Log-normal lengths as in step.py, in parts of about as many packed tokens as fill the device, with what a
    reference is said to have said of them."""
    batch = make_groups(bench.scale.pairs, model.config.vocab_size)
    batch = batch.fill(ref_logp=torch.full(batch.response.shape, -math.log(model.config.vocab_size)))
    return [part.trim() for part in split(batch.to(bench.where), bench.scale.packed)]


# the parts


def equality(bench: Bench) -> bool:
    """Whether packed rows, TRL rebuilt and rollouts agree with plain padded transformers, in float32."""
    model = bench.model("equality")
    why = why_not(model, unverified=True)
    if why is not None:
        bench.tell("equality", "packed rows are possible", None, note=why)
        return False
    batch = make_groups(6, model.config.vocab_size, prompt=40).to(bench.where)
    batch = batch.fill(ref_logp=torch.full_like(batch.mask, -5.0, dtype=torch.float32))
    ways = {"plain": Plain(model), "packed": Fast(model)}
    rebuilt = Rebuilt(model, bf16=False, checkpointing=False, given=True, compact=bench.where.type == "cuda")
    found = {name: slope(model, partial(mean_loss, way, batch)) for name, way in ways.items()}
    found["TRL rebuilt"] = slope(model, lambda: rebuilt.loss(batch))
    model.eval()
    (loss, grad), good = found.pop("plain"), True
    for name, (value, own) in found.items():
        apart = [abs(value - loss) / abs(loss), float((own - grad).norm() / grad.norm())]
        for what, x in zip(("loss", "gradient"), apart, strict=True):
            bench.tell("equality", f"{name}: {what}, relative difference", x, SAME, at_most=True)
        good &= max(apart) <= 10 * SAME
    prompts = make_prompts_of(4, model.config.vocab_size).to(bench.where)
    new, rng = bench.scale.new // 2, torch.Generator().manual_seed(0)
    with torch.no_grad():
        ours = sample(model, prompts.prompt, prompts.prompt_mask, 1, rng, eos=(), max_new=new, temperature=0.0)
        theirs = model.generate(
            prompts.prompt,
            attention_mask=prompts.prompt_mask.long(),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[:, prompts.prompt.shape[1] :]
    same = float((ours.response[:, 0] == theirs).float().mean())
    bench.tell("equality", "greedy rollouts: share of generate()'s tokens", same, 1.0)
    return good and same > 0.95


def mean_loss(way: nn.Module, batch: Batch) -> Tensor:
    return evaluate(DPO(), way, batch).per_prompt.mean()


def slope(model: nn.Module, run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """A loss and its gradient by all weights."""
    model.zero_grad()
    loss = run()
    loss.backward()
    return float(loss.detach()), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def steps(bench: Bench, name: str) -> None:
    """The DPO step (forward, backward, clipping, AdamW), bf16 autocast: ours over TRL's, and the share of the peak."""
    model = bench.model(name)
    parts = pairs_of(bench, model)
    few = [x for part in parts for x in part.split(bench.scale.rows)]  # TRL's: as many padded tokens at once
    told = {"bf16": True, "compact": True}
    spent = {}

    def ours() -> None:
        way = Fast(model)
        with torch.autocast(bench.where.type, torch.bfloat16):
            losses = lambda part: evaluate(DPO(), way, part).per_prompt.mean()
            learn(model, adam, parts, losses)

    for way, more in {
        "ours": None,
        "TRL's best": {"checkpointing": False, "given": True},
        "TRL's default": {"checkpointing": True, "given": False},
    }.items():
        adam = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0, fused=True)
        if more is None:
            run = ours
        else:
            theirs = Rebuilt(model, **told, **more)
            run = partial(learn, model, adam, few, theirs.loss)
        spent[way] = bench.seconds(run, bench.scale.times)
        bench.tell("step", f"{name}: {way}, s", spent[way])
        del adam
    goals = {"TRL's default": 3.5, "TRL's best": 2.2}
    for way, goal in goals.items():
        bench.tell("step", f"{name}: over {way}, times", spent[way] / spent["ours"], goal)
    work = sum(flops(model, part) for part in parts)
    most = max(int(packed_tokens(part).sum()) for part in parts)
    share = work / spent["ours"] / device("this").bf16
    goal = {"1.5B": 0.4, "0.5B": 0.3}.get(name)
    bench.tell("step", f"{name}: MFU, shared tokens only", share, goal, note=f"rows of up to {most} tokens")


def learn(model: nn.Module, adam: torch.optim.Optimizer, parts: list[Batch], loss: Callable[[Batch], Tensor]) -> None:
    every = sum(len(part) for part in parts)
    for part in parts:
        (loss(part) * (len(part) / every)).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    adam.step()
    adam.zero_grad()


def head(bench: Bench) -> None:
    """The output layer alone, forward and backward with the loss applied while a tile is live, in bf16."""
    vocab, width, n = bench.scale.head
    with bench.where:
        layer = nn.Linear(width, vocab, bias=False, dtype=torch.bfloat16)
        h = torch.randn(n, width, dtype=torch.bfloat16, requires_grad=True)
        target, each = torch.randint(vocab, (n,)), n // 16
        weight = torch.ones(16)
    ours = Head(layer, tile=max(512, int(1.5 * GIB / (4 * vocab))))

    def applied(first: int, stop: int, said: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return -said["logp"].view(stop - first, each).sum(1), {"logp": -torch.ones_like(said["logp"])}

    def run() -> None:
        h.grad = layer.weight.grad = None
        ours.apply(h, target, (each,) * 16, weight, ("logp",), None, applied).sum().backward()

    def bare() -> None:
        with torch.no_grad():
            z = torch.mm(h, layer.weight.t())
            torch.mm(z, layer.weight)
            torch.mm(z.t(), h)

    spent, least = bench.seconds(run), bench.seconds(bare)
    what = f"V {vocab}, H {width}, {n} tokens"
    bench.tell("head", f"{what}: over three bare products, times", spent / least, 1.4, at_most=True)
    h.grad = layer.weight.grad = None
    most = bench.peak(run)
    note = "no account on a CPU" if most is None else ""
    bench.tell("head", f"{what}: peak above input and weight, GiB", most and most / GIB, 6.0, at_most=True, note=note)


def rollouts(bench: Bench, name: str) -> None:
    """64 rows in bf16 that do not end, over transformers' ways; and a decode step's share of the memory bandwidth."""
    model = bench.model(name, torch.bfloat16)
    prompts, k, new = bench.scale.rollout
    batch = make_prompts_of(prompts, model.config.vocab_size).to(bench.where)
    ways = ways_of(model, batch, k, [], new)
    spent: dict[str, float] = {}
    for way in ("ours", "generate", "generate, static", "generate_batch"):
        try:
            spent[way] = bench.seconds(partial(ways[way], 0), 2, 1)
        except Exception as error:  # transformers' own ways may not run here
            if way == "ours":
                raise
            bench.tell("rollout", f"{name}: over {way}", None, note=f"{type(error).__name__}: {str(error)[:200]}")
            continue
        bench.tell("rollout", f"{name}: {way}, s", spent[way])
    for way in list(spent)[1:]:
        bench.tell("rollout", f"{name}: over {way}, times", spent[way] / spent["ours"], 5.0)
    half = ways_of(model, batch, k, [], new // 2)["ours"]
    each = (spent["ours"] - bench.seconds(partial(half, 0), 2, 1)) / (new - new // 2)
    c = model.config
    token = 2 * 2 * c.num_hidden_layers * c.num_key_value_heads * c.hidden_size // c.num_attention_heads
    weights = 2 * sum(p.numel() for p in model.parameters())  # tied: the output layer is the embedding
    cache = token * (int(batch.prompt_mask.sum()) + prompts * k * 0.75 * new)
    share = (weights + cache) / each / device("this").bandwidth
    bench.tell(
        "rollout",
        f"{name}: share of the bandwidth, {prompts * k} rows",
        share,
        0.6,
        note=f"{each * 1e3:.2f} ms a decode step",
    )


def runs(bench: Bench, name: str, expected: dict[str, float]) -> None:
    """HyPO and DPO in the real loop, full and LoRA: seconds a step, and the memory's peak over what `plan` says."""
    for method in gpu_plan.METHODS:
        for way in gpu_plan.WAYS:
            made = bench.peak(partial(_trained, bench, name, method, way))
            plan = expected.get(gpu_plan.key(name, method, way))
            told = {"at_most": True, "goal": 0.15}
            if made is None or plan is None:
                note = "no account on a CPU" if made is None else "no --plan file, and plan cannot be asked here"
                bench.tell("run", f"{name}, {method}, {way}: memory over plan", None, note=note)
                continue
            note = f"{made / GIB:.1f} GiB of {plan / GIB:.1f} expected"
            bench.tell("run", f"{name}, {method}, {way}: |memory / plan - 1|", abs(made / plan - 1), **told, note=note)


def _trained(bench: Bench, name: str, method: str, way: str) -> None:
    scale, model = bench.scale, bench.model(name)
    if way == "LoRA":
        model = adapted(model, Lora())
    policy = HFPolicy(model, eos=(2,), max_new=scale.response, unverified=True)
    ids = lambda n: torch.randint(4, scale.models[name]["vocab_size"], (n,)).tolist()
    lengths = [scale.response, scale.response]
    data = Batch.of([ids(scale.prompt) for _ in range(64)], [[ids(n) for n in lengths] for _ in range(64)])
    objective: Objective = DPO() if method == "DPO" else HyPO()
    source = offline(data, scale.round) if method == "DPO" else hybrid(policy, data, scale.round, 1)
    (source if method == "DPO" else source.pairs).device = bench.where  # type: ignore[union-attr]
    steps = Steps(max_steps=scale.steps, microbatch=scale.micro, bf16=True, learning_rate=1e-6)
    adam = partial(torch.optim.AdamW, fused=True)
    loop = Loop(policy, objective, source, [refer(policy.reference())], steps, (), adam)
    spent, loss = [], math.nan
    for _ in range(scale.steps):
        bench.wait()
        begun = time.perf_counter()
        loss = loop.advance()["loss"]  # NotFinite ends it
        spent.append(time.perf_counter() - begun)
    note = f"{scale.steps} steps, last loss {loss:.4f}; {policy.paths['logp']}"
    bench.tell("run", f"{name}, {method}, {way}: s a step", statistics.median(spent), note=note)


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--tiny", action="store_true", help="tiny sizes, on a CPU")
    ask.add_argument("--plan", type=Path, help="what --write-plan wrote")
    ask.add_argument("--write-plan", type=Path, help="ask `plan` for the peaks of the runs, write them here and stop")
    ask.add_argument("--markdown", type=Path, help="write the table here")
    ask.add_argument("--json", type=Path, help="write the figures here")
    args = ask.parse_args()
    scale = gpu_plan.TINY if args.tiny else gpu_plan.FULL
    if args.write_plan:
        args.write_plan.write_text(json.dumps(gpu_plan.expected(scale), indent=1) + "\n")
        return 0
    if not args.tiny and not torch.cuda.is_available():
        print("no CUDA device: --tiny runs the same code on a CPU", file=sys.stderr)
        return 2
    logging.set_verbosity_error()
    bench = Bench(scale, torch.device("cpu" if args.tiny else "cuda"))
    expected = json.loads(args.plan.read_text()) if args.plan else gpu_plan.expected_here(scale)
    begun, large, small = time.perf_counter(), *gpu_plan.NAMES
    parts: dict[str, Callable[[], Any]] = {
        "step, small": partial(steps, bench, small),
        "step, large": partial(steps, bench, large),
        "head": partial(head, bench),
        "rollout": partial(rollouts, bench, small),
        "run": partial(runs, bench, large, expected),
    }
    good = equality(bench)
    for name, part in parts.items() if good else ():
        if time.perf_counter() - begun > 60 * MINUTES:
            bench.tell(name, "left out", None, note=f"{MINUTES:g} minutes were over")
            continue
        part()
        if bench.where.type == "cuda":
            torch.cuda.empty_cache()
    name = "a CPU, tiny sizes" if args.tiny else torch.cuda.get_device_name()
    about = f"{name}, torch {torch.__version__}, {time.perf_counter() - begun:.0f} s in all."
    text = markdown(bench, about)
    if args.markdown:
        args.markdown.write_text(text)
    if args.json:
        found = {"about": about, "rows": [asdict(row) | {"met": row.met} for row in bench.rows]}
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    print(about if good else f"{about} Paths differ: nothing was timed.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
