"""A loop on disk: written whole or not at all, found again after a crash, no pickle.

A checkpoint is a folder `step-00000120` with `tensors.safetensors` and `state.json`. Where weights are sharded over
ranks, each writes its pieces into `shards/`, in safetensors too, and any number of ranks reads them. It is written
under another name, flushed, and renamed by the leading rank, so that a folder of that name is complete.
"""

import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modeseek.distributed.shard import is_sharded, like, read_shards, write_shards
from modeseek.train import Loop

PREFIX = "step-"


def save(folder: Path, loop: Loop, *, keep: int | None = None, never_delete: Path | None = None) -> Path:
    """Write the loop's state and its trainable weights; keep the `keep` newest, and `never_delete`."""
    return Saver(folder).save(loop, keep=keep, never_delete=never_delete)


@dataclass
class Saver:
    """Writes checkpoints of a loop, one at a time, on all ranks of its team.

    In the `background` the weights are copied before `save` returns, and written while training goes on; `wait`
    returns when the last one has its name, and raises what went wrong.
    """

    folder: Path
    background: bool = False
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoint"), init=False)
    _pending: Future[None] | None = field(default=None, init=False)

    def save(self, loop: Loop, *, keep: int | None = None, never_delete: Path | None = None) -> Path:
        """Write the loop's state and its trainable weights; keep the `keep` newest, and `never_delete`."""
        self.wait(loop)
        team, final = loop.team, self.folder / f"{PREFIX}{loop.step:08d}"
        team.at("saving a checkpoint", loop.step)
        if team.first(final.exists):
            if team.leads:
                prune(self.folder, keep, never_delete)
            return final
        draft = team.first(lambda: self.folder / f"draft-{loop.step:08d}-{os.getpid()}")
        if team.leads:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
        team.wait("making room for a checkpoint")
        tensors: dict[str, Tensor] = {}
        shards: dict[str, Tensor] = {}
        plain = _split({"loop": loop.state(), "weights": dict(loop.trainable)}, "", tensors, shards)
        written = write_shards(draft / "shards", shards, team) if shards else None

        def finish() -> None:
            if written is not None:
                written.result()
            if team.leads:
                _write(draft, plain, tensors)
                os.rename(draft, final)
                _flush(self.folder)
                prune(self.folder, keep, never_delete)

        if self.background:
            self._pending = self._pool.submit(finish)
        else:
            with team.busy("writing a checkpoint"):
                finish()
            team.wait("a checkpoint is whole")
        return final

    def wait(self, loop: Loop) -> None:
        """Until the last checkpoint has its name."""
        if self._pending is not None:
            with loop.team.busy("writing a checkpoint"):
                self._pending.result()
            self._pending = None
            loop.team.wait("a checkpoint is whole")


def _write(draft: Path, plain: Any, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, draft / "tensors.safetensors")
    (draft / "state.json").write_text(json.dumps(plain))
    for file in sorted(draft.rglob("*"), reverse=True):
        _flush(file)
    _flush(draft)


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
    """Put weights, optimiser, generator, cursor, stages and the round in flight back as they were.

    The number of ranks may be another than that which saved it.
    """
    tree = _read(path, loop.trainable)
    load_weights(tree["weights"], loop.trainable)
    for name, moments in tree["loop"]["optimiser"].items():
        if name in loop.trainable:
            size = loop.trainable[name].shape
            moments |= {k: like(x, loop.trainable[name]) for k, x in moments.items() if getattr(x, "shape", 0) == size}
    loop.restore(tree["loop"])


def load_weights(stored: Mapping[str, Tensor], trainable: Mapping[str, Any]) -> None:
    """Copy stored weights into parameters of the same names; other names are an error."""
    differ = sorted(stored.keys() ^ trainable.keys())
    if differ:
        raise ValueError(f"the checkpoint trained other parameters than this run: {', '.join(differ[:3])}")
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(like(stored[name], parameter))


def weights(path: Path, trainable: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The trainable weights of a checkpoint, by parameter name; of `trainable` that is sharded, only the own pieces."""
    return _read(path, trainable or {})["weights"]


def _read(path: Path, trainable: Mapping[str, Tensor]) -> Any:
    plain, tensors = json.loads((path / "state.json").read_text()), load_file(path / "tensors.safetensors")
    if (path / "shards").exists():
        # /weights/NAME, /loop/optimiser/NAME/MOMENT: read into pieces as the parameters now are
        named = lambda key: trainable.get(key.removeprefix("/weights/").removeprefix("/loop/optimiser/"))
        owner = lambda key: named(key) if key.startswith("/weights/") else named(key.rpartition("/")[0])
        tensors |= read_shards(path / "shards", owner)
    return _join(plain, tensors)


def _split(tree: Any, path: str, tensors: dict[str, Tensor], shards: dict[str, Tensor]) -> Any:
    """Take the tensors out of nested dicts, leaving where they went."""
    if isinstance(tree, Tensor):
        if is_sharded(tree):
            shards[path] = tree.detach()
        else:  # a clone, because safetensors refuses tensors that share memory
            tensors[path] = tree.detach().clone().contiguous()
        return {"tensor": path}
    if isinstance(tree, dict):
        return {"dict": {str(key): _split(value, f"{path}/{key}", tensors, shards) for key, value in tree.items()}}
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
