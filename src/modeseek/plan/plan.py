"""What a run will take: parameters, memory by part, tokens, operations, hours; what does not fit, and what would."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from modeseek.build import refuse, samples, scores
from modeseek.config import Run
from modeseek.plan.cost import Cost, cost
from modeseek.plan.devices import GIB, Device
from modeseek.plan.lengths import FILL, Lengths, lengths
from modeseek.plan.memory import Moment, models, moments
from modeseek.plan.rows import Row
from modeseek.policies.adapter import Lora


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Of one run on so many devices of a kind. Memory is of one of them."""

    run: Run
    device: Device
    devices: int
    parameters: int
    trained: int
    moments: list[Moment]  # the fullest first
    cost: Cost
    lengths: Lengths
    assumed: list[str]

    @property
    def peak(self) -> Moment:
        return self.moments[0]

    @property
    def fits(self) -> bool:
        return self.peak.total <= self.device.memory

    def as_dict(self) -> Row:
        """Plain data, for --json."""
        found = self.cost
        return {
            "method": self.run.method,
            "model": self.run.model,
            "device": {**dataclasses.asdict(self.device), "devices": self.devices},
            "parameters": self.parameters,
            "trained": self.trained,
            "memory": {m.name: {**m.parts, "total": m.total} for m in self.moments},
            "fits": self.fits,
            "steps": found.steps,
            "tokens": {"trained": found.trained, "scored": found.scored, "sampled": found.sampled},
            "flops": dict(found.flops),
            "seconds": dict(found.seconds),
            "hours": found.hours,
            "assumed": self.assumed,
        }


def plan(run: Run, device: Device, devices: int = 1, *, fill: float = FILL) -> Plan:
    """Nothing of the model is loaded. Raises ValueError where the run does not go together or a shape is not known."""
    if devices < 1:
        raise ValueError(f"devices: {devices}, expected at least 1")
    if run.parallel == "fsdp" and devices == 1:
        run = replace(run, parallel="auto")
    refuse(run)
    told = lengths(run, fill)
    made = models(run, device)
    return Plan(
        run=run,
        device=device,
        devices=devices,
        parameters=made.own.parameters,
        trained=made.own.trained,
        moments=moments(run, device, devices, told),
        cost=cost(run, made, device, devices, told),
        lengths=told,
        assumed=_assumed(run, device, devices, told),
    )


def remedies(found: Plan) -> tuple[list[str], Plan | None]:
    """The dials which, turned together, make it fit, the cheapest first; None where these are not enough."""
    run, tried = found.run, list[str]()
    for words, change in _dials(found):
        run = replace(run, **change)
        tried.append(words)
        now = plan(run, found.device, found.devices)
        if now.fits:
            return tried, now
    return tried, None


def _dials(found: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
    """In the order of what they cost. Each leaves the result as it is, down to those that do not."""
    run, several = found.run, found.devices > 1
    longest = run.max_length
    bounded = (run.token_budget or math.inf) <= 4 * longest or several  # fsdp refuses it
    budget = (f"--token_budget {4 * longest}", {"token_budget": 4 * longest})
    first = found.peak.name == "drawing a round"
    if first and not bounded:
        yield budget
    if several and run.parallel != "fsdp":
        yield "--parallel fsdp", {"parallel": "fsdp", "token_budget": None}
    if (run.microbatch or run.minibatch or run.prompts_per_round) > 1:
        yield "--microbatch 1", {"microbatch": 1}
    if not run.gradient_checkpointing:
        yield "--gradient_checkpointing", {"gradient_checkpointing": True}
    if not first and not bounded and samples(run):
        yield budget
    if not run.bf16 and run.dtype == "float32" and not run.lora and found.device.gpu:
        yield "--bf16", {"bf16": True}
    if not run.lora and not scores(run):
        yield "--lora.r 16 --dtype bfloat16 (another result)", {"lora": Lora(), "dtype": "bfloat16"}
    if run.lora and run.dtype == "float32":
        yield "--dtype bfloat16", {"dtype": "bfloat16"}
    if found.device.gpu and not scores(run) and not run.load_in_4bit:
        yield "--load_in_4bit (another result)", {"load_in_4bit": True, "parallel": "auto"}
    if longest > 512:
        shorter = {"max_length": longest // 2, "max_completion_length": run.max_completion_length // 2}
        yield f"--max_length {longest // 2} (other data)", shorter


def gib(size: float) -> str:
    """12.3 GiB."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"


def _assumed(run: Run, device: Device, devices: int, told: Lengths) -> list[str]:
    said = [
        f"lengths {told.said}: prompts of {told.prompt.mean:.0f} tokens (at most {told.prompt.most:.0f}), responses "
        f"of {told.told.mean:.0f} (at most {told.told.most:.0f})",
        f"{device.name}: {device.source}; {device.utilisation:.0%} of its peak in training and scoring, "
        f"{device.streaming:.0%} of its bandwidth in decoding",
        "packed rows, each prompt once for its group; held-out evaluation and checkpoints take no time",
    ]
    if device.gpu:
        said.append(
            "the packed path on a GPU: where the run card says plain, padding and [tokens, vocabulary] come on top"
        )
    if devices > 1:
        said.append("several devices share the work evenly and hide what they send to each other")
    return said
