"""Make the shipped prior: `python -m modeseek.advise.fit_prior [stacks]`. About twenty minutes on a core for fifteen.

Trains and rehearses every candidate in worlds whose truth is known, reads their pairs under each setting, and finds the
weights of the settings and the calibration under which the true gains were likeliest. Stacks of worlds are as unlike
each other as those of different generators (`worlds.broad`), and each fifth is of the ranges that were looked at first.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from modeseek.advise.belief import GRID, Fits
from modeseek.advise.measure import Measured, stacks
from modeseek.advise.methods import ARMS
from modeseek.advise.prior import Z80, Calibration, Prior, standardised
from modeseek.advise.ranges import FIRST, Ranges, broad

SEED = 20_000
FLOOR = -200.0  # of a log evidence below the best setting's
PATH = Path(__file__).parents[1] / "configs" / "advise" / "prior.json"
CAUTIONS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
FREEDOM = 4.0  # degrees of freedom of Student's t: a few worlds are very unlike what is believed of them
RIDGE = 0.01


@dataclass(frozen=True, eq=False)
class Evidence:
    """Of W worlds under S settings, what is needed to weigh the settings."""

    mean: Float[Tensor, "W S C"]  # each arm's gain
    variance: Float[Tensor, "W S C"]
    moved: Float[Tensor, "W C"]  # sum of squares of what each arm does more often than the reference
    log: Float[Tensor, "W S"]  # of how well the pairs were foreseen, the best setting's 0

    @staticmethod
    def of(fits: Fits, moved: Float[Tensor, "W C M"]) -> Evidence:
        """The arms' gains as each setting sees them."""
        variance = [torch.einsum("wcm,wmn,wcn->wc", moved, s, moved) for s in fits.covariance]
        log = (fits.evidence - fits.evidence.max(1, keepdim=True).values).clamp(min=FLOOR)
        mean = torch.einsum("wcm,wsm->wsc", moved, fits.mean)
        return Evidence(mean, torch.stack(variance, 1), moved.square().sum(-1), log)


def main(words: Sequence[str]) -> None:
    """Fit on that many stacks and write the JSON."""
    n = int(words[0]) if words else 15
    found: list[tuple[Evidence, Evidence, Tensor, Tensor]] = []
    worlds = 0
    for size, ranges, seed in schedule(n):
        [one] = stacks(size, ranges, seed)
        found.append(evidence(one))
        worlds += size
        print(f"{len(found)} of {n} stacks", flush=True)
    prior = make(found, {"worlds": worlds, "stacks": n, "ranges": "broad, each fifth stack FIRST", "seed": SEED})
    PATH.parent.mkdir(exist_ok=True)
    prior.save(PATH)


def schedule(n: int) -> list[tuple[int, Ranges, int]]:
    """Worlds, ranges and seed of each stack."""
    found: list[tuple[int, Ranges, int]] = []
    for i in range(n):
        seed = SEED + 1000 * i
        found.append((50, broad(seed), seed))
        if i % 4 == 3:
            found.append((75, FIRST, seed - SEED // 2))
    return found[:n]


def evidence(one: Measured) -> tuple[Evidence, Evidence, Tensor, Tensor]:
    """For trained and for rehearsed arms; the diagnoses, and the truth."""
    trained = Evidence.of(one.fits(GRID), one.moved)
    rehearsed = Evidence.of(one.fits(GRID, rehearsed=True), one.rehearsed)
    return trained, rehearsed, one.diagnoses, one.gain


def make(found: Sequence[tuple[Evidence, Evidence, Tensor, Tensor]], made: dict[str, object]) -> Prior:
    """The prior that these worlds teach."""
    gain = torch.cat([f[3] for f in found])
    diagnoses = torch.cat([f[2] for f in found])
    centre, covariance = diagnoses.mean(0), torch.cov(diagnoses.T)
    precision = torch.linalg.inv(covariance + 1e-6 * torch.eye(len(covariance), dtype=covariance.dtype))
    spread = covariance.diagonal().clamp(min=1e-12).sqrt()
    away, usual = diagnoses - centre, standardised(diagnoses, centre, spread)
    distance = torch.einsum("wd,de,we->w", away, precision, away)
    columns = torch.cat([torch.ones(len(away), 1, dtype=away.dtype), away], 1)
    penalty = torch.diag_embed(torch.tensor([0.0] + [1.0] * away.shape[1], dtype=away.dtype))
    ridge = torch.linalg.solve(columns.T @ columns + penalty, columns.T @ gain)  # [1 + D, C]
    return Prior(
        settings=GRID,
        trained=calibrate(_joined([f[0] for f in found]), gain, usual),
        rehearsed=calibrate(_joined([f[1] for f in found]), gain, usual),
        centre=tuple(centre.tolist()),
        spread=tuple(spread.tolist()),
        precision=tuple(map(tuple, precision.tolist())),
        limit=float(distance.quantile(0.99)),
        ridge=tuple(map(tuple, ridge.tolist())),
        made={**made, "arms": [arm.name for arm in ARMS]},
    )


def calibrate(seen: Evidence, gain: Float[Tensor, "W C"], usual: Float[Tensor, "W D"], steps: int = 250) -> Calibration:
    """Weights of the settings, temper, slope, width and what they leave open, under which the arms' true gains are
    likeliest (Student's t); then widths by diagnosis within which 80% of the gains lie."""
    start = (-0.5, 1.0, 0.2, -1.0)  # log temper, slope, log width, log of what no setting says
    log_weight = torch.zeros(seen.log.shape[1], dtype=torch.float64, requires_grad=True)
    at = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([log_weight, at], lr=0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        mean, sd = _mixed(seen, log_weight, at)
        off = (gain[:, 1:] - mean[:, 1:]) / sd[:, 1:]  # doing nothing gains nothing
        tail = (FREEDOM + 1) / 2 * (1 + off.square() / FREEDOM).log()
        loss = (tail + sd[:, 1:].log()).mean() + RIDGE / 2 * log_weight.square().mean()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        mean, sd = _mixed(seen, log_weight, at)
    slopes, level = widths(((gain - mean) / sd)[:, 1:].abs() / Z80, usual)
    sd = sd * (usual @ slopes + level).exp()[:, None]
    gained = lambda c: float(gain.gather(1, (mean - c * sd).argmax(1, keepdim=True)).mean())
    temper, slope, widen, own = at.detach().tolist()
    return Calibration(
        log_weight=tuple(log_weight.detach().log_softmax(0).tolist()),
        temper=math.exp(temper),
        slope=slope,
        widen=math.exp(widen + level),
        own=math.exp(own),
        by_diagnosis=tuple(slopes.tolist()),
        caution=max(CAUTIONS, key=gained),
    )


def widths(
    off: Float[Tensor, "W C"], usual: Float[Tensor, "W D"], share: float = 0.8, steps: int = 500
) -> tuple[Float[Tensor, " D"], float]:
    """Slopes and level of the log of the width, linear in the diagnoses, that holds this share of `off`, which are
    distances in widths: a quantile regression (Koenker & Bassett 1978)."""
    log = off.clamp(min=1e-3).log()
    slopes = torch.zeros(usual.shape[1], dtype=torch.float64, requires_grad=True)
    level = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([slopes, level], lr=0.03)
    for _ in range(steps):
        optimiser.zero_grad()
        above = log - (usual @ slopes + level)[:, None]
        loss = torch.maximum(share * above, (share - 1) * above).mean() + RIDGE * slopes.square().sum()
        loss.backward()
        optimiser.step()
    return slopes.detach(), level.item()


def _mixed(seen: Evidence, log_weight: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Each arm's gain and its standard deviation, as `Prior.belief` has them where all diagnoses are as usual."""
    temper, slope, widen, own = at.unbind()
    weight = (log_weight + temper.exp() * seen.log).softmax(1)[..., None]  # [W, S, 1]
    mean = (weight * seen.mean).sum(1)
    variance = (weight * (seen.variance + (seen.mean - mean[:, None]).square())).sum(1)
    return slope * mean, widen.exp() * (variance + (2 * own).exp() * seen.moved + 1e-6).sqrt()


def _joined(parts: Sequence[Evidence]) -> Evidence:
    pick = lambda name: torch.cat([getattr(p, name) for p in parts])
    return Evidence(pick("mean"), pick("variance"), pick("moved"), pick("log"))


if __name__ == "__main__":
    main(sys.argv[1:])
