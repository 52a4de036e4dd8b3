"""The memory that `modeseek plan` expects of a DPO run on a CPU, beside what a run takes.

    python benchmarks/plan.py --json plan.json

Each run is a process of its own: three optimiser steps of the real loop, a model of random weights, a frozen copy as
the reference (LoRA: its base). Measured is the largest resident set less that before the model was made. Freed blocks
of more than 128 KiB go back to the system at once (two settings of glibc's malloc); left alone it keeps them in
pieces, and the resident set says more of the allocator than of the run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from modeseek.batch import Batch
from modeseek.build import load_policy
from modeseek.config import Run, StageSpec
from modeseek.data.template import Template
from modeseek.objectives import DPO
from modeseek.plan.devices import device
from modeseek.plan.lengths import Length, Lengths
from modeseek.plan.memory import moments
from modeseek.plan.tiny import tokenizer
from modeseek.policies.adapter import Lora
from modeseek.sources import offline
from modeseek.stages import refer
from modeseek.train import Loop, run

LLAMA: dict[str, Any] = dict(model_type="llama", max_position_embeddings=2048, tie_word_embeddings=False)
QWEN: dict[str, Any] = dict(model_type="qwen3", max_position_embeddings=2048, tie_word_embeddings=True)
MODELS: dict[str, dict[str, Any]] = {
    "58M Llama": LLAMA
    | dict(hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8, vocab_size=32000)
    | dict(num_key_value_heads=8),
    "104M Qwen3": QWEN
    | dict(hidden_size=768, intermediate_size=2048, num_hidden_layers=10, num_attention_heads=12, vocab_size=48000)
    | dict(num_key_value_heads=4, head_dim=64),
}
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, checkpointing": {"gradient_checkpointing": True},
    "LoRA": {"lora": Lora()},
}
PROMPT, RESPONSE, ROUND, MICRO = 160, 96, 8, 4  # tokens, tokens, prompts, prompts
HERE = device("cpu")

AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


def config(model: str, way: str, folder: str) -> Run:
    """The run that is planned and made: its weights are random, as `folder` has only a config."""
    made = Run(
        model=folder,
        objective=DPO(),
        stages=(StageSpec(name="refer"),),
        prompts_per_round=ROUND,
        microbatch=MICRO,
        max_steps=3,
        max_length=PROMPT + RESPONSE,
        max_completion_length=RESPONSE,
        eval_prompts=0,
        device="cpu",
    )
    return replace(made, **WAYS[way])


def expected(made: Run) -> float:
    """Bytes beyond what the process has before."""
    prompt, response = Length(mean=PROMPT, most=PROMPT), Length(mean=RESPONSE, most=RESPONSE)
    told = Lengths(prompt=prompt, told=response, sampled=response, rows=None, said="known")
    return max(m.total - m.parts["runtime"] for m in moments(made, HERE, 1, told))


def measured(made: Run, model: str) -> float:
    """Of this process, which has done nothing else."""
    from transformers import AutoConfig, AutoModelForCausalLM

    def made_of(told: dict[str, Any]) -> None:
        kind = AutoConfig.for_model(told["model_type"], **{k: v for k, v in told.items() if k != "model_type"})
        AutoModelForCausalLM.from_config(kind).save_pretrained(made.model)

    few = dict(num_hidden_layers=1, hidden_size=64, intermediate_size=64, vocab_size=32000)
    made_of(MODELS[model] | few)
    _train(made)  # what is loaded at its first use is now there
    made_of(MODELS[model])
    Path("/proc/self/clear_refs").write_text("5")  # the largest resident set is that of now
    before = _resident("VmRSS")
    _train(made)
    return _resident("VmHWM") - before


def _train(made: Run) -> None:
    policy = load_policy(made.model, Template(tokenizer(None)), max_new=RESPONSE, run=made)
    rng = torch.Generator().manual_seed(0)
    ids = lambda n: torch.randint(300, 30000, (n,), generator=rng).tolist()
    data = Batch.of([ids(PROMPT) for _ in range(ROUND)], [[ids(RESPONSE), ids(RESPONSE)] for _ in range(ROUND)])
    loop = Loop(policy, made.objective, offline(data, ROUND), [refer(policy.reference())], made)
    run(loop)


def _resident(name: str) -> float:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return 1024.0 * int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    parser.add_argument("--json", default="")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if asked.only:
            print(measured(config(*asked.only, folder), asked.only[0]))
            return
        rows = []
        print("| model | way | expected MiB | measured MiB | expected / measured |\n|---|---|---|---|---|")
        for model in asked.models:
            (Path(folder) / "config.json").write_text(json.dumps(MODELS[model]))
            for way in asked.ways:
                plan = expected(config(model, way, folder))
                words = [sys.executable, __file__, "--only", model, way]
                real = float(
                    subprocess.run(
                        words, check=True, capture_output=True, text=True, env=os.environ | AT_ONCE
                    ).stdout.split()[-1]
                )
                rows.append({"model": model, "way": way, "expected": plan, "measured": real, "ratio": plan / real})
                print(f"| {model} | {way} | {plan / 2**20:.0f} | {real / 2**20:.0f} | {plan / real:.2f} |", flush=True)
    if asked.json:
        Path(asked.json).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
