"""What a method costs: samples, labels, tokens and hours, from two speeds that the look has measured."""

from __future__ import annotations

from dataclasses import dataclass

from modeseek.advise.methods import Method

BACKWARD = 2.0  # a backward pass in forward passes


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of this model on this device, in tokens a second."""

    sampled: float
    scored: float


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of a whole run."""

    samples: int  # responses that the policy writes
    scores: int  # readings of the reward: labels, where a judge is the reward
    forward: int  # tokens
    backward: int  # tokens
    hours: float


NOTHING = Cost(samples=0, scores=0, forward=0, backward=0, hours=0.0)


def cost(method: Method, *, steps: int, prompts: int, generations: int, tokens: float, speed: Speed) -> Cost:
    """Of `steps` optimiser steps of so many prompts; `tokens` is what a prompt and one response have together."""
    own = generations if method.own else 0
    trained = {"sft": 1, "best_of_n": 1, "online_dpo": 2, "policy_gradient": own}.get(method.name, 2 + own)
    referred = 0 if method.name in ("sft", "rwr", "best_of_n") else trained
    responses = steps * prompts
    forward = responses * (trained + referred) * tokens
    backward = responses * trained * tokens
    samples = responses * own
    seconds = (forward + BACKWARD * backward) / speed.scored + samples * tokens / speed.sampled
    scores = responses * (own or 2) if method.scores else 0
    return Cost(samples=samples, scores=scores, forward=round(forward), backward=round(backward), hours=seconds / 3600)
