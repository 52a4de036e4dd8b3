"""What following the advice costs: the true gain it leaves on the table, beside constant choices, on unseen worlds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from modeseek.advise.belief import Belief, ignorant
from modeseek.advise.measure import Measured
from modeseek.advise.methods import ARMS, METHODS
from modeseek.advise.prior import Z80, Prior, choose, predicted, safe
from modeseek.advise.race import halve, race, race_whole, schedule

NOISE = 2.5  # sd of one reading of the judge
LOOKS = (50, 200, 800)
RESAMPLES = 2000


@dataclass
class Tally:
    """What each way of choosing gained in each world."""

    best: list[Tensor] = field(default_factory=list)
    gained: dict[str, list[Tensor]] = field(default_factory=dict)
    inside: dict[str, list[Tensor]] = field(default_factory=dict)  # were true gains in their 80% intervals?
    outside: list[Tensor] = field(default_factory=list)  # worlds that the prior says it does not know

    def add(self, way: str, gain: Float[Tensor, "W C"], arm: Int[Tensor, " W"]) -> None:
        """This way chose these arms."""
        self.gained.setdefault(way, []).append(gain.gather(1, arm[:, None])[:, 0])


@dataclass(frozen=True, kw_only=True)
class Line:
    """One way of choosing, over all worlds."""

    way: str
    gain: float
    regret: float  # share of the best arm's mean gain that it leaves
    low: float  # 95% interval of the regret, over worlds
    high: float
    lost: int  # worlds in which the true gain is below zero
    n: int


def judge_all(found: Iterable[Measured], prior: Prior, *, looks: Sequence[int] = LOOKS, seed: int = 0) -> Tally:
    """Every way of choosing, in every world."""
    tally = Tally()
    for i, one in enumerate(found):
        rng = torch.Generator().manual_seed(seed + i)
        gain = one.gain
        tally.best.append(gain.max(1).values)
        for c, arm in enumerate(ARMS):
            tally.add(f"always {arm.name}", gain, torch.full((len(gain),), c))
        tally.outside.append(prior.outside(one.diagnoses))
        held = prior.belief(one.fits(prior.settings), one.diagnoses)
        _without_labels(tally, one, held, prior)
        _races(tally, one, held, looks, rng)
    return tally


def _without_labels(tally: Tally, one: Measured, trained: Belief, prior: Prior) -> None:
    gain = one.gain
    away = one.diagnoses - torch.tensor(prior.centre, dtype=torch.float64)
    row = torch.cat([torch.ones(len(away), 1, dtype=away.dtype), away], 1)
    tally.add("ridge on diagnoses", gain, (row @ torch.tensor(prior.ridge, dtype=row.dtype)).argmax(1))
    rehearsed = prior.belief(one.fits(prior.settings, rehearsed=True), one.diagnoses, rehearsed=True)
    for way, held, moved, by in (
        ("prior, rehearsed", rehearsed, one.rehearsed, prior.rehearsed),
        ("prior, trained", trained, one.moved, prior.trained),
    ):
        mean, sd = predicted(held, moved)
        tally.add(way, gain, choose(mean, sd, by.caution))
        tally.add(f"{way}, safe", gain, safe(mean, sd))
        hit = ((gain - mean)[:, 1:].abs() <= Z80 * sd[:, 1:]).double()  # doing nothing gains nothing, for certain
        tally.inside.setdefault(way, []).append(hit.mean(1))


def _races(tally: Tally, one: Measured, held: Belief, looks: Sequence[int], rng: Generator) -> None:
    gain, moved, reward = one.gain, one.moved, one.worlds.reward
    noisy = lambda truth: truth + NOISE * torch.randn(truth.shape, generator=rng, dtype=torch.float64)
    read = lambda place: noisy(reward.gather(1, place))
    for start, name in ((ignorant(one.informed), "race"), (held, "prior + race")):
        for spent, now in race(start, moved, read, NOISE, schedule(max(looks)), rng):
            if spent in looks:
                mean, sd = predicted(now, moved)
                tally.add(f"{name}, {spent}", gain, safe(mean, sd))
                tally.add(f"{name}, {spent}, bold", gain, mean.argmax(1))
    for labels in looks:
        tally.add(f"halving, {labels}, whole", gain, halve(gain, NOISE, labels, rng))
    mean, covariance = held.of(moved)
    for spent, now, _ in race_whole(mean, covariance, lambda arm: noisy(gain.gather(1, arm)), NOISE, max(looks), rng):
        if spent in looks:
            tally.add(f"prior + race, {spent}, whole", gain, now.argmax(1))


def joined(tallies: Sequence[Tally]) -> Tally:
    """Several tallies of the same ways as one."""
    ways = lambda parts: {way: [x for p in parts for x in p[way]] for way in parts[0]}
    return Tally(
        best=[x for t in tallies for x in t.best],
        gained=ways([t.gained for t in tallies]),
        inside=ways([t.inside for t in tallies]),
        outside=[x for t in tallies for x in t.outside],
    )


def lines(tally: Tally, seed: int = 0) -> list[Line]:
    """The table: for constants, each method at its best dial in hindsight."""
    best = torch.cat(tally.best)
    gained = {way: torch.cat(parts) for way, parts in tally.gained.items()}
    dials = {m.name: [f"always {a.name}" for a in ARMS if a.method == m] for m in METHODS}
    constants = [max(ways, key=lambda w: float(gained[w].mean())) for ways in dials.values()]
    constants.sort(key=lambda w: -float(gained[w].mean()))
    shown = ["always nothing", *constants, *(w for w in gained if not w.startswith("always"))]
    return [line(way, gained[way], best, seed) for way in shown]


def line(way: str, gain: Float[Tensor, " W"], best: Float[Tensor, " W"], seed: int = 0) -> Line:
    """Regret as a ratio of means, with a bootstrap over worlds."""
    low, high = _interval(lambda at: 1 - gain[at].mean(-1) / best[at].mean(-1), len(gain), seed)
    regret = float(1 - gain.mean() / best.mean())
    lost = int((gain < 0).sum())
    return Line(way=way, gain=float(gain.mean()), regret=regret, low=low, high=high, lost=lost, n=len(gain))


def saved(tally: Tally, way: str, other: str, seed: int = 0) -> tuple[float, float, float]:
    """By how much a way's regret is below another's, paired by world: value and 95% interval."""
    best = torch.cat(tally.best)
    more = torch.cat(tally.gained[way]) - torch.cat(tally.gained[other])
    low, high = _interval(lambda at: more[at].mean(-1) / best[at].mean(-1), len(best), seed)
    return float(more.mean() / best.mean()), low, high


def best_constant(tally: Tally) -> str:
    """In hindsight, over all methods and dials."""
    constants = [w for w in tally.gained if w.startswith("always")]
    return max(constants, key=lambda w: float(torch.cat(tally.gained[w]).mean()))


def coverage(tally: Tally) -> Mapping[str, float]:
    """Share of true gains within their 80% intervals."""
    return {way: float(torch.cat(parts).mean()) for way, parts in tally.inside.items()}


def _interval(statistic: Callable[[Tensor], Tensor], n: int, seed: int) -> tuple[float, float]:
    rng = torch.Generator().manual_seed(seed)
    found = statistic(torch.randint(n, (RESAMPLES, n), generator=rng))
    low, high = np.quantile(found.numpy(), [0.025, 0.975])
    return float(low), float(high)
