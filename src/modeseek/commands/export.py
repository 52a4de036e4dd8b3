"""A trained model for other tools: `modeseek export RUN_OR_MODEL OUT [--merge]`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from modeseek.commands.models import model_folder


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a model as a folder for others: adapter merged, weights in shards, checked for GGUF, pushed when asked."""

    source: Annotated[
        str, tyro.conf.Positional
    ]  # a run's folder, a folder of save_pretrained or an adapter, a hub name
    out: Annotated[Path, tyro.conf.Positional]  # a folder that is not there yet
    merge: bool = False  # add an adapter to its base; without it an adapter is copied as it is
    shard_size: str = "2GB"  # weights in one file at most, and the memory needed beside the model
    dtype: Literal["", "float32", "bfloat16", "float16"] = ""  # of the weights written; unset: as they are stored
    gguf_check: bool = False  # would llama.cpp's converter take it? exit code 1 where it would not
    push: str = ""  # hub repository OWNER/NAME to upload to; the token is read from HF_TOKEN and kept nowhere
    public: bool = False  # make a new repository public
    trust_remote_code: bool = False  # run code that comes with the model


def main(words: list[str]) -> int:
    """Write a model for others."""
    asked = tyro.cli(Export, args=words, prog="modeseek export")
    if asked.public and not asked.push:
        raise ValueError("public: says how to make a hub repository; add --push OWNER/NAME, or leave it out")
    if asked.push and asked.push.count("/") != 1:
        raise ValueError(f"push: {asked.push!r}, expected OWNER/NAME")
    from modeseek.policies import gguf, hub
    from modeseek.policies.merge import export

    done = export(
        model_folder(asked.source),
        asked.out,
        merge=asked.merge,
        shard_size=asked.shard_size,
        dtype=asked.dtype or None,
        trust_remote_code=asked.trust_remote_code,
    )
    merged = f", the adapter merged into {done.merged_into}" if done.merged_into else ""
    print(f"{done.folder}: {done.shards} file(s) of weights, {done.size / 1e6:.1f} MB, {done.dtype}{merged}")
    for line in _about_the_base(asked):
        print(line, file=sys.stderr)
    findings = gguf.check(done.folder) if asked.gguf_check else []
    for finding in findings:
        print(f"{finding.kind}: {finding.what}")
    stopped = any(finding.kind == "stop" for finding in findings)
    if asked.push and stopped:
        print("not pushed: the check found what would stop the converter", file=sys.stderr)
    elif asked.push:
        print(hub.push(done.folder, asked.push, private=not asked.public))
    return 1 if stopped else 0


def _about_the_base(asked: Export) -> list[str]:
    """What a merge changes, where the run says so."""
    from modeseek import record

    run = Path(asked.source)
    if not asked.merge or not record.is_run(run) or not record.read(run).config.get("load_in_4bit"):
        return []
    return [
        "note: the adapter was trained on a 4-bit base and is merged into the unrounded one: answers differ a little"
    ]
