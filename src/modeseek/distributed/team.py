"""The processes of a run: who they are, what each computes, and how they hear of each other's results.

Every rank holds the same round. Whole prompts are shared out in consecutive portions, results are heard by all in
the order of the prompts, and gradients are summed, because the loop has divided by the whole minibatch already. So
one, two and four processes take the same steps.
"""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from modeseek.batch import Batch
from modeseek.distributed.pulse import Pulse
from modeseek.policies.pack import split

X = TypeVar("X")
Parallel = Literal["auto", "ddp", "fsdp"]


@dataclass
class Team:
    """`Team()` is one process alone: nothing is shared out and nothing is sent.

    `sharded` says that weights live in pieces on all ranks, so that every rank must make every pass over the model.
    """

    rank: int = 0
    size: int = 1
    sharded: bool = False
    group: Any = None  # of gloo, for what is said between processes beside gradients and weights
    writing: Any = None  # another, for checkpoints that are written while training goes on
    pulse: Pulse | None = None

    @staticmethod
    def start(parallel: Parallel, *, cuda: bool, hang_timeout: float) -> "Team":
        """The team that torchrun has started, or one process alone."""
        if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
            if parallel != "auto":
                raise ValueError(
                    f"parallel: {parallel}, but this is one process; write torchrun --nproc-per-node N -m modeseek "
                    "train ..., or leave parallel out"
                )
            return Team()
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # A rank that hangs is found by its pulse; this limit is for what the pulse cannot see.
        limit = datetime.timedelta(minutes=30)
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=limit)
        pulse = None if size == 1 else Pulse(rank, size, hang_timeout)
        group, writing = (dist.new_group(backend="gloo", timeout=limit) for _ in range(2))
        return Team(rank, size, parallel == "fsdp", group, writing, pulse)

    def __enter__(self) -> "Team":
        if self.pulse is not None:
            self.pulse.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if self.group is not None and error is None:
            self.wait("the end")
        if self.pulse is not None:
            if isinstance(error, RuntimeError):  # a collective breaks off where a peer has died: name it first
                self.pulse.suspect()
            self.pulse.stop()
        if self.group is not None and error is None:
            dist.destroy_process_group()

    @property
    def leads(self) -> bool:
        """Whether this rank prints and writes."""
        return self.rank == 0

    def own(self, prompts: int) -> slice:
        """This rank's portion of so many prompts; sizes differ by at most one."""
        return slice(prompts * self.rank // self.size, prompts * (self.rank + 1) // self.size)

    def portions(self, batch: Batch, size: int | None, tokens: int | None = None) -> tuple[list[Batch], int]:
        """This rank's prompts in parts of at most `size`, or of at most `tokens` tokens, and how many parts more
        another rank may have: where weights are sharded, so many passes must be made for the others' sake."""
        parts = cuts(batch.prompts(self.own(len(batch))), size, tokens)
        if not self.sharded:
            return parts, 0
        every = (replace(self, rank=rank).own(len(batch)) for rank in range(self.size))
        return parts, max(len(cuts(batch.prompts(own), size, tokens)) for own in every) - len(parts)

    def hear(self, said: X, what: str = "each other") -> list[X]:
        """What every rank says, by rank. Whoever waits here is one point further than whom it waits for."""
        if self.size == 1:
            return [said]
        self.at(f"hearing of {what}")
        heard: list[Any] = [None] * self.size
        dist.all_gather_object(heard, said, group=self.group)
        return heard

    def first(self, said: Callable[[], X]) -> X:
        """What the leading rank says."""
        return self.hear(said() if self.leads else None)[0]  # type: ignore[return-value]

    def any(self, said: bool) -> bool:
        """Whether any rank says so."""
        return any(self.hear(said))

    def join(self, own: Mapping[str, Tensor], device: torch.device, what: str) -> dict[str, Tensor]:
        """Everyone's tensors, one behind the other along the prompts; a rank without prompts says nothing."""
        if self.size == 1:
            return dict(own)
        heard = [x for x in self.hear({n: x.cpu() for n, x in own.items()}, what) if x]
        return {name: _stacked([x[name] for x in heard]).to(device) for name in heard[0]}

    def agree(self, parameters: Iterable[nn.Parameter]) -> None:
        """Begin with the leading rank's weights."""
        for parameter in parameters:
            dist.broadcast(parameter.data, 0)

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum each gradient over the ranks. Sharded ones are summed while the backward runs."""
        if self.size == 1 or self.sharded:
            return
        self.at("adding gradients up")
        found = list(parameters)
        there = torch.tensor([p.grad is not None for p in found], dtype=torch.int32, device=found[0].device)
        dist.all_reduce(there, dist.ReduceOp.MAX)  # what no rank has a gradient of keeps none
        for p in (p for p, some in zip(found, there.tolist(), strict=True) if some):
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            dist.all_reduce(p.grad)

    def at(self, what: str, step: int | None = None) -> None:
        """Say what this process is about to do: what is told of it should it stop answering."""
        if self.pulse is not None:
            self.pulse.beat(what, step)

    @contextlib.contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Within, this rank may keep the others waiting: it writes, and they do not."""
        if self.pulse is not None:
            self.pulse.say(what, busy=True)
        try:
            yield
        finally:
            if self.pulse is not None:
                self.pulse.say(what, busy=False)

    def wait(self, what: str) -> None:
        """Until every rank is here."""
        if self.size > 1:
            self.at(what)
            dist.barrier(self.group)


ALONE = Team()


def cuts(batch: Batch, size: int | None, tokens: int | None = None) -> list[Batch]:
    """Consecutive parts of whole prompts, as many as are computed at once: none of an empty batch."""
    if not len(batch):
        return []
    return batch.split(size) if tokens is None else split(batch, tokens)


def whole(x: Tensor) -> Tensor:
    """A tensor that lives in pieces, in full; every rank must ask."""
    full: Callable[[], Tensor] | None = getattr(x, "full_tensor", None)
    return x if full is None else full()


def home(x: Tensor) -> torch.device:
    """Where a parameter computes: with `fsdp_offload` its pieces rest elsewhere."""
    mesh: Any = getattr(x, "device_mesh", None)
    return x.device if mesh is None else torch.device(mesh.device_type)


def _stacked(parts: list[Tensor]) -> Tensor:
    """Along prompts. Responses of unequal length are padded as `Batch` pads them: what stands there is not read."""
    if parts[0].ndim == 3:
        T = max(x.shape[2] for x in parts)
        parts = [F.pad(x, (0, T - x.shape[2])) for x in parts]
    return torch.cat(parts)
