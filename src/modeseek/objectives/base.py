"""What an objective is: a pure function from a prompt's group of responses to one number."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

from torch import Tensor

from modeseek.batch import COLUMNS, P_, PK, PKT, Batch, MaskPK, MaskPKT, NotFilled
from modeseek.ops import in_order, present_mean, seq, seq_mean

LogpReduction = Literal["sum", "mean"]
TokenReduction = Literal["sum", "mean", "group_mean", "minibatch_mean"]


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

    Two refinements. An optional parameter that the present options leave alone stands in the property `unread`, so
    that nobody computes it. An objective around another one calls it `inner` and takes what that one reads as `**rest`.
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
    optional = frozenset(n for n, p in _parameters(objective).items() if p.default is not p.empty)
    return optional - getattr(objective, "unread", frozenset())


def max_age(objective: Objective) -> int | None:
    """How many optimiser steps old a fresh sample may be for this objective; None: any age."""
    return getattr(objective, "max_age", None)


def call(objective: Objective, batch: Batch, live: Mapping[str, Tensor]) -> Loss:
    """The objective's loss on a batch, given what the model says of it."""
    given = {"mask": batch.mask, "fresh": batch.fresh, "present": batch.present, **batch.columns, **live}
    optional = may_read(objective) & given.keys()
    missing = reads(objective) - given.keys()
    if missing:
        name, reader = sorted(missing)[0], type(objective).__name__
        if name in COLUMNS:
            raise NotFilled(name, reader)
        raise ValueError(f"{reader} reads {name}, which this model does not say")
    return objective(**{name: given[name] for name in reads(objective) | optional})


def apply(inner: Objective, given: Mapping[str, Tensor]) -> Loss:
    """An inner objective's loss, given at least what it reads."""
    return inner(**{name: x for name, x in given.items() if name in _parameters(inner)})


def one_of(name: str, value: str, choices: Mapping[str, Any]) -> Any:
    """What an option's value stands for. A config is checked before; a call from Python is checked here."""
    if value not in choices:
        raise ValueError(f"{name}: {value!r}, expected one of {', '.join(choices)}")
    return choices[value]


def over_tokens(how: LogpReduction, name: str = "logp_reduction") -> Callable[[PKT, MaskPKT], PK]:
    """What makes one number of a response's tokens."""
    return one_of(name, how, {"sum": seq, "mean": seq_mean})


def reduce_tokens(cost: PKT, mask: MaskPKT, present: MaskPK, how: TokenReduction, token_share: P_ | None = None) -> P_:
    """A prompt's loss from a cost per token. The choice says whether a token of a long response counts less.

    `sum`: the mean over responses of the sum over tokens, the gradient of the expected reward (Dr. GRPO, up to its
    constant divisor). `mean`: of the mean over tokens (GRPO). `group_mean`: over all tokens of the group alike (DAPO's
    and CISPO's equations). `minibatch_mean`: over all tokens of the minibatch alike (DAPO's and CISPO's code).
    """
    if how == "sum":
        return present_mean(seq(cost, mask), present)
    if how == "mean":
        return present_mean(seq_mean(cost, mask), present)
    one_of("logp_reduction", how, dict.fromkeys(get_args(TokenReduction)))
    total = seq(cost, mask).masked_fill(~present, 0.0).sum(-1)  # [P]
    if how == "group_mean":
        return total / (mask & present[..., None]).sum((1, 2)).clamp(min=1)
    if token_share is None:
        raise ValueError("logp_reduction: minibatch_mean reads token_share: add share_tokens to before")
    return total * token_share


def pair_metrics(
    logp: PKT, mask: MaskPKT, ref_logp: PKT | None = None, beta: float = 1.0, reduction: LogpReduction = "sum"
) -> dict[str, Tensor]:
    """What every run on pairs shows, under the names that dashboards already read."""
    total = seq(logp.detach(), mask)  # [P, K]
    metrics = {"logps/chosen": total[:, 0], "logps/rejected": total[:, 1]}
    if ref_logp is not None:
        metrics |= reward_metrics(beta * over_tokens(reduction)(logp.detach() - ref_logp, mask))
    return metrics


def reward_metrics(implied: PK) -> dict[str, Tensor]:
    """The rewards that a pair's objective implies, and how often they are in the told order."""
    seen = implied.detach()
    margin = seen[:, 0] - seen[:, 1]
    return {
        "rewards/chosen": seen[:, 0],
        "rewards/rejected": seen[:, 1],
        "rewards/margins": margin,
        "rewards/accuracies": in_order(margin),
    }


def _parameters(objective: Objective) -> dict[str, inspect.Parameter]:
    own = dict(inspect.signature(objective.__call__).parameters)
    rest = [name for name, p in own.items() if p.kind is p.VAR_KEYWORD]
    if not rest:
        return own
    inner = _parameters(objective.inner)  # type: ignore[attr-defined]
    return {n: p for n, p in own.items() if n not in rest} | {n: p for n, p in inner.items() if n not in own}
