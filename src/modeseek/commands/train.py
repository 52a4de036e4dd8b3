"""Train a model: `modeseek train CONFIG [--flags]`."""

import os
from typing import Any

_RESUME = ("--resume", "--resume=true")
_DRY = ("--dry-run", "--dry_run")


def main(words: list[str]) -> int:
    """Train a model: `modeseek train CONFIG [--flags]`; with `--dry-run` two steps of it on a tiny twin."""
    from modeseek import config

    if not words or words[0].startswith("-"):
        if words and words[0] in ("-h", "--help"):
            words = ["dpo", "--help"]
        else:
            raise ValueError(
                f"which config? A YAML file, one of {', '.join(config.names())}, or a recipe: "
                f"{', '.join(config.recipes())}"
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
