"""Another tool's config as ours: `modeseek import-config TOOL FILE`."""

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Print a config of another tool as ours, each line with where it came from.

    What has no equivalent is listed; where that changes results the exit status is 1.
    """

    tool: Annotated[Literal["trl", "llamafactory", "axolotl", "openrlhf"], tyro.conf.Positional]
    file: Annotated[str, tyro.conf.Positional]  # YAML, or the shell script of an OpenRLHF run
    trainer: str = ""  # TRL's: dpo, kto, orpo, cpo, sft, reward, grpo, rloo, online_dpo; unset: from the keys
    devices: int = 1  # how many it ran on, for the batch arithmetic


def main(words: list[str]) -> int:
    """Print it; 1 where something that changes results was lost."""
    asked = tyro.cli(ImportConfig, args=words, prog="modeseek import-config")
    from modeseek.migrate import translate

    found = translate(asked.tool, asked.file, trainer=asked.trainer, devices=asked.devices)
    print(found.render(), end="")
    if found.lost:
        print(f"modeseek import-config: {len(found.lost)} settings that change results were lost", file=sys.stderr)
    return 1 if found.lost else 0
