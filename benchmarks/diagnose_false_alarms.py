"""How often data that the model itself wrote are called off-policy: at most 5 draws of 100 should be.

Each draw samples pairs of responses to the same prompts, writes them as text, reads them again as a file of preferences
would be read, and asks `diagnose`'s first question of fresh samples. The alarm is raised at p < 0.01.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.progress import track

from modeseek.build import load_policy
from modeseek.data.shapes import parse
from modeseek.data.template import Template
from modeseek.data.tokenise import tokenise, tokenise_prompts
from modeseek.diagnostics.look import look
from modeseek.diagnostics.on_policyness import p_value
from modeseek.diagnostics.verdicts import ALARM
from modeseek.policies.hf import HFPolicy

OPENINGS = ("Once upon a time", "One day, a girl", "Tom and his dog", "The big red ball", "There was a little")
NAMES = ("Lily", "Tim", "Sue", "Ben", "Mia", "Max", "Amy", "Sam", "Anna", "Jack")
CONTEXT = 256
PROMPTS = [f"{opening} named {name}" for opening in OPENINGS for name in NAMES]


def main() -> None:
    """Print the share of alarms with its interval."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("model", help="folder of a language model")
    asked.add_argument("--draws", type=int, default=100)
    asked.add_argument("--first", type=int, default=0, help="seed of the first draw")
    asked.add_argument("--tokens", type=int, default=48, help="of a response")
    asked.add_argument("--samples", type=int, default=4)
    found = asked.parse_args()
    started, template = time.monotonic(), Template.load(found.model)
    policy = load_policy(found.model, template, max_new=found.tokens)
    seeds = range(found.first, found.first + found.draws)
    p = [
        one(policy, template, found.tokens, found.samples, seed) for seed in track(seeds, console=Console(stderr=True))
    ]
    alarms = [x < ALARM for x in p]
    low, high = sum(x < 0.05 for x in p), sum(x < 0.5 for x in p)
    print(f"{sum(alarms)} alarms (p < {ALARM}) in {len(p)} draws of {len(PROMPTS)} pairs, {found.samples} samples each")
    print(f"p < .05 in {low}, p < .5 in {high}; {time.monotonic() - started:.0f} s")


def one(policy: HFPolicy, template: Template, tokens: int, samples: int, seed: int) -> float:
    """The p-value of one draw."""
    asked = tokenise_prompts(PROMPTS, template, max_length=CONTEXT, max_completion_length=tokens)
    batch = asked.prompts(slice(0, len(asked)))
    drawn = policy.sample(batch.prompt, batch.prompt_mask, 2, torch.Generator().manual_seed(10_000 + seed))
    rows = []
    for p, prompt in enumerate(PROMPTS):
        ids = [drawn.response[p, k][drawn.mask[p, k]].tolist() for k in (0, 1)]
        a, b = (written(template, asked.prompt[p].tolist(), part) for part in ids)
        rows.append(parse({"prompt": prompt, "chosen": a, "rejected": b}))
    pairs = tokenise(
        rows,
        template,
        max_length=CONTEXT,
        max_completion_length=tokens,
        truncate_responses=True,
        responses="best_worst",
    )
    return p_value(look(policy, pairs, samples=samples, batch_size=len(PROMPTS), seed=seed), seed=seed)


def written(template: Template, prompt: Sequence[int], response: Sequence[int]) -> str:
    """The response as it follows the prompt: alone, its decoder would eat the space that it begins with."""
    return template.decode([*prompt, *response]).removeprefix(template.decode(list(prompt)))


if __name__ == "__main__":
    main()
