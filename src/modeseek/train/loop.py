"""The loop: draw, prepare, step, watch. It knows neither policies nor rewards nor methods."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Generator, Tensor, nn

from modeseek.batch import Batch
from modeseek.distributed import ALONE, Team
from modeseek.distributed.team import cuts, home, whole
from modeseek.objectives import Loss, Objective, max_age, reads
from modeseek.sources import Source, Stateful
from modeseek.stages import Stage
from modeseek.train.finite import NotFinite, in_forward, in_gradients
from modeseek.train.round import Round, describe
from modeseek.train.seam import evaluate
from modeseek.train.steps import Steps


class NothingToLearn(RuntimeError):
    """Round after round the stages leave every prompt out."""


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
            "round": now and now.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`; the weights are loaded by whoever stored them."""
        self.step, self.skipped = state["step"], state["skipped"]
        self.rng.set_state(state["rng"])
        names = {name: i for i, name in enumerate(self.trainable)}
        missing = sorted(names.keys() ^ state["optimiser"].keys()) if state["optimiser"] else []
        if missing:
            raise ValueError(f"the checkpoint trained other parameters than this run: {missing[:3]}")
        kept = self.optimiser.state_dict()
        kept["state"] = {names[n]: moments for n, moments in state["optimiser"].items()}
        self.optimiser.load_state_dict(kept)
        _restore(self.source, state["source"])
        for i, stage in enumerate([*self.stages, *self.before]):
            _restore(stage, state["stages"][str(i)])
        now, device = state["round"], home(next(iter(self.trainable.values())))
        self.round = now and Round.restored(now, device)

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
        micros = cuts(part, self.steps.microbatch, self.steps.microbatch_tokens)
        found = in_forward(self.model, self.objective, micros, loss, self.step)
        return found or in_gradients(self.trainable, part, self.step)


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


def _means(loss: Loss, weight: Tensor) -> dict[str, float]:
    total = weight.sum().clamp(min=1e-12)
    return {name: float((x * weight).sum() / total) for name, x in loss.metrics.items()}


def _state_of(part: object) -> dict[str, Any]:
    return part.state() if isinstance(part, Stateful) else {}


def _restore(part: object, state: dict[str, Any]) -> None:
    if isinstance(part, Stateful):
        part.restore(state)
