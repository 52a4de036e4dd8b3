"""Train a model: `modeseek train CONFIG [--flags]`."""

import os
from typing import Any

_RESUME = ("--resume", "--resume=true")
_DRY = ("--dry-run", "--dry_run")

# What most runs are told, without the seconds that the full list takes to import torch.
HELP = """usage: modeseek train CONFIG [--flags]

CONFIG is a method (`modeseek objectives` lists them), a YAML file of your own, or a recipe such as
full/tldr_pythia_1.4b_dpo. A YAML file's keys are the flags; flags beat the file.

  --model M                  folder that save_pretrained wrote, or hub name
  --data D                   preference file or hub name; --eval_data D for held-out ones
  --output_dir F             where the run goes (runs/latest)
  --reward SPEC              how own samples are scored, as in length:prefer=shorter, model:path=RM, judge:...
  --max_steps N              optimiser steps, or --num_train_epochs N
  --learning_rate X          --prompts_per_round N, --minibatch N, --microbatch N: prompts drawn, stepped on, in memory
  --max_length N             tokens of prompt and response; --max_completion_length N of a response
  --lora.r 16                adapters instead of all weights
  --objective.beta 0.1       an option of the objective; --source.num_generations 4, --stages.kl_shaped.beta 0.05
  --eval_steps N             steps between held-out evaluations, of --eval_prompts N prompts; --save_steps N
  --resume                   go on from the newest checkpoint in output_dir
  --stop-on STATES           end a run that goes wrong: displacement,drift,collapse,over-optimisation
  --dry-run                  two steps of it on a tiny twin: no model, data or device is needed

`modeseek train dpo --help` lists every flag, its default under that method, and what it means."""


def main(words: list[str]) -> int:
    """Train a model: `modeseek train CONFIG [--flags]`; with `--dry-run` two steps of it on a tiny twin."""
    if words and words[0] in ("-h", "--help"):
        print(HELP)
        return 0
    from modeseek import config

    if not words or words[0].startswith("-"):
        raise ValueError(
            f"which config? A YAML file, one of {', '.join(config.names())}, or a recipe: {', '.join(config.recipes())}"
        )
    resume, dry = (any(w in known for w in words) for known in (_RESUME, _DRY))
    run = config.load(words[0], [w for w in words[1:] if w not in (*_RESUME, *_DRY)])
    if dry:
        if resume:
            raise ValueError("resume: a dry run has nothing to go on from; leave --resume or --dry-run out")
        return _rehearse(run)
    from modeseek.runs import train as train_run

    folder = train_run(run, resume=resume)
    if os.environ.get("RANK", "0") == "0":  # torchrun's number of this process: one of them speaks
        print(f"{folder}/model is the model; `modeseek report {folder}` makes its page")
    return 0


def _rehearse(run: Any) -> int:  # a Run, whose import costs seconds
    import tempfile
    from pathlib import Path

    from rich.console import Console

    from modeseek.plan.dry_run import dry_run

    folder = dry_run(run, Path(tempfile.mkdtemp(prefix="modeseek-dry-run-")), Console(stderr=True))
    print(f"dry run done: {folder}/report.html is its page")
    return 0
