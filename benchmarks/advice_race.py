"""The race on a language model: is its winner as good as the best of all candidates when each is trained fully?

A small Llama is taught to tell fables, whose reward is known for every text. `modeseek advise --race` chooses among a
few methods with a few labels; then every candidate is trained to its end and judged by the true reward on all prompts.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from modeseek import config, estimate
from modeseek.advise.candidates import Setup, tree_of, write
from modeseek.advise.methods import ARMS, Arm
from modeseek.build import load_policy
from modeseek.commands.advise import main as advise
from modeseek.data import fables
from modeseek.data.groups import Groups
from modeseek.data.template import Template
from modeseek.data.tokenise import tokenise_prompts
from modeseek.evaluate import answer
from modeseek.quickstart.arms import WORTH
from modeseek.quickstart.world import CONTEXT, Recipe, pretrained, prompts, reward, tokenizer, write_jsonl
from modeseek.runs import train

SAMPLES = 8  # of every candidate to each prompt, at the end


def main() -> None:
    """Print the table."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--folder", type=Path, default=Path("runs/advice-race"), help="what is trained is kept there")
    asked.add_argument("--steps", type=int, default=150, help="of a candidate that is trained fully")
    asked.add_argument("--candidates", type=int, default=4)
    asked.add_argument("--labels", type=int, default=60)
    asked.add_argument("--seed", type=int, default=0)
    found = asked.parse_args()
    started = time.monotonic()
    world = told(found.folder / "world", found.seed)
    tree = raced(world, found.folder / "advice", found)
    took = time.monotonic() - started
    arms = [next(a for a in ARMS if a.name == s["name"]) for s in tree["rungs"][0]["standings"]]
    worth = {arm.name: trained_fully(arm, world, found.folder / "full", found) for arm in arms}
    show(tree, worth, took, time.monotonic() - started)


@dataclass(frozen=True, kw_only=True)
class World:
    """A model that tells fables, pairs that others wrote, and all prompts that there are."""

    folder: Path
    template: Template
    prompts: Groups


def told(folder: Path, seed: int) -> World:
    """Teach the model, or take the one that was taught."""
    template = Template(tokenizer())
    if not (folder / "model").is_dir():
        taught = pretrained(template, seed, Recipe().pretraining_steps, lambda step: None)
        write_jsonl(folder / "pairs.jsonl", fables.pairs(Recipe().pairs, seed))
        taught.save(folder / "model", template.tokenizer)
    asked = prompts(Recipe().prompts)
    limits = {"max_length": CONTEXT, "max_completion_length": fables.MAX_NEW_TOKENS}
    return World(folder=folder, template=template, prompts=tokenise_prompts(asked, template, **limits))


def raced(world: World, folder: Path, found: argparse.Namespace) -> dict[str, Any]:
    """advice.json of `modeseek advise --race`."""
    if not (folder / "advice.json").exists():
        words = [str(world.folder / "model"), str(world.folder / "pairs.jsonl"), "--race", "--lora", "0"]
        words += ["--reward", f"python:function={WORTH}", "--budget", f"labels={found.labels},hours=1"]
        words += ["--candidates", str(found.candidates), "--learning-rate", "3e-4", "--race-steps", "20"]
        words += ["--max-length", str(CONTEXT), "--max-completion-length", str(fables.MAX_NEW_TOKENS)]
        words += ["--steps", str(found.steps), "--seed", str(found.seed), "--device", "cpu"]
        advise([*words, "--output-dir", str(folder)])
    return json.loads((folder / "advice.json").read_text())


def trained_fully(arm: Arm, world: World, folder: Path, found: argparse.Namespace) -> np.ndarray:
    """The true reward of its answers to every prompt, [prompts]; doing nothing is the model as it is."""
    model = world.folder / "model"
    if arm.method is not None:
        setup = Setup(
            model=str(model),
            data=str(world.folder / "pairs.jsonl"),
            reward=f"python:function={WORTH}",
            learning_rate=3e-4,
            max_length=CONTEXT,
            max_completion_length=fables.MAX_NEW_TOKENS,
            lora=0,
            device="cpu",
            seed=found.seed,
        )
        here = folder / arm.name.replace(" ", "-")
        tree = tree_of(arm, setup, steps=found.steps, output_dir=here)
        tree |= {"eval_steps": 0, "eval_prompts": 0, "save_steps": 0}
        if not (here / "model").is_dir():
            train(config.load(str(write(tree, folder / f"{here.name}.yaml"))))
        model = here / "model"
    policy = load_policy(str(model), Template.load(str(model)), max_new=fables.MAX_NEW_TOKENS)
    batches = answer(
        policy,
        world.prompts,
        reward(world.template),
        samples_per_prompt=SAMPLES,
        batch_size=len(world.prompts),
        seed=2 * found.seed + 1,
    )
    return np.concatenate([batch["reward"].numpy().mean(1) for batch in batches])


def show(tree: dict[str, Any], worth: dict[str, np.ndarray], raced: float, took: float) -> None:
    """Each candidate's true reward, and how far the race's winner is from the best of them, paired by prompt."""
    console, winner = Console(width=110), str(tree["best_method"])
    best = max(worth, key=lambda name: worth[name].mean())
    table = Table(title=f"true reward, {len(worth[best])} prompts; the race chose {winner}")
    for column in ("candidate", "trained fully", "the winner's less its"):
        table.add_column(column)
    for name in sorted(worth, key=lambda name: -worth[name].mean()):
        gap = estimate.mean_difference(worth[winner], worth[name])
        table.add_row(name, str(estimate.mean(worth[name])), "" if name == winner else str(gap))
    console.print(table)
    gap = estimate.mean_difference(worth[winner], worth[best])
    word = "within noise of" if winner == best or gap.high >= 0 else "worse than"
    console.print(
        f"the winner is {word} the best ({best}); {tree['judged']} labels; race {raced:.0f} s, all {took:.0f} s"
    )


if __name__ == "__main__":
    main()
