"""What an objective is: a pure function from a prompt's group of responses to one number."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor

from modeseek.batch import COLUMNS, P_, PKT, Batch, MaskPKT
from modeseek.ops import seq

LogpReduction = Literal["sum", "mean"]


@dataclass(frozen=True)
class Axes:
    """Where an objective stands. The first two are facts, declared here and checked by the contract tests;
    the third is what 2404.14367 claims of it, and a study measures it."""

    on_policy: bool  # True: the gradient is wrong unless the policy being trained wrote the responses
    negative_gradient: Literal["always", "never", "by_advantage"]  # is some response's likelihood pushed down?
    claimed_kl: Literal["mode-seeking", "mode-covering"]


@dataclass(frozen=True)
class Loss:
    """One number per prompt, in whatever unit the objective has, and what it saw on the way (no gradient)."""

    per_prompt: P_  # the loop averages over prompts, and only the loop
    metrics: dict[str, Tensor] = field(default_factory=dict)  # each [P]


@runtime_checkable
class Objective(Protocol):
    """A frozen dataclass: its fields are its hyper-parameters, its call is its loss.

    The parameters of the call name what it reads: things the model says of a Batch (`logp`, `value`, `score`,
    `entropy`, `kl`), parts of the Batch (`mask`, `fresh`, `present`) and columns. So the signature is the
    declaration of needs, and there is no second one to keep in step; a parameter with a default is read where
    a stage has filled it. A prompt's loss depends on that prompt's group alone, hence micro-batches cut between
    prompts leave the gradient as it was.
    """

    axes: ClassVar[Axes]
    equation: ClassVar[str]
    source: ClassVar[str]

    def __call__(self, *args: Any, **kwargs: Any) -> Loss: ...


def reads(objective: Objective) -> frozenset[str]:
    """The names that an objective cannot do without."""
    return frozenset(n for n, p in _parameters(objective).items() if p.default is p.empty)


def may_read(objective: Objective) -> frozenset[str]:
    """The names that an objective uses where they are there."""
    return frozenset(n for n, p in _parameters(objective).items() if p.default is not p.empty)


def max_age(objective: Objective) -> int | None:
    """How many optimiser steps old a fresh sample may be for this objective; None: any age."""
    return getattr(objective, "max_age", None)


def call(objective: Objective, batch: Batch, live: Mapping[str, Tensor]) -> Loss:
    """The objective's loss on a batch, given what the model says of it."""
    given = {"mask": batch.mask, "fresh": batch.fresh, "present": batch.present, **batch.columns, **live}
    optional = may_read(objective) & given.keys()
    missing = reads(objective) - given.keys()
    if missing:
        name = sorted(missing)[0]
        what = COLUMNS.get(name, "something this model cannot say")
        raise ValueError(f"{type(objective).__name__} reads {name}, {what}; no stage has filled it")
    return objective(**{name: given[name] for name in reads(objective) | optional})


def pair_metrics(logp: PKT, mask: MaskPKT, ref_logp: PKT | None = None, beta: float = 1.0) -> dict[str, Tensor]:
    """What every run on pairs shows, under the names that dashboards already read."""
    total = seq(logp.detach(), mask)  # [P, K]
    metrics = {"logps/chosen": total[:, 0], "logps/rejected": total[:, 1]}
    if ref_logp is not None:
        implied = beta * seq(logp.detach() - ref_logp, mask)
        margin = implied[:, 0] - implied[:, 1]
        metrics |= {
            "rewards/chosen": implied[:, 0],
            "rewards/rejected": implied[:, 1],
            "rewards/margins": margin,
            "rewards/accuracies": (margin > 0).to(margin.dtype),
        }
    return metrics


def _parameters(objective: Objective) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(objective.__call__).parameters)
