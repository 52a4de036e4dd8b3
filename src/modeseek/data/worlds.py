"""The 100-armed bandit of 2404.14367: every expectation is a sum, every regularised optimum is known.

The reference is what is left of tanh(x), x ~ Cauchy(-0.7, 0.4), in 100 equal bins of [-1, 1]: much of it at the lower
edge, a spike at the upper one. The reward is a bump of width 10 at one arm. At arm 20 the reference finds it by itself
(R2, aligned); at arm 70 it holds 0.2 % of the mass (R1, misaligned). The masses are exact, where the paper's code draws
10 000 samples. https://arxiv.org/abs/2404.14367, section 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

ARMS, WIDTH = 100, 10.0
PEAKS = {"R1": 70, "R2": 20}
LOCATION, SCALE = -0.7, 0.4  # of the Cauchy distribution


@dataclass(frozen=True, eq=False)
class World:
    """A bandit with one context: what the reference does, and what each arm is worth."""

    reference: Float[Tensor, " A"]  # probabilities, none of them zero
    reward: Float[Tensor, " A"]

    def expected(self, p: Float[Tensor, " A"]) -> float:
        """The expected reward of a policy."""
        return float(p @ self.reward)

    def kl(self, p: Float[Tensor, " A"]) -> float:
        """KL(p || reference) in nats."""
        return float((torch.xlogy(p, p) - torch.xlogy(p, self.reference)).sum())

    def gain(self, p: Float[Tensor, " A"], beta: float) -> float:
        """What RL with a KL penalty maximises: the expected reward less `beta` for each nat of KL."""
        return self.expected(p) - beta * self.kl(p)

    def tilted(self, beta: float) -> Float[Tensor, " A"]:
        """Where `gain` is largest: reference x exp(reward / beta), normalised."""
        return (self.reference.log() + self.reward / beta).softmax(-1)

    def best_at(self, kl: float) -> Float[Tensor, " A"]:
        """The policy with the largest expected reward among all within `kl` nats of the reference.

        It is a tilted reference, with the price at which the nats run out; far enough away it is the best arms alone.
        """
        if kl < 0:
            raise ValueError(f"kl: {kl}, expected at least 0")
        low, high = math.log(1e-6), math.log(1e6)  # of beta; KL falls with it
        if kl >= self.kl(self.tilted(math.exp(low))):
            return self.tilted(math.exp(low))
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if self.kl(self.tilted(math.exp(middle))) > kl else (low, middle)
        return self.tilted(math.exp(high))

    def best_of(self, n: int) -> float:
        """The expected best reward among `n` draws from the reference."""
        reward, order = self.reward.sort()
        below = self.reference[order].cumsum(-1).clamp(max=1.0).pow(n)
        return float(reward @ below.diff(prepend=below.new_zeros(1)))

    def nash(
        self, wins: Float[Tensor, "A A"], beta: float, steps: int = 20_000, share: float = 0.0
    ) -> Float[Tensor, " A"]:
        """The policy that is the best answer to itself: reference x exp(wins @ p / beta), normalised.

        `wins[i, j]` is the chance that arm i is preferred to arm j. Found by damped iteration, which contracts because
        the game is symmetric and the damping less than beta; https://arxiv.org/abs/2312.00886. With a `share` the rival
        is the geometric mixture p^(1 - share) reference^share, normalised: where Nash-MD stands still.
        """
        logp, damping = self.reference.log(), min(0.5, beta / 2)
        for _ in range(steps):
            rival = torch.lerp(logp, self.reference.log(), share).softmax(-1)
            answer = (self.reference.log() + wins @ rival / beta).log_softmax(-1)
            move = answer - logp
            logp = (logp + damping * move).log_softmax(-1)
            if move.abs().max() < 1e-10:
                break
        return logp.exp()


def binned_cauchy(arms: int = ARMS, location: float = LOCATION, scale: float = SCALE) -> Float[Tensor, " A"]:
    """The mass of tanh(x), x ~ Cauchy(location, scale), in each of `arms` equal bins of [-1, 1]."""
    edge = torch.linspace(-1, 1, arms + 1, dtype=torch.float64).atanh()  # infinite at both ends
    return (0.5 + ((edge - location) / scale).atan() / math.pi).diff()


def bump(peak: int, arms: int = ARMS, width: float = WIDTH) -> Float[Tensor, " A"]:
    """exp(-((a - peak) / width)^2) for each arm a."""
    return (-((torch.arange(arms, dtype=torch.float64) - peak) / width).square()).exp()


def bandit(reward: str = "R1") -> World:
    """The didactic bandit with the misaligned reward R1 or the aligned one R2."""
    if reward not in PEAKS:
        raise ValueError(f"reward: {reward!r}, expected one of {', '.join(PEAKS)}")
    return World(binned_cauchy(), bump(PEAKS[reward]))
