"""A rehearsal of a run: every part of the config, two optimiser steps, a tiny model and rows made on the spot.

What cannot be had here (the model, the data, a reward model, a GPU) is replaced, and each replacement is said.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from modeseek.config import Mixture, Run
from modeseek.plan.architectures import architecture
from modeseek.plan.rows import ROWS, write_rows
from modeseek.plan.tiny import save_policy, save_reward_model
from modeseek.policies.adapter import Lora
from modeseek.rewards import AnyReward, Ensemble, Judge, Length, Model

_PROMPTS, _TOKENS, _RESPONSE, _RANK = 4, 320, 24, 4


@dataclass(frozen=True)
class Rehearsal:
    """A run that can be made here, and what in it is not the real thing: `key: was -> is`."""

    run: Run
    replaced: list[str]


def dry_run(run: Run, folder: Path, console: Console) -> Path:
    """Two steps of the run with its evaluation and its page, in `folder`; what was replaced is printed."""
    from modeseek.report import write
    from modeseek.runs import train

    ready = rehearsal(run, folder)
    console.print(f"dry run of {run.output_dir} in {folder}; replaced:", highlight=False)
    for line in ready.replaced:
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    made = train(ready.run, console=console)
    write([str(made)], made / "report.html")
    return made


def rehearsal(run: Run, folder: Path) -> Rehearsal:
    """The run with everything that is not to be had here made small. Writes the tiny models and the rows."""
    arch = architecture(run.model)
    save_policy(arch, folder / "tiny")
    mixture = tuple(replace(m, path=write_rows(m.path, folder), split="train") for m in run.mixture)
    small = replace(
        run,
        model=str(folder / "tiny"),
        data=write_rows(run.data, folder) if run.data else "",
        mixture=mixture,
        split="train",
        eval_data=write_rows(run.eval_data, folder) if run.eval_data else "",
        reward=_reward(run.reward, folder),
        critic=_critic(run, folder),
        lora=run.lora and replace(run.lora, r=min(run.lora.r, _RANK)),
        **_small(run, folder),
    )
    return Rehearsal(small, [f"model: the shape of {arch.name}", *_differences(run, small)])


def _small(run: Run, folder: Path) -> dict[str, Any]:
    """The dials in small: as many minibatches in a round as make two steps."""
    limited = lambda value, most: None if value is None else min(value, most)
    room = dict(
        max_length=min(run.max_length, _TOKENS), max_completion_length=min(run.max_completion_length, _RESPONSE)
    )
    batch = dict(
        prompts_per_round=min(run.prompts_per_round, _PROMPTS),
        minibatch=None if run.minibatch in (None, run.prompts_per_round) else limited(run.minibatch, _PROMPTS // 2),
        microbatch=limited(run.microbatch, _PROMPTS // 2),
        passes=min(run.passes, 2),
        token_budget=limited(run.token_budget, 2 * _TOKENS),
    )
    steps = dict(max_steps=2, num_train_epochs=None, warmup_steps=min(run.warmup_steps, 1), logging_steps=1)
    held = dict(eval_size=ROWS // 6, eval_prompts=min(run.eval_prompts, _PROMPTS), eval_steps=min(run.eval_steps, 2))
    here = dict(device="cpu", parallel="auto", fsdp_offload=False, load_in_4bit=False, optim="adamw")
    record = dict(output_dir=str(folder), save_steps=0, report_to=(), truncate_responses=True)
    return room | batch | steps | held | here | record


def _reward(reward: AnyReward | None, folder: Path) -> AnyReward | None:
    """Rules stay what they are; a model becomes a tiny one, a judge the length."""
    match reward:
        case Model():
            path = folder / "tiny_reward_model"
            save_reward_model(architecture(reward.path), path)
            return replace(reward, path=str(path), device="cpu", max_length=None)
        case Ensemble():
            return replace(reward, members=tuple(_reward(m, folder) for m in reward.members))  # type: ignore[arg-type]
        case Judge():
            return Length()
        case _:
            return reward


def _critic(run: Run, folder: Path) -> str:
    if not run.critic:
        return ""
    path = folder / "tiny_critic"
    save_reward_model(architecture(run.critic), path, seed=2)
    return str(path)


def _differences(real: Run, small: Run) -> list[str]:
    """Every key that is not what the config says."""
    lines = []
    for field in dataclasses.fields(Run):
        was, now = getattr(real, field.name), getattr(small, field.name)
        if was != now:
            lines.append(f"{field.name}: {_shown(was)} -> {_shown(now)}")
    return lines


def _shown(value: Any) -> str:
    match value:
        case tuple() if value and all(isinstance(m, Mixture) for m in value):
            return ", ".join(m.path for m in value)
        case Model():
            return value.path
        case Lora():
            return f"rank {value.r}"
        case None | "":
            return "none"
        case _:
            return str(value)
