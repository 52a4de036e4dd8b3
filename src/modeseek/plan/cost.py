"""Tokens, floating-point operations and hours of a run, by what they are spent on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from modeseek.build import needs_critic, samples, scores, settled
from modeseek.config import Run
from modeseek.plan.devices import Device
from modeseek.plan.lengths import Lengths, responses
from modeseek.plan.memory import Models, cache_per_token
from modeseek.plan.simulate import Sizes, sizes


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of an optimiser step; `hours` of the run, None where its number of steps is not known."""

    steps: int | None
    trained: float  # tokens, each prompt once for its group
    scored: float  # read without a gradient: by reference, policy, critic, reward model
    sampled: float
    flops: Mapping[str, float]
    seconds: Mapping[str, float]

    @property
    def hours(self) -> float | None:
        return None if self.steps is None else self.steps * sum(self.seconds.values()) / 3600


def cost(run: Run, made: Models, device: Device, devices: int, told: Lengths) -> Cost:
    """Training is 6 N D (2 forward, 4 backward; 4 with LoRA, whose base has no weight gradient; 2 more where
    activations are computed again), scoring 2 N D, attention apart; decoding is bound by memory."""
    size = run.minibatch or run.prompts_per_round
    rounds = run.passes * math.ceil(run.prompts_per_round / size)  # optimiser steps of a round
    given, own = responses(run)
    flops = _Flops(run, made, told)
    spent = {"training": flops.training(size, given, own)}
    scored, reads = flops.scoring(given, own)
    spent["scoring"] = reads / rounds
    sampled = run.prompts_per_round * getattr(run.source, "num_generations", 0) if samples(run) else 0
    if sampled:
        spent["prefill"] = flops.prefill() / rounds
    peak = device.bf16 if run.bf16 or run.dtype == "bfloat16" else device.fp32
    seconds = {name: work / (peak * device.utilisation * devices) for name, work in spent.items()}
    if sampled:
        seconds["decoding"] = _decoding(run, made, device, devices, told, peak) / rounds
    return Cost(
        steps=_steps(run, told),
        trained=flops.tokens(size, given, own),
        scored=scored / rounds,
        sampled=sampled * told.sampled.mean / rounds,
        flops=spent,
        seconds=seconds,
    )


def _steps(run: Run, told: Lengths) -> int | None:
    if run.num_train_epochs is None:
        return run.max_steps
    return None if told.rows is None else settled(run, told.rows).max_steps


@dataclass(frozen=True)
class _Flops:
    run: Run
    made: Models
    told: Lengths

    def tokens(self, prompts: int, given: int, own: int) -> float:
        """Packed: each prompt once."""
        return prompts * (self.told.prompt.mean + given * self.told.told.mean + own * self.told.sampled.mean)

    def padded(self, prompts: int, given: int, own: int) -> float:
        """A prompt before each response, to the longest: what reward models and critics read."""
        each = self.told.prompt.mean + max(self.told.told.mean, self.told.sampled.mean)
        return prompts * (given + own) * each

    def training(self, prompts: int, given: int, own: int) -> float:
        back = 2.0 if self.run.lora else 4.0
        factor = 2.0 + back + (2.0 if self.run.gradient_checkpointing else 0.0)
        if scores(self.run):
            return factor * _body(self.made.own) * self.padded(prompts, given, own)
        said = prompts * (given * self.told.told.mean + own * self.told.sampled.mean)
        head = 2.0 * self.made.own.head * said * (2.0 if self.run.lora else 3.0)
        adapters = 6.0 * self.made.own.trained * self.tokens(prompts, given, own) if self.run.lora else 0.0
        attention = (3.5 + self.run.gradient_checkpointing) * self._attention(prompts, given, own)
        frozen = _body(self.made.own) - (self.made.own.trained if self.run.lora else 0)
        body = factor * frozen * self.tokens(prompts, given, own)
        critic = 0.0
        if self.made.critic is not None:
            critic = 6.0 * sizes(self.made.critic, scores=True).parameters * self.padded(prompts, given, own)
        return body + head + adapters + attention + critic

    def scoring(self, given: int, own: int) -> tuple[float, float]:
        """Tokens and operations of a round."""
        run, B = self.run, self.run.prompts_per_round
        names = [spec.name for spec in (*run.stages, *run.before)]
        tokens, work = 0.0, 0.0
        for name in names:
            if name in ("refer", "recall"):
                read = self.tokens(B, given, own)
                tokens, work = tokens + read, work + self._forward(B, given, own)
            if name == "recall_value" and needs_critic(run):
                read = self.padded(B, given, own)
                tokens += read
                work += 2.0 * sizes(self.made.critic, scores=True).parameters * read  # type: ignore[arg-type]
            if name == "score":
                sampled = getattr(run.source, "num_generations", 0)
                for judge in self.made.judges:
                    read = self.padded(B, 0, sampled)
                    tokens, work = tokens + read, work + 2.0 * sizes(judge, scores=True).parameters * read
        return tokens, work

    def prefill(self) -> float:
        return 2.0 * _body(self.made.own) * self.run.prompts_per_round * self.told.prompt.mean

    def _forward(self, prompts: int, given: int, own: int) -> float:
        said = prompts * (given * self.told.told.mean + own * self.told.sampled.mean)
        body = 2.0 * _body(self.made.own) * self.tokens(prompts, given, own)
        return body + 2.0 * self.made.own.head * said + self._attention(prompts, given, own)

    def _attention(self, prompts: int, given: int, own: int) -> float:
        """Forward: four operations for each number of a head, query and key; windows are not counted."""
        told = json.loads(self.made.policy.config)
        width = told["num_attention_heads"] * (
            told.get("head_dim") or told["hidden_size"] // told["num_attention_heads"]
        )
        p, pairs = self.told.prompt.mean, self.told.prompt.mean**2 / 2
        for many, r in ((given, self.told.told.mean), (own, self.told.sampled.mean)):
            pairs += many * (p * r + r**2 / 2)
        return 4.0 * width * told["num_hidden_layers"] * prompts * pairs


def _body(own: Sizes) -> float:
    """Parameters that every token is multiplied with."""
    return own.parameters - own.embedding - (0 if own.tied else own.head)


def _decoding(run: Run, made: Models, device: Device, devices: int, told: Lengths, peak: float) -> float:
    """Seconds of a round's sampling on each device: every step reads the weights and the cache of its rows, and a call
    goes on until its longest response has ended."""
    k = run.source.num_generations  # type: ignore[union-attr]
    prompts = math.ceil(run.prompts_per_round / devices)
    need = prompts * (told.prompt.most + k * run.max_completion_length)
    calls = max(1, math.ceil(need / (run.token_budget or math.inf)))
    rows = prompts * k / calls
    cached = (prompts / calls) * told.prompt.mean + rows * told.sampled.mean / 2
    moved = made.own.weights + cached * cache_per_token(made)
    reading = moved / (device.bandwidth * device.streaming)
    thinking = 2.0 * (_body(made.own) + made.own.head) * rows / (peak * device.utilisation)
    return calls * told.sampled.most * max(reading, thinking)
