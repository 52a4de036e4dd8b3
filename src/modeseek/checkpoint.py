"""A loop on disk: written whole or not at all, found again after a crash, no pickle.

A checkpoint is a folder `step-00000120` with `tensors.safetensors` and `state.json`. It is written under another name,
flushed, and renamed, so that a folder of that name is complete.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modeseek.train import Loop

PREFIX = "step-"


def save(folder: Path, loop: Loop, *, keep: int | None = None, never_delete: Path | None = None) -> Path:
    """Write the loop's state and its trainable weights; keep the `keep` newest, and `never_delete`."""
    final = folder / f"{PREFIX}{loop.step:08d}"
    if final.exists():
        return final
    draft = folder / f"draft-{loop.step:08d}-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    plain = _split({"loop": loop.state(), "weights": dict(loop.trainable)}, "", tensors)
    save_file(tensors, draft / "tensors.safetensors")
    (draft / "state.json").write_text(json.dumps(plain))
    for file in draft.iterdir():
        _flush(file)
    _flush(draft)
    os.rename(draft, final)
    _flush(folder)
    prune(folder, keep, never_delete)
    return final


def prune(folder: Path, keep: int | None, never_delete: Path | None = None) -> None:
    """Remove all but the `keep` newest checkpoints, and what an interrupted save has left."""
    for draft in folder.glob("draft-*"):
        shutil.rmtree(draft, ignore_errors=True)
    for old in listed(folder)[: -keep if keep else 0]:
        if never_delete is None or old.name != never_delete.name:
            shutil.rmtree(old)


def listed(folder: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    return sorted(p for p in folder.glob(f"{PREFIX}*") if p.is_dir())


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint."""
    return (listed(folder) or [None])[-1]


def restore(path: Path, loop: Loop) -> None:
    """Put weights, optimiser, generator, cursor, stages and the round in flight back as they were."""
    tree = _join(json.loads((path / "state.json").read_text()), load_file(path / "tensors.safetensors"))
    load_weights(tree["weights"], loop.trainable)
    loop.restore(tree["loop"])


def load_weights(stored: dict[str, Tensor], trainable: dict[str, Any]) -> None:
    """Copy stored weights into parameters of the same names; other names are an error."""
    differ = sorted(stored.keys() ^ trainable.keys())
    if differ:
        raise ValueError(f"the checkpoint trained other parameters than this run: {', '.join(differ[:3])}")
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(stored[name])


def weights(path: Path) -> dict[str, Tensor]:
    """The trainable weights of a checkpoint, by parameter name."""
    tree = _join(json.loads((path / "state.json").read_text()), load_file(path / "tensors.safetensors"))
    return tree["weights"]


def _split(tree: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Take the tensors out of nested dicts, leaving where they went."""
    if isinstance(tree, Tensor):
        # A clone, because safetensors refuses tensors that share memory.
        tensors[path] = tree.detach().clone().contiguous()
        return {"tensor": path}
    if isinstance(tree, dict):
        return {"dict": {str(key): _split(value, f"{path}/{key}", tensors) for key, value in tree.items()}}
    return {"plain": tree}


def _join(tree: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "dict" in tree:
        return {key: _join(value, tensors) for key, value in tree["dict"].items()}
    return tree["plain"]


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
