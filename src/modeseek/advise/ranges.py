"""What random preference problems are drawn from: the ranges of three generators, and of as many more as one likes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

Span = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """What worlds are drawn from; a span is drawn from uniformly, counts and paces on a log scale."""

    contexts: int = 1  # X
    actions: int = 120  # A, to each context
    width: int = 10  # d
    heavy_features: bool = False  # Student's t with 4 degrees of freedom instead of a normal
    sharpness: Span = (0.5, 2.5)  # sd of the reference's logits
    scale: Span = (1.0, 3.0)  # sd of the true reward over all responses
    alignment: Span = (-0.9, 0.9)  # cosine of the reward's and the reference's directions: where the peak is
    misspecification: Span = (0.0, 0.7)  # share of the reward's variance that no feature says
    curved: Span = (0.0, 0.0)  # share of what features say that is a product of two directions, not linear
    distance: Span = (0.0, 2.0)  # of the data's other writer from the reference, in sd of logits
    skew: Span = (-0.5, 1.0)  # cosine of what sets the other writer apart with the reward's direction
    others: Span = (0.0, 1.0)  # share of responses that the other writer wrote
    narrow: float = 0.3  # share of worlds whose data come from a third of the responses at most
    pairs: Span = (40, 1000)
    flips: Span = (0.0, 0.35)
    given: float = 0.5  # share of worlds with a reward model that came from elsewhere; else it is fitted on the pairs
    quality: Span = (0.0, 1.0)  # correlation of a given reward with the true one
    pace: Span = (0.02, 0.1)  # Adam's learning rate: how far the training budget goes
    hidden: Span = (0.0, 0.3)  # share of the variance of what the advisor sees of the features that is noise


FIRST = Ranges()
SECOND = Ranges(
    contexts=4,
    actions=36,
    width=14,
    heavy_features=True,
    sharpness=(0.3, 3.5),
    scale=(0.7, 4.0),
    alignment=(-1.0, 0.5),
    misspecification=(0.2, 0.9),
    distance=(0.5, 3.0),
    skew=(-1.0, 0.7),
    narrow=0.5,
    pairs=(25, 600),
    flips=(0.05, 0.42),
    given=0.5,
    quality=(-0.2, 0.9),
    pace=(0.01, 0.12),
    hidden=(0.1, 0.6),
)


# For reports alone: a reward that bends, more features than the advisor keeps of a language model, many prompts.
FOURTH = Ranges(
    contexts=6,
    actions=22,
    width=20,
    sharpness=(0.5, 3.0),
    scale=(0.8, 3.5),
    alignment=(-0.8, 0.8),
    misspecification=(0.0, 0.6),
    curved=(0.2, 0.8),
    distance=(0.0, 2.5),
    skew=(-0.8, 0.8),
    narrow=0.4,
    pairs=(30, 800),
    flips=(0.0, 0.4),
    quality=(-0.1, 0.9),
    pace=(0.02, 0.12),
    hidden=(0.0, 0.5),
)


def broad(seed: int) -> Ranges:
    """Ranges for one stack of worlds: wide spans, and a shape that is itself drawn, so that stacks are as unlike each
    other as the worlds of different generators. All have about 128 responses."""
    rng = torch.Generator().manual_seed(seed)
    pick = lambda choices: choices[int(torch.randint(len(choices), (1,), generator=rng))]
    contexts = pick((1, 2, 4, 8))
    return Ranges(
        contexts=contexts,
        actions=128 // contexts,
        width=pick((6, 8, 12, 16, 20)),
        heavy_features=pick((False, True)),
        sharpness=(0.3, 3.5),
        scale=(0.7, 4.0),
        alignment=(-1.0, 1.0),
        misspecification=(0.0, 0.9),
        distance=(0.0, 3.0),
        skew=(-1.0, 1.0),
        narrow=0.4,
        pairs=(25, 1000),
        flips=(0.0, 0.42),
        quality=(-0.2, 1.0),
        pace=(0.01, 0.12),
        hidden=(0.0, 0.6),
    )
