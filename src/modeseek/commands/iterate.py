"""Close the loop: `modeseek iterate CONFIG`: rounds of collecting, training and evaluating."""

import sys
from collections.abc import Callable
from pathlib import Path

import tyro

HELD_OUT = 12  # of the fables' prompts


def main(words: list[str]) -> int:
    """Rounds of collecting, training and evaluating."""
    from modeseek.collect import rounds

    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        raise ValueError(f"which config? A YAML file or one of {', '.join(rounds.names())}")
    words = ["quick", "--help"] if words[0] in ("-h", "--help") else words
    tree, flags = rounds.apply_flags(rounds.read_tree(words[0]), words[1:])
    made = rounds.from_dict(tree, words[0])
    asked = tyro.cli(rounds.Rounds, default=made, args=flags, prog="modeseek iterate CONFIG")
    from modeseek.collect.iterate import Waiting, iterate

    if asked.start == "fables":
        asked = fables(asked)
    try:
        page = iterate(asked)
    except Waiting as waiting:
        print(waiting)
        return 0
    model = Path(asked.output_dir) / "model"
    print(f"{model} is the policy that was promoted last" if model.is_dir() else "no round's policy was promoted")
    print(f"the page: {page}")
    return 0


def fables(asked):
    """The rounds with a small model and its prompts, made on the spot where they are not there yet."""
    from dataclasses import replace

    from modeseek.quickstart.world import Recipe

    folder = Path(asked.output_dir) / "start"
    make_start(folder, asked.seed, Recipe().pretraining_steps)
    return replace(
        asked,
        start="",
        model=str(folder / "model"),
        prompts=asked.prompts or str(folder / "prompts.jsonl"),
        evaluate=replace(asked.evaluate, prompts=asked.evaluate.prompts or str(folder / "held_out.jsonl")),
    )


def make_start(folder: Path, seed: int, steps: int) -> None:
    """Train the model that every round goes back to, whole or not at all."""
    import shutil

    from modeseek.data.template import Template
    from modeseek.quickstart import world

    if folder.is_dir():
        return
    draft = folder.with_name("start.draft")
    shutil.rmtree(draft, ignore_errors=True)
    template = Template(world.tokenizer())
    with _bar(steps) as tell:
        policy = world.pretrained(template, seed, steps, tell)
    prompts = [{"prompt": str(prompt)} for prompt in world.prompts(world.Recipe().prompts)]
    world.write_jsonl(draft / "prompts.jsonl", prompts[:-HELD_OUT])
    world.write_jsonl(draft / "held_out.jsonl", prompts[-HELD_OUT:])
    policy.save(draft / "model", template.tokenizer)
    draft.rename(folder)


def _bar(steps: int):
    import contextlib

    from rich.console import Console
    from rich.progress import Progress

    @contextlib.contextmanager
    def made():
        with Progress(console=Console(file=sys.stderr)) as progress:
            task = progress.add_task("a small model to begin with", total=steps)
            tell: Callable[[int], None] = lambda step: progress.update(task, completed=step)
            yield tell

    return made()
