"""The divergence world: does a method seek a mode or cover the target? Measured for each shipped method, not declared.

The policy is a bump of fixed width on a line, so all it can do is move; the target is two narrow bumps of unequal
mass. The forward KL(target || policy) is least near the target's mean, in the valley; the reverse KL(policy || target)
has a minimum at each bump. `seeking` is where training ends on that scale: 0 at the forward KL's minimum, 1 at the
reverse KL's on the same side, above 1 beyond it. The reference is uniform and the reward beta log target, so that the
target is the optimum of E[r] - beta KL(pi || pi_ref). 2404.14367 claims a direction of every objective (lemma 6.1 for
those on policy); its argument for contrastive ones is about single steps on a table, and this is another test of the
claim. What is found is of this family: log pi(w) - log pi(l) is linear in where the bump stands.

Source, stages and objective are those of the shipped configuration, and the library's own loop runs them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Unpack

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from modeseek import build, config, sources
from modeseek.batch import PKT, PS, Batch, MaskPS
from modeseek.objectives import RWR, reads
from modeseek.policies.bandit import Bandit
from modeseek.policies.base import Sampling
from modeseek.studies.base import Dial, Row
from modeseek.studies.worlds.linear import settle
from modeseek.studies.worlds.table import forced, streams, uniform
from modeseek.train import Loop, Steps

PLACES, WIDTH = 41, 0.2  # of the line from -1 to 1; of the policy's bump
BUMPS = ((0.55, -0.6), (0.45, 0.6))  # mass and middle of the target's
NARROW = 0.12  # their width
BETA = 0.1  # of the reward, and of every method that has a price of a nat or a temperature of the reward
PAIRS, PROMPTS, REACH = 4096, 32, 0.3  # data; prompts of a round; how far from 0 a seed may start
CHECKPOINTS = 20
EXACT = ("forward_kl", "reverse_kl")
LEARNING: Mapping[str, Dial] = {"steps": 120, "learning_rate": 0.03}

Line = Float[Tensor, "A"]


def line() -> Line:
    """The places of the responses."""
    return torch.linspace(-1, 1, PLACES, dtype=torch.float64)


def target() -> Line:
    """log-probabilities of the two bumps."""
    parts = [torch.log(torch.tensor(m)) - ((line() - at) / NARROW).square() / 2 for m, at in BUMPS]
    return torch.stack(parts).logsumexp(0).log_softmax(-1)


def bump(centre: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape A"]:
    """log-probabilities of the policy's bump at these places."""
    return (-((line() - centre[..., None]) / WIDTH).square() / 2).log_softmax(-1)


def divergences(logp: Float[Tensor, "*shape A"]) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """KL(target || policy) and KL(policy || target), in nats."""
    goal = target()
    return (goal.exp() * (goal - logp)).sum(-1), (logp.exp() * (logp - goal)).sum(-1)


@cache
def minima() -> tuple[float, float, float]:
    """Where the forward KL is least, and where the reverse KL is on the left and on the right of that."""
    at = torch.linspace(-1.2, 1.2, 24001, dtype=torch.float64)
    forward, reverse = divergences(bump(at))
    middle = float(at[forward.argmin()])
    left, right = at < middle, at > middle
    return middle, float(at[left][reverse[left].argmin()]), float(at[right][reverse[right].argmin()])


def seeking(centre: float) -> float:
    """0 at the forward KL's minimum, 1 at the reverse KL's on this side."""
    middle, left, right = minima()
    return (centre - middle) / ((left if centre < middle else right) - middle)


class Bump(nn.Module):
    """The policy: one parameter, where it stands. What it says of a state is exact; its value of one is learnt."""

    def __init__(self, centre: float):
        super().__init__()
        self.centre = nn.Parameter(torch.tensor(centre, dtype=torch.float64))
        self.worth = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def all_logp(self) -> Line:
        return bump(self.centre)

    def logp(self, batch: Batch) -> PKT:
        return self.all_logp()[batch.response]

    def value(self, batch: Batch) -> PKT:
        return self.worth + torch.zeros(batch.response.shape, dtype=torch.float64)

    def entropy(self, batch: Batch) -> PKT:
        logp = self.all_logp()
        return -(logp.exp() * logp).sum().expand(batch.response.shape)

    def collision(self, batch: Batch) -> PKT:
        """log sum_y pi(y)^2."""
        return (2 * self.all_logp()).logsumexp(-1).expand(batch.response.shape)

    def kl(self, batch: Batch) -> PKT:
        """To the uniform reference."""
        return float(np.log(PLACES)) - self.entropy(batch)

    def sample(self, prompt: PS, prompt_mask: MaskPS, k: int, rng: Generator, **how: Unpack[Sampling]) -> Batch:
        return Bandit(self.all_logp().detach()[None]).sample(prompt, prompt_mask, k, rng, **how)

    eos, max_new = tuple(range(PLACES)), 1

    def predict(self, tokens: Tensor, mask: Tensor, start: int) -> Tensor:
        """What a mixture with the reference is made of."""
        return self.all_logp().expand(len(tokens), tokens.shape[1] - start, -1)


@dataclass(frozen=True)
class Divergence:
    """Every shipped method of a policy, and the two divergences themselves as a check of the scale."""

    name: str = "divergence"
    judged_by: str = "reward"

    def methods(self) -> Sequence[str]:
        return (*EXACT, *_shipped())

    def grid(self, method: str) -> Mapping[str, Sequence[Dial]]:
        """The rate is Adam's on one parameter, where the loss's scale drops out: nothing is tuned."""
        return {}

    def run(self, method: str, seeds: Sequence[int], **dials: Dial) -> list[Row]:
        if method not in self.methods():
            raise ValueError(f"method: {method!r}, expected one of {', '.join(self.methods())}")
        known = LEARNING if method in EXACT else {**LEARNING, "source": "shipped"}
        dial = settle(f"{method} in {self.name}", known, dials)
        steps, rate = int(dial["steps"]), float(dial["learning_rate"])
        run = None if method in EXACT else run_of(method, str(dial["source"]), steps, rate)
        return [row for seed in seeds for row in _trained(method, run, seed, steps, rate)]

    def geometry(self) -> Mapping[str, np.ndarray]:
        middle, left, right = (bump(torch.tensor(c, dtype=torch.float64)).exp() for c in minima())
        curves = {"target": target().exp(), "forward": middle, "reverse, left": left, "reverse, right": right}
        return {name: curve.numpy() for name, curve in curves.items()}


@cache
def _shipped() -> tuple[str, ...]:
    """All but those that train a reward model, and those whose prompts say what a response is: here is one prompt."""
    known = {name: run_of(name) for name in config.names()}
    return tuple(name for name, run in known.items() if "score" not in reads(run.objective) and not run.control_good)


def run_of(method: str, source: str = "shipped", steps: int = 120, learning_rate: float = 0.03) -> config.Run:
    """The shipped configuration with this world's temperature, rounds and steps; everything else is as shipped.

    `source: offline` gives an objective that may learn from any samples the data's pairs in place of its own.
    """
    known = config.from_dict(config.read_tree(method), where=method)
    if source not in ("shipped", "offline"):
        raise ValueError(f"source: {source!r}, expected shipped or offline")
    if source == "offline" and (known.objective.axes.on_policy or isinstance(known.source, config.Offline)):
        raise ValueError(f"source: offline, but {method} is offline already or needs its own samples; leave it out")
    tempered = lambda spec: dataclasses.replace(
        spec, options={n: BETA if n == "beta" else x for n, x in spec.options.items()}
    )
    objective = RWR(beta=BETA) if isinstance(known.objective, RWR) else known.objective
    share = known.minibatch and max(1, PROMPTS * known.minibatch // known.prompts_per_round)
    return dataclasses.replace(
        known,
        objective=objective,
        source=config.Offline() if source == "offline" else known.source,
        stages=tuple(tempered(spec) for spec in known.stages),
        prompts_per_round=PROMPTS,
        minibatch=share,
        max_steps=steps,
        learning_rate=learning_rate,
        schedule="linear",
        warmup_steps=0,
        max_grad_norm=1e9,
        num_train_epochs=None,
    )


def loop_of(run: config.Run, policy: Bump, seed: int) -> Loop:
    """The library's loop over a seed's data: 4096 pairs of the uniform reference, labelled by Bradley-Terry."""
    reward = BETA * target()
    data, reference = pairs(seed, reward), Bandit(torch.zeros(1, PLACES, dtype=torch.float64)).requires_grad_(False)
    said: Callable[[Batch], Tensor] = lambda batch: reward[batch.response[..., 0]]
    parts: dict[str, Any] = {"policy": policy, "reference": reference, "reward": said}
    match run.source:
        case config.OnPolicy(num_generations=k, temperature=temperature):
            source = sources.on_policy(policy, data, PROMPTS, k, temperature=temperature)
        case config.Hybrid(num_generations=k):
            source = sources.hybrid(policy, data, PROMPTS, k)
        case _:
            source = sources.offline(data, PROMPTS)
    staged = [build.stage_of(spec, parts) for spec in run.stages]
    before = [build.stage_of(spec, parts) for spec in build.corrected(run)]
    steps: dict[str, Any] = {f.name: getattr(run, f.name) for f in dataclasses.fields(Steps)} | {"seed": seed}
    return Loop(policy, run.objective, source, staged, Steps(**steps), before)


def pairs(seed: int, reward: Line) -> Batch:
    """The data of a seed; `margin` is the true gap of the rewards, `label` is left to the stages."""
    luck = uniform(streams([seed], "pairs"), PAIRS, 3)[0]
    first = (luck[:, 0] * PLACES).long()
    second = (first + 1 + (luck[:, 1] * (PLACES - 1)).long()) % PLACES
    win = luck[:, 2] < torch.sigmoid(reward[first] - reward[second])
    chosen, rejected = torch.where(win, first, second), torch.where(win, second, first)
    prompt = torch.zeros(PAIRS, 1, dtype=torch.long)
    gap = (reward[chosen] - reward[rejected]).abs()
    return forced(prompt, torch.stack([chosen, rejected], -1), margin=gap)


def _trained(method: str, run: config.Run | None, seed: int, steps: int, rate: float) -> list[Row]:
    start = (2 * uniform(streams([seed], "start"), 1)[0, 0] - 1) * REACH
    policy = Bump(float(start))
    advance = _exact(method, policy, steps, rate) if run is None else loop_of(run, policy, seed).advance
    rows = [_row(seed, 0, policy)]
    for step in range(1, steps + 1):
        advance()
        if step % max(1, steps // CHECKPOINTS) == 0 or step == steps:
            rows.append(_row(seed, step, policy))
    return rows


def _exact(method: str, policy: Bump, steps: int, rate: float) -> Callable[[], object]:
    optimiser = torch.optim.Adam([policy.centre], lr=rate)
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)

    def advance() -> None:
        optimiser.zero_grad()
        divergences(policy.all_logp())[EXACT.index(method)].backward()
        optimiser.step()
        decay.step()

    return advance


@torch.no_grad()
def _row(seed: int, step: int, policy: Bump) -> Row:
    logp = policy.all_logp()
    forward, reverse = divergences(logp)
    kl = float((logp.exp() * logp).sum() + np.log(PLACES))
    return {
        "seed": seed,
        "step": step,
        "centre": float(policy.centre),
        "seeking": seeking(float(policy.centre)),
        "forward_kl": float(forward),
        "reverse_kl": float(reverse),
        "reward": float(logp.exp() @ (BETA * target())),
        "kl": kl,
    }
