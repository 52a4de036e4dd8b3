"""The loop: draw, prepare, step, watch. It knows neither policies nor rewards nor methods."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from modeseek.batch import Batch
from modeseek.distributed import ALONE, Team
from modeseek.distributed.team import cuts, home, whole
from modeseek.objectives import Loss, Objective, call, max_age, may_read, reads
from modeseek.ops import seq
from modeseek.sources import Source, Stateful
from modeseek.stages import Stage

LIVE = frozenset({"logp", "value", "score", "entropy", "kl", "features"})  # what a model says, with a gradient


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How the loop steps. The dials of on-policyness are `minibatch`, `passes` and `max_age`, with the source's
    prompts per round: one round of B prompts gives passes x B / minibatch optimiser steps."""

    max_steps: int = 100  # optimiser steps
    learning_rate: float = 1e-5
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up, down to zero
    warmup_steps: int = 0
    warmup_ratio: float = 0.0  # instead: the share of max_steps, rounded up to whole steps
    minibatch: int | None = None  # prompts per optimiser step; unset: the whole round
    passes: int = 1  # times a round is gone through (sample reuse; PPO's epochs)
    max_age: int | None = None  # optimiser steps a fresh sample may be old; a round ends when its samples are older
    microbatch: int | None = None  # prompts per backward pass: changes memory, never the result
    microbatch_tokens: int | None = None  # instead: tokens per backward pass, a prompt counted once for its responses
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    bf16: bool = False  # autocast the forward pass; weights and optimiser stay in float32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_steps", "passes", "minibatch", "microbatch", "microbatch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value}, expected at least 1")
        if self.microbatch and self.microbatch_tokens:
            raise ValueError("microbatch, microbatch_tokens: both given; one bounds a pass by prompts, one by tokens")
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError("warmup_steps, warmup_ratio: both given; one is in optimiser steps, one a share of them")
        if not 0 <= self.warmup_ratio < 1:
            raise ValueError(f"warmup_ratio: {self.warmup_ratio}, expected at least 0 and below 1")
        if self.max_age is not None and self.max_age < 0:
            raise ValueError(f"max_age: {self.max_age}, expected at least 0")

    def rate(self, step: int) -> float:
        """Learning rate of optimiser step `step`, counted from 0."""
        warmup = self.warmup_steps or math.ceil(self.warmup_ratio * self.max_steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - warmup) / max(1, self.max_steps - warmup)
        left = 1 - done if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return self.learning_rate * left


class NothingToLearn(RuntimeError):
    """Round after round the stages leave every prompt out."""


class NotFinite(RuntimeError):
    """A NaN or an infinity, with what is needed to find out why."""

    def __init__(self, tensor: str, step: int, rows: list[int], batch: Batch):
        self.tensor, self.step, self.rows, self.batch = tensor, step, rows, batch
        where = f" in rows {rows[:8]}{' and more' if len(rows) > 8 else ''}" if rows else ""
        super().__init__(f"{tensor} is not finite at step {step}{where}")

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), (self.tensor, self.step, self.rows, self.batch)  # from a worker process


def evaluate(objective: Objective, model: nn.Module, batch: Batch) -> Loss:
    """The objective's loss on a batch: the one seam between the two.

    A model with an `evaluate` of its own is given the names to fetch and the objective to apply, and may apply it
    to whole prompts at a time.
    """
    wanted = frozenset(reads(objective) | may_read(objective)) & LIVE
    apply = lambda part, live: call(objective, part, live)
    fused = getattr(model, "evaluate", None)
    if fused is not None:
        return fused(batch, wanted, apply)
    for name in sorted(wanted):
        if not hasattr(model, name):
            raise ValueError(f"{type(objective).__name__} reads {name}, which a {type(model).__name__} cannot say")
    return apply(batch, {name: getattr(model, name)(batch) for name in sorted(wanted)})


@dataclass
class Round:
    """The batch being learnt from, and how far we are in it."""

    batch: Batch  # as the stages left it
    drawn: Tensor  # [B] weights of the prompts as drawn, before any stage left one out
    order: Tensor  # [passes, B] the order in which each pass visits them
    at: int = 0  # minibatches visited
    age: int = 0  # optimiser steps taken since it was drawn
    seen: Mapping[str, float] = field(default_factory=dict)  # what the round looked like, for the rows

    def minibatches(self, size: int | None) -> int:
        passes, drawn = self.order.shape
        return passes * math.ceil(drawn / (size or drawn))

    def visit(self, size: int | None) -> tuple[Batch, float]:
        """The next minibatch, and the weight of its prompts as drawn: the divisor."""
        per_pass = self.minibatches(size) // len(self.order)
        row, column = divmod(self.at, per_pass)
        size = size or self.order.shape[1]
        places = self.order[row, column * size : (column + 1) * size]
        part = self.batch.prompts(torch.isin(self.batch["place"].cpu(), places))
        return part, float(self.drawn[places].sum())


class Loop:
    """Everything that a resumed run needs and the model does not hold."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        source: Source,
        stages: Sequence[Stage],
        steps: Steps,
        before: Sequence[Stage] = (),
        optimiser: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
        team: Team = ALONE,
    ):
        self.model, self.objective, self.source, self.steps, self.team = model, objective, source, steps, team
        self.stages, self.before = list(stages), list(before)
        self.trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not self.trainable:
            raise ValueError("nothing to train: no parameter requires a gradient")
        self.optimiser = optimiser(
            list(self.trainable.values()),
            lr=steps.learning_rate,
            betas=(steps.adam_beta1, steps.adam_beta2),
            weight_decay=steps.weight_decay,
        )
        self.rng = Generator().manual_seed(steps.seed)
        self.step = 0
        self.round: Round | None = None
        self.skipped = 0  # minibatches without a prompt to learn from

    def draw(self) -> Round:
        """A new round: drawn, staged, measured and ordered. Every rank of a team holds the same one."""
        self.team.at("drawing a round", self.step)
        batch = self.source(self.rng)
        drawn = batch.weight.cpu()
        batch = batch.fill(place=torch.arange(len(batch), device=batch.prompt.device))
        for stage in self.stages:
            if len(batch):  # a stage may leave every prompt out
                batch = stage(batch)
        self._refuse_what_is_not_its_own(batch)
        size = self.steps.minibatch
        orders = [self._order(len(drawn), size) for _ in range(self.steps.passes)]
        now = Round(batch, drawn, torch.stack(orders), seen=describe(batch, len(drawn)))
        limit = max_age(self.objective)
        if batch.fresh.any() and limit is not None and now.minibatches(size) - 1 > limit:
            asked = self.steps.max_age
            if asked is None or asked > limit:
                raise ValueError(
                    f"{type(self.objective).__name__} takes samples at most {limit} steps old, but passes: "
                    f"{self.steps.passes} and minibatch: {size} make {now.minibatches(size)} steps of a round; set "
                    "passes: 1 and leave minibatch out, or (PolicyGradient) name an objective.correction"
                )
        return now

    def advance(self) -> dict[str, float]:
        """One optimiser step, and its row of numbers."""
        for _ in range(100):
            if self.round is None or self._spent(self.round):
                self.round = self.draw()
            part, divisor = self.round.visit(self.steps.minibatch)
            self.round.at += 1
            if len(part):
                return self._learn(self.round, part, divisor)
            self.skipped += 1
        raise NothingToLearn(
            "100 minibatches in a row had nothing to learn from: do all rewards tie? See the samples and the reward, "
            "or raise source.num_generations"
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores beside the weights: nested dicts of tensors and plain values."""
        now = self.round
        names = list(self.trainable)
        moments = self.optimiser.state_dict()["state"]
        return {
            "step": self.step,
            "skipped": self.skipped,
            "rng": self.rng.get_state(),
            "optimiser": {names[i]: dict(state) for i, state in moments.items()},
            "source": _state_of(self.source),
            "stages": {str(i): _state_of(s) for i, s in enumerate([*self.stages, *self.before])},
            "round": None
            if now is None
            else {
                "batch": now.batch.tensors(),
                "drawn": now.drawn,
                "order": now.order,
                "at": now.at,
                "age": now.age,
                "seen": dict(now.seen),
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`; the weights are loaded by whoever stored them."""
        self.step, self.skipped = state["step"], state["skipped"]
        self.rng.set_state(state["rng"])
        names = {name: i for i, name in enumerate(self.trainable)}
        missing = sorted(names.keys() ^ state["optimiser"].keys()) if state["optimiser"] else []
        if missing:
            raise ValueError(f"the checkpoint trained other parameters than this run: {missing[:3]}")
        whole = self.optimiser.state_dict()
        whole["state"] = {names[n]: moments for n, moments in state["optimiser"].items()}
        self.optimiser.load_state_dict(whole)
        _restore(self.source, state["source"])
        for i, stage in enumerate([*self.stages, *self.before]):
            _restore(stage, state["stages"][str(i)])
        now, device = state["round"], home(next(iter(self.trainable.values())))
        self.round = now and Round(
            Batch.from_tensors(now["batch"]).to(device), now["drawn"], now["order"], now["at"], now["age"], now["seen"]
        )

    def _spent(self, now: Round) -> bool:
        old = self.steps.max_age is not None and bool(now.batch.fresh.any()) and now.age > self.steps.max_age
        return old or now.at >= now.minibatches(self.steps.minibatch)

    def _order(self, drawn: int, size: int | None) -> Tensor:
        if size is None or size >= drawn:
            return torch.arange(drawn)
        return torch.randperm(drawn, generator=self.rng)

    def _refuse_what_is_not_its_own(self, batch: Batch) -> None:
        if not self.objective.axes.on_policy or "fresh" in reads(self.objective):
            return
        if (batch.present & ~batch.fresh).any():
            raise ValueError(
                f"{type(self.objective).__name__} learns only from the policy's own samples: use the on_policy source"
            )

    def _learn(self, now: Round, part: Batch, divisor: float) -> dict[str, float]:
        for stage in self.before:
            part = stage(part)
        for group in self.optimiser.param_groups:
            group["lr"] = self.steps.rate(self.step)
        self.optimiser.zero_grad()
        loss = self._gradients(part, divisor)
        if not loss.per_prompt.isfinite().all():
            raise self._not_finite(part, loss)
        norm = whole(torch.nn.utils.clip_grad_norm_(list(self.trainable.values()), self.steps.max_grad_norm))
        if not norm.isfinite():
            raise self._not_finite(part, None)
        self.optimiser.step()
        self.step, now.age = self.step + 1, now.age + 1
        row: dict[str, float] = {
            "step": self.step,
            "learning_rate": self.steps.rate(self.step - 1),
            "grad_norm": norm.item(),
        }
        row |= {"loss": float((loss.per_prompt * part.weight).sum()) / divisor}
        row |= {**now.seen, **_means(loss, part.weight)}
        row |= {"sample_age": now.age - 1} if now.batch.fresh.any() else {}
        row |= {"epoch": _state_of(self.source)["epoch"]} if "epoch" in _state_of(self.source) else {}
        return row | ({"minibatches/skipped": self.skipped} if self.skipped else {})

    def _gradients(self, part: Batch, divisor: float) -> Loss:
        """Leave the minibatch's gradient in the parameters, and return its loss. Each rank passes over its prompts, and
        over one for nothing where another has a pass more and needs this rank's piece of the weights."""
        self.team.at("forward and backward", self.step)
        mine, idle = self.team.portions(part, self.steps.microbatch, self.steps.microbatch_tokens)
        losses = [self._pass(micro, divisor) for micro in mine]
        for _ in range(idle):
            self._pass(part.prompts(slice(0, 1)), divisor, counts=0.0)
        self.team.add_gradients(self.trainable.values())
        own = {"per_prompt": torch.cat([x.per_prompt for x in losses])} if losses else {}
        own |= {name: torch.cat([x.metrics[name] for x in losses]) for name in (losses[0].metrics if losses else {})}
        every = self.team.join(own, part.weight.device, "losses")
        return Loss(every.pop("per_prompt"), every)

    def _pass(self, micro: Batch, divisor: float, *, counts: float = 1.0) -> Loss:
        with torch.autocast(micro.prompt.device.type, torch.bfloat16) if self.steps.bf16 else nullcontext():
            loss = evaluate(self.objective, self.model, micro.trim())
        ((loss.per_prompt * micro.weight).sum() * counts / divisor).backward()
        return Loss(loss.per_prompt.detach(), loss.metrics)

    def _not_finite(self, part: Batch, loss: Loss | None) -> NotFinite:
        """The first thing that went wrong, in the order in which things are computed."""
        cut, at = cuts(part, self.steps.microbatch, self.steps.microbatch_tokens), 0
        for micro in cut:
            found = None if loss is None else ~loss.per_prompt[at : at + len(micro)].isfinite()
            at += len(micro)
            if found is None or found.any():
                error = self._not_finite_of(micro, found)
                if error is not None:
                    return error
        for name, parameter in self.trainable.items():
            if parameter.grad is not None and not whole(parameter.grad).isfinite().all():
                return NotFinite(f"the gradient of {name}", self.step, [], part)
        return NotFinite("the gradient's norm", self.step, [], part)

    def _not_finite_of(self, part: Batch, bad_loss: Tensor | None) -> NotFinite | None:
        rows = lambda bad: [int(part["row"][p]) if "row" in part else p for p in bad.nonzero()[:, 0].tolist()]
        for name in sorted((reads(self.objective) | may_read(self.objective)) & part.columns.keys()):
            column = part[name]
            if column.is_floating_point():
                bad = _bad(column, part)
                if bad.any():
                    return NotFinite(name, self.step, rows(bad), part)
        with torch.no_grad():
            for name in sorted(reads(self.objective) & LIVE):
                bad = _bad(getattr(self.model, name)(part), part)
                if bad.any():
                    return NotFinite(f"the model's {name}", self.step, rows(bad), part)
        return None if bad_loss is None else NotFinite("loss", self.step, rows(bad_loss), part)


Watch = Callable[[Loop, dict[str, float]], bool | None]


def fit(
    model: nn.Module,
    objective: Objective,
    source: Source,
    stages: Sequence[Stage],
    steps: Steps,
    *,
    before: Sequence[Stage] = (),
    watch: Watch = lambda loop, row: None,
) -> Loop:
    """Train until `steps.max_steps`, or until `watch` returns True.

    `stages` run once per round, `before` on each minibatch before its optimiser step (current weights, no
    gradient, before micro-batches are cut). `watch` is called after every step with the loop and its row.
    """
    return run(Loop(model, objective, source, stages, steps, before), watch)


def run(loop: Loop, watch: Watch = lambda loop, row: None) -> Loop:
    """Go on with a loop, new or restored."""
    while loop.step < loop.steps.max_steps:
        if watch(loop, loop.advance()):
            break
    return loop


@torch.no_grad()
def describe(batch: Batch, drawn: int) -> dict[str, float]:
    """What a round looks like before it is learnt from: rewards, KL, lengths, and what was left out."""
    own, row = batch.fresh & batch.present, {}
    left = len(batch["place"].unique()) if "place" in batch else len(batch)  # a stage may make several groups of one
    if left < drawn:
        row["prompts/dropped"] = float(drawn - left)
    if not len(batch):
        return row
    for name in ("raw_reward", "reward"):
        if name in batch and batch.present.any():
            row["reward"] = batch[name][batch.present].mean().item()
            break
    if "reward" in batch and batch.response.shape[1] > 1:
        high = batch["reward"].masked_fill(~batch.present, float("-inf")).amax(-1)
        low = batch["reward"].masked_fill(~batch.present, float("inf")).amin(-1)
        row["frac_reward_zero_std"] = (high == low).float().mean().item()
    if own.any():
        row["completions/mean_length"] = batch.mask.sum(-1)[own].float().mean().item()
        if "finished" in batch:
            row["completions/finished"] = batch["finished"][own].float().mean().item()
        if "ref_logp" in batch and "old_logp" in batch:
            row["kl"] = seq(batch["old_logp"] - batch["ref_logp"], batch.mask)[own].mean().item()
    return row


def _means(loss: Loss, weight: Tensor) -> dict[str, float]:
    total = weight.sum().clamp(min=1e-12)
    return {name: float((x * weight).sum() / total) for name, x in loss.metrics.items()}


def _bad(x: Tensor, batch: Batch) -> Tensor:
    where = {1: torch.ones_like(batch.weight, dtype=torch.bool), 2: batch.present, 3: batch.mask}[x.ndim]
    return (~x.isfinite() & where).flatten(1).any(1) if x.ndim > 1 else ~x.isfinite()


def _state_of(part: object) -> dict[str, Any]:
    return part.state() if isinstance(part, Stateful) else {}


def _restore(part: object, state: dict[str, Any]) -> None:
    if isinstance(part, Stateful):
        part.restore(state)
