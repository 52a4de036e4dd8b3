"""The detector on a language model: runs made to be well or sick, named from their first third, judged by their ends.

A small Llama is taught to tell fables, whose reward and whose falling apart are known for every text. The truth of a
run is what its end is like (degenerate text, the chosen's log-probability, entropy, the true reward); the detector sees
the first third of the rows that `modeseek train` writes. Its thresholds were tuned on other worlds, not on this.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from modeseek import config
from modeseek.build import load_policy
from modeseek.data import fables
from modeseek.data.template import Template
from modeseek.data.tokenise import tokenise_prompts
from modeseek.diagnostics.detector import name_state
from modeseek.evaluate import answer
from modeseek.quickstart.arms import WORTH
from modeseek.quickstart.world import CONTEXT, Recipe, pretrained, prompts, tokenizer, verdicts, write_jsonl
from modeseek.record import read
from modeseek.runs import train

STEPS = 90
SFT_TOO = {"type": "with_sft", "inner": {"type": "dpo", "beta": 0.1}, "nll": 0.1, "nll_reduction": "sum"}
LONGER = {"reward": {"type": "length"}}
TRUE = {"reward": {"type": "python", "function": WORTH}}

# name: method, what is changed in its config, its pairs
RUNS: Mapping[str, tuple[str, Mapping[str, Any], str]] = {
    "SFT on the chosen": ("pref_ft", {"learning_rate": 3e-4}, "pairs"),
    "DPO, a low rate": ("dpo", {"learning_rate": 3e-5, "objective": {"type": "dpo", "beta": 0.3}}, "pairs"),
    "DPO and SFT": ("dpo", {"learning_rate": 1e-4, "objective": SFT_TOO}, "pairs"),
    "DPO": ("dpo", {"learning_rate": 3e-4}, "pairs"),
    "DPO, a high rate": ("dpo", {"learning_rate": 1e-3}, "pairs"),
    "DPO, acts in another order": ("dpo", {"learning_rate": 3e-4}, "swapped"),
    "RLOO": ("rloo", {"learning_rate": 3e-4, **TRUE}, "pairs"),
    "RLOO, a high rate": ("rloo", {"learning_rate": 3e-3, **TRUE}, "pairs"),
    "RLOO for length": ("rloo", {"learning_rate": 5e-4, **LONGER}, "pairs"),
    "online DPO for length": ("online_dpo", {"learning_rate": 3e-4, **LONGER}, "pairs"),
}


def main() -> None:
    """Print the table."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument(
        "--folder", type=Path, default=Path("runs/diagnose-states"), help="what is trained is kept there"
    )
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--only", default="", help="runs whose name has this in it")
    found = asked.parse_args()
    started, template = time.monotonic(), Template(tokenizer())
    folder = found.folder / f"seed-{found.seed}"
    taught(folder, template, found.seed)
    table = Table(title=f"states of {STEPS} steps, named after {STEPS // 3}")
    for column in ("run", "named", "true by its end", "degenerate", "chosen, nats", "entropy left", "reward lost"):
        table.add_column(column)
    right = 0
    names = [name for name in RUNS if found.only in name]
    for name in names:
        data = read(run(name, folder, found.seed))
        named = name_state([row for row in data.rows if row["step"] <= STEPS // 3]).state
        end = ends(data.rows, data.path, template)
        true = truths(RUNS[name][0], end)
        right += named in true
        shown = [f"{end[key]:.2f}" for key in ("degenerate", "chosen", "entropy", "lost")]
        table.add_row(name, named, ", ".join(true), *shown)
    console = Console(width=120)
    console.print(table)
    console.print(f"{right} of {len(names)} named rightly; {time.monotonic() - started:.0f} s")


def taught(folder: Path, template: Template, seed: int) -> None:
    """The model and two kinds of pairs."""
    if (folder / "model").is_dir():
        return
    pairs = fables.pairs(Recipe().pairs, seed)
    write_jsonl(folder / "pairs.jsonl", pairs)
    write_jsonl(folder / "swapped.jsonl", swapped(pairs, seed))
    policy = pretrained(template, seed, Recipe().pretraining_steps, lambda step: None)
    policy.save(folder / "model", template.tokenizer)


def swapped(pairs: Sequence[Mapping[str, str]], seed: int) -> list[dict[str, str]]:
    """Each chosen fable against itself with its sentences in another order: nearly the same tokens on both sides."""
    rng, rows = random.Random(seed), list[dict[str, str]]()
    for pair in pairs:
        told = pair["chosen"].split(" . ")
        other = [told[0], *rng.sample(told[1:], len(told) - 1)]
        if other != told:
            rejected = " . ".join(part.removesuffix(" .") for part in other) + " ."
            rows.append({"prompt": pair["prompt"], "chosen": pair["chosen"], "rejected": rejected})
    return rows


def run(name: str, folder: Path, seed: int) -> Path:
    """Train it, as `modeseek train` does."""
    method, changes, pairs = RUNS[name]
    here = folder / name.lower().replace(",", "").replace(" ", "-")
    tree = {**config.read_tree(method), **changes}
    tree |= {"model": str(folder / "model"), "data": str(folder / f"{pairs}.jsonl"), "output_dir": str(here)}
    tree |= {"max_steps": STEPS, "max_length": CONTEXT, "max_completion_length": fables.MAX_NEW_TOKENS, "seed": seed}
    tree |= {"eval_steps": 5, "eval_prompts": 32, "eval_size": 48, "save_steps": 0, "device": "cpu"}
    tree |= {"gold_reward": {"type": "python", "function": WORTH}, "schedule": "constant"}
    return here if (here / "model").is_dir() else train(config.from_dict(tree))


@torch.no_grad()
def ends(rows: Sequence[Mapping[str, Any]], folder: Path, template: Template) -> dict[str, float]:
    """What the run came to: share of degenerate fables, nats that the chosen gained, entropy of samples as a share of
    the start's, and how far the true reward is below its best."""
    policy = load_policy(str(folder / "model"), template, max_new=fables.MAX_NEW_TOKENS)
    limits = {"max_length": CONTEXT, "max_completion_length": fables.MAX_NEW_TOKENS}
    asked = tokenise_prompts(prompts(48), template, **limits)
    batches = answer(policy, asked, lambda b: torch.zeros(b.fresh.shape), samples_per_prompt=2, batch_size=48, seed=1)
    judged = [one.degenerate for b in batches for group in verdicts(b, template) for one in group if one is not None]
    held = lambda name: [float(row[name]) for row in rows if name in row]
    late = lambda x: sum(x[-3:]) / 3
    entropy = [s - k for s, k in zip(held("eval/surprise"), held("eval/kl"), strict=True)]
    gold, chosen = held("eval/gold_reward"), held("eval/logps/chosen")
    smooth = [sum(gold[i : i + 3]) / 3 for i in range(len(gold) - 2)]
    return {
        "degenerate": sum(judged) / len(judged),
        "chosen": late(chosen) - chosen[0],
        "entropy": late(entropy) / entropy[0],
        "lost": max(smooth) - smooth[-1],
    }


def truths(method: str, end: Mapping[str, float]) -> tuple[str, ...]:
    """All that is wrong with the run by its end; a run may drift and lose true reward at once. Runs that train on a
    reward may leave the pairs: neither drift nor displacement is wrong with them."""
    on_pairs = method not in ("rloo", "online_dpo")
    signs = {
        "over-optimisation": end["lost"] > 0.5,
        "collapse": end["entropy"] < 0.3,
        "drift": on_pairs and end["degenerate"] > 0.4,
        "displacement": on_pairs and end["chosen"] < -1.0,
    }
    return tuple(state for state, sign in signs.items() if sign) or ("healthy",)


if __name__ == "__main__":
    main()
