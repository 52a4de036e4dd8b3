"""A ranked list of what to do: what each method is expected to bring, what it costs, and when it would be wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from modeseek.advise import belief
from modeseek.advise.belief import linear_kernel
from modeseek.advise.cost import NOTHING, Cost
from modeseek.advise.diagnose import NAMES, diagnoses
from modeseek.advise.methods import ARMS, METHODS, STEPS, Arm, Method, train_all
from modeseek.advise.prior import Z80, Prior, predicted
from modeseek.advise.worlds import Worlds

REACHED = 0.1  # standard deviations of the reward by which best of 8 has to be above the chosen
DRAWS = 4000  # of all gains at once, for the chance that an arm is the best

EVIDENCE = {
    "sft": "rank of chosen among own",
    "rwr": "accuracy of the proxy",
    "dpo": "leverage of own pairs, log",
    "ipo": "held-out accuracy of a linear reward",
    "hypo": "leverage of own pairs, log",
    "best_of_n": "best of 8 above chosen, by the proxy",
    "online_dpo": "effective sample share at the tilt",
    "policy_gradient": "effective sample share at the tilt",
}


@dataclass(frozen=True, kw_only=True)
class Option:
    """A method at the setting of its dial that promises most. Gains are over the model as it is, in log-odds of being
    preferred: 0 is as good, 1 is preferred 73% of the time. Intervals hold 80%."""

    name: str
    config: str  # the shipped config; empty: do nothing
    dial: str
    value: float
    gain: float
    low: float
    high: float
    best: float  # chance that it is the best of all
    kl: float  # nats a response, in the rehearsal
    cost: Cost
    evidence: str
    claim: str
    wrong: str


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What to do, and what it rests on."""

    verdict: str  # train, race first, do nothing, fix the data first, sft first
    reasons: tuple[str, ...]
    options: tuple[Option, ...]  # the most promising first
    outside: bool  # the problem is unlike those that the prior was made from
    furthest: str  # the diagnosis that is most unlike theirs
    diagnoses: dict[str, float]
    judged: int = 0  # labels that the gains rest on, beside the pairs


def advise(
    problem: Worlds,
    prior: Prior,
    price: Callable[[Method], Cost],
    *,
    rewarded: bool,
    steps: int = STEPS,
    seed: int = 0,
) -> Advice:
    """Rehearse every method on a problem (a stack of one) and rank them. `price` says what a method costs.

    Without a reward, methods that score are left out. `steps` are those of the rehearsal.
    """
    theta = train_all(problem, steps=steps, seed=seed)
    moved = problem.moved(theta)
    kernel = linear_kernel(problem.seen.flatten(1, 2))
    fits = belief.fit(kernel, problem.pairs, problem.count, problem.proxy, problem.given, prior.settings)
    found = diagnoses(problem)
    held = prior.belief(fits, found, rehearsed=True)
    mean, covariance = held.of(moved)
    _, sd = predicted(held, moved)
    kl = torch.stack([problem.kl(arm) for arm in theta.unbind(1)], 1)[0]
    allowed = [i for i, arm in enumerate(ARMS) if arm.method is None or rewarded or not arm.method.scores]
    named = dict(zip(NAMES, found[0].tolist(), strict=True))
    chance = best_chance(mean[0][allowed], covariance[0][allowed][:, allowed], seed)
    chances = dict(zip(allowed, chance.tolist(), strict=True))
    careful = mean[0] - prior.rehearsed.caution * sd[0]
    options = [
        option(ARMS[i], mean[0, i], sd[0, i], kl[i], sum(chances[j] for j in same), named, price)
        for same in _by_method(allowed)
        for i in [max(same, key=lambda j: float(careful[j]))]
    ]
    options.sort(key=lambda o: -(o.gain - prior.rehearsed.caution * (o.high - o.low) / (2 * Z80)))
    outside = bool(prior.outside(found)[0])
    verdict, reasons = judge(options, named, int(problem.count[0]), rewarded)
    if outside and verdict == "train":
        verdict = "race first"
    return Advice(
        verdict=verdict,
        reasons=tuple(reasons),
        options=tuple(options),
        outside=outside,
        furthest=prior.furthest(found[0]),
        diagnoses=named,
    )


def option(
    arm: Arm,
    mean: Float[Tensor, ""],
    sd: Float[Tensor, ""],
    kl: Float[Tensor, ""],
    best: float,
    named: dict[str, float],
    price: Callable[[Method], Cost],
) -> Option:
    """One line of the list."""
    method, gain, reach = arm.method, float(mean), Z80 * float(sd)
    if method is None:
        return Option(
            name="nothing",
            config="",
            dial="",
            value=0.0,
            gain=0.0,
            low=0.0,
            high=0.0,
            best=best,
            kl=0.0,
            cost=NOTHING,
            evidence="no gain, no risk",
            claim="",
            wrong="some method would clearly gain",
        )
    about = EVIDENCE[method.name]
    return Option(
        name=method.name,
        config=method.config,
        dial="share of the steps" if method.dial == "max_steps" else method.dial,
        value=arm.dial,
        gain=gain,
        low=gain - reach,
        high=gain + reach,
        best=best,
        kl=float(kl),
        cost=price(method),
        evidence=f"{about}: {named[about]:.2f}",
        claim=method.claim,
        wrong=method.wrong,
    )


def judge(options: Sequence[Option], named: dict[str, float], pairs: int, rewarded: bool) -> tuple[str, list[str]]:
    """What to do first, and why."""
    top = options[0]
    accuracy = named["held-out accuracy of a linear reward"]
    reach = 1.96 * math.sqrt(0.25 / max(1, pairs // 2))
    reasons = [
        f"a reward fitted on half of the pairs orders {accuracy:.0%} of the others as they are told"
        f" (chance: {0.5 - reach:.0%} to {0.5 + reach:.0%})"
    ]
    far = named["rank of chosen among own"] < 0.1
    reasons.append(
        f"the chosen responses stand at rank {named['rank of chosen among own']:.2f} among the model's own"
        " (0.5: as likely as those, 0: less likely than all)"
    )
    if accuracy + reach < 0.55 or (accuracy < 0.5 and top.gain <= 0):
        return "fix the data first", [*reasons, "the pairs do not agree with each other; look at them: modeseek check"]
    if not top.config or top.low + top.high <= 0:
        return "do nothing", [*reasons, "no method is expected to gain"]
    if top.low < 0:
        reasons.append(f"{top.name} may lose: its interval reaches {top.low:.2f}; a race would tell")
    unreached = not rewarded or named["best of 8 above chosen, by the proxy"] < REACHED
    if far and unreached:
        return "sft first", [*reasons, "the model hardly writes anything like the chosen responses; start with SFT"]
    return "train", reasons


def best_chance(mean: Float[Tensor, " C"], covariance: Float[Tensor, "C C"], seed: int = 0) -> Float[Tensor, " C"]:
    """How probable it is of each arm that no other gains more."""
    rng = torch.Generator().manual_seed(seed)
    scale = float(covariance.diagonal().mean().clamp(min=1e-9))
    root = torch.linalg.cholesky(covariance + 1e-6 * scale * torch.eye(len(mean), dtype=mean.dtype))
    drawn = mean + torch.randn(DRAWS, len(mean), generator=rng, dtype=mean.dtype) @ root.T
    return torch.bincount(drawn.argmax(1), minlength=len(mean)) / DRAWS


def _by_method(allowed: Sequence[int]) -> list[list[int]]:
    """The arms of each method, doing nothing first."""
    groups: dict[str, list[int]] = {"": [], **{m.name: [] for m in METHODS}}
    for i in allowed:
        method = ARMS[i].method
        groups["" if method is None else method.name].append(i)
    return [group for group in groups.values() if group]
