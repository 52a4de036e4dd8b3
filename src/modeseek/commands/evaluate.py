"""Did it work? `modeseek evaluate POLICY --against REF --prompts P --reward R`."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from modeseek.commands.models import model_folder


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Compare a policy with a reference on the same prompts."""

    policy: Annotated[str, tyro.conf.Positional]  # folder that save_pretrained wrote, a run's folder, or a hub name
    against: str  # the reference, likewise
    prompts: str  # preference or prompt file, or hub name; only its prompts are read
    reward: str  # how to score, as in --reward length:prefer=shorter
    samples: int = 1  # responses to each prompt
    limit: int = 256  # prompts at most, the first of the file; 0: all
    split: str = "train"  # split of a hub data set
    temperature: float = 1.0  # the KL is measured at 1 only
    max_length: int = 1024  # tokens of prompt and response together
    max_completion_length: int = 256  # tokens of a response
    batch_size: int = 32  # prompts at once
    seed: int = 0
    output: str = ""  # write the numbers there as JSON; a run's folder keeps them for its report
    json: bool = False  # print JSON


def main(words: list[str]) -> int:
    """Did it work?"""
    asked = tyro.cli(Evaluate, args=words, prog="modeseek evaluate")
    from modeseek import record
    from modeseek.build import context_of, load_policy, raw_prompts
    from modeseek.config import parse_reward
    from modeseek.data.files import load
    from modeseek.data.tokenise import Groups, Template
    from modeseek.evaluate import evaluate as compare
    from modeseek.rewards import build_reward

    reward = parse_reward(asked.reward)
    ours, theirs = model_folder(asked.policy), model_folder(asked.against)
    template = Template.load(theirs)
    policy = load_policy(ours, template, max_new=asked.max_completion_length)
    reference = load_policy(theirs, template, max_new=asked.max_completion_length)
    records = load(asked.prompts, split=asked.split)
    records = records[: asked.limit or len(records)]
    limit = min(asked.max_length, context_of(policy) or asked.max_length)
    prompts = Groups.from_prompts(
        records, template, max_length=limit, max_completion_length=asked.max_completion_length
    )
    found = compare(
        policy,
        reference,
        prompts,
        build_reward(reward, template, raw_prompts(prompts)),
        samples_per_prompt=asked.samples,
        batch_size=asked.batch_size,
        seed=asked.seed,
        temperature=asked.temperature,
    )
    results = [{"name": e.name, "value": e.value, "low": e.low, "high": e.high, "n": e.n} for e in found.estimates()]
    if record.is_run(Path(asked.policy)):
        record.write_results(asked.policy, results)
    if asked.output:
        record.write_json(Path(asked.output), results)
    if asked.json:
        print(json.dumps(results, indent=2))
        return 0
    table = Table(title=f"{asked.policy} against {asked.against}, {len(prompts)} prompts")
    for name in ("", "value", "95% interval", "n"):
        table.add_column(name, justify="left" if not name else "right")
    for e in found.estimates():
        table.add_row(e.name, f"{e.value:.4g}", f"{e.low:.4g} to {e.high:.4g}", str(e.n))
    Console().print(table)
    if found.kl is None:
        print("the KL is measured at temperature 1 only", file=sys.stderr)
    return 0
