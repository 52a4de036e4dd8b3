"""The fables of `data/fables.py` as everything that a run needs: a reference, pairs, prompts and a reward."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from modeseek.batch import PK, Batch
from modeseek.data import fables
from modeseek.data.fables import ANIMALS, MAX_NEW_TOKENS, PLACES, PROMPT, Verdict
from modeseek.data.files import load
from modeseek.data.groups import Groups
from modeseek.data.records import Text
from modeseek.data.shapes import parse
from modeseek.data.template import Template
from modeseek.data.tokenise import tokenise, tokenise_prompts
from modeseek.evaluate import answer
from modeseek.objectives import SFT
from modeseek.policies.hf import HFPolicy, Reference
from modeseek.policies.scratch import as_pretrained, small_llama
from modeseek.rewards.text import Reply, prompt_text, replies
from modeseek.sources import offline
from modeseek.stages import refer
from modeseek.train import Steps, fit

CONTEXT = 128  # a prompt has nine tokens, a fable at most 96
HELD_OUT = 10_000  # added to a seed: the pairs that no arm trains on
SPECIAL = {"pad": fables.PAD, "bos": fables.BOS, "eos": fables.EOS}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How much of everything. The defaults were measured; a test makes them small."""

    steps: int = 150  # optimiser steps of each arm
    pretraining_steps: int = 500  # of the reference, 16 fables each
    pairs: int = 512
    held_out: int = 64  # pairs
    prompts: int = len(ANIMALS) * len(PLACES)  # at each evaluation; there are no more
    samples: int = 4  # to each of them


@dataclass(frozen=True, kw_only=True)
class World:
    """One seed's start: every arm begins at the same weights, with the same pairs."""

    seed: int
    recipe: Recipe
    folder: Path  # `model`, `pairs.jsonl`, `held_out.jsonl`: what `modeseek train` takes
    template: Template
    start: HFPolicy
    reference: Reference
    pairs: Groups
    held_out: Batch  # with `ref_logp`
    prompts: Groups
    answers: tuple[Batch, ...]  # the reference's, to `prompts`

    def policy(self) -> HFPolicy:
        """The starting policy, to be trained."""
        return HFPolicy(copy.deepcopy(self.start.model), eos=self.start.eos, max_new=self.start.max_new)

    def reward(self, batch: Batch) -> PK:
        """What each fable is worth."""
        return reward(self.template)(batch)


def prepare(seed: int, recipe: Recipe, folder: Path, tell: Callable[[int], None]) -> World:
    """Train the reference, write the pairs, let the reference answer. `tell` hears of each optimiser step."""
    template = Template(tokenizer())
    start = pretrained(template, seed, recipe.pretraining_steps, tell)
    start.save(folder / "model", template.tokenizer)
    write_jsonl(folder / "pairs.jsonl", fables.pairs(recipe.pairs, seed))
    write_jsonl(folder / "held_out.jsonl", fables.pairs(recipe.held_out, seed + HELD_OUT))
    reference = start.reference()
    asked = tokenise_prompts(
        prompts(recipe.prompts), template, max_length=CONTEXT, max_completion_length=MAX_NEW_TOKENS
    )
    held_out = pairs(folder / "held_out.jsonl", template)
    return World(
        seed=seed,
        recipe=recipe,
        folder=folder,
        template=template,
        start=start,
        reference=reference,
        pairs=pairs(folder / "pairs.jsonl", template),
        held_out=refer(reference)(held_out.prompts(slice(0, len(held_out)))),
        prompts=asked,
        answers=answer(
            reference,
            asked,
            reward(template),
            samples_per_prompt=recipe.samples,
            batch_size=len(asked),
            seed=2 * seed,  # the policies' own answers take the odd ones
        ),
    )


def tokenizer():
    """The fables' tokenizer as transformers saves it."""
    return as_pretrained(fables.tokenizer(), **SPECIAL, context=CONTEXT)


def pretrained(template: Template, seed: int, steps: int, tell: Callable[[int], None]) -> HFPolicy:
    """A small Llama that tells fables, trained by the same loop as everything else: supervised, one epoch."""
    told = tokenise(
        [parse(row) for row in fables.pretraining(16 * steps, seed)],
        template,
        max_length=CONTEXT,
        max_completion_length=MAX_NEW_TOKENS,
    )
    words = template.tokenizer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = small_llama(
            len(words),
            width=128,
            layers=2,
            heads=4,
            inner=344,
            context=CONTEXT,
            **{name: words.get_vocab()[token] for name, token in SPECIAL.items()},
        )
    policy = HFPolicy(model, eos=(template.eos_id,), max_new=MAX_NEW_TOKENS)
    settings = Steps(max_steps=steps, learning_rate=3e-3, schedule="cosine", warmup_steps=min(20, steps), seed=seed)
    fit(policy, SFT(), offline(told, 16), [], settings, watch=lambda loop, row: tell(loop.step))
    return policy


def pairs(path: Path, template: Template) -> Groups:
    """A file of pairs as a run reads it."""
    return tokenise(
        load(str(path)), template, max_length=CONTEXT, max_completion_length=MAX_NEW_TOKENS, responses="best_worst"
    )


def prompts(n: int) -> list[Text]:
    """The first n of the prompts that there are, animals and places in turn."""
    found = [
        PROMPT.format(animal=a, place=PLACES[(i + j) % len(PLACES)])
        for j in range(len(PLACES))
        for i, a in enumerate(ANIMALS)
    ]
    return list(found[:n])


def worth(prompt: str, response: str, finished: bool) -> float:
    """The true reward, under a name that a config can give: `reward: {type: python, function: ...}`."""
    return fables.judge(prompt, response, finished).reward


def reward(template: Template) -> Callable[[Batch], PK]:
    """The true reward of whole batches."""
    return lambda batch: torch.tensor(
        [[float("nan") if v is None else v.reward for v in group] for group in verdicts(batch, template)]
    )


def verdicts(batch: Batch, template: Template) -> list[list[Verdict | None]]:
    """What `judge` finds in every response; None where a group has none."""
    judged = lambda one: None if one is None else fables.judge(one.prompt, one.response, one.finished)
    return [[judged(one) for one in group] for group in read(batch, template)]


def read(batch: Batch, template: Template) -> Sequence[Sequence[Reply | None]]:
    """Every response as text, special tokens written out: one inside a fable breaks it, and must be seen."""
    return replies(batch, _Written(template), lambda b: [prompt_text(b, p, template) for p in range(len(b))])


def write_jsonl(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """One row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@dataclass(frozen=True)
class _Written:
    """Decodes with special tokens written out, all but the end token that a fable ends with."""

    template: Template

    def decode(self, ids: list[int]) -> str:
        return self.template.show(ids[:-1] if ids and ids[-1] == self.template.eos_id else ids)
