"""Make the shipped prior: `python -m modeseek.advise.fit_prior [worlds]`. Twenty minutes on a core for a thousand.

Trains and rehearses every candidate in worlds whose truth is known, reads their pairs under each setting, and finds the
weights of the settings and the calibration under which the true gains were likeliest.
"""

from __future__ import annotations

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
from modeseek.advise.prior import Calibration, Prior
from modeseek.advise.worlds import FIRST

SEED = 10_000
Z80 = 1.2815515655446004  # a normal is within so many standard deviations 80% of the time
FLOOR = -200.0  # of a log evidence below the best setting's
PATH = Path(__file__).parents[1] / "configs" / "advise" / "prior.json"
CAUTIONS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, eq=False)
class Evidence:
    """Of W worlds under S settings, what is needed to weigh the settings."""

    mean: Float[Tensor, "W S C"]  # each arm's gain
    variance: Float[Tensor, "W S C"]
    log: Float[Tensor, "W S"]  # of how well the pairs were foreseen, the best setting's 0

    @staticmethod
    def of(fits: Fits, moved: Float[Tensor, "W C M"]) -> Evidence:
        """The arms' gains as each setting sees them."""
        variance = [torch.einsum("wcm,wmn,wcn->wc", moved, s, moved) for s in fits.covariance]
        log = (fits.evidence - fits.evidence.max(1, keepdim=True).values).clamp(min=FLOOR)
        return Evidence(torch.einsum("wcm,wsm->wsc", moved, fits.mean), torch.stack(variance, 1), log)


def main(words: Sequence[str]) -> None:
    """Fit on that many worlds and write the JSON."""
    n = int(words[0]) if words else 1000
    found: list[tuple[Evidence, Evidence, Tensor, Tensor]] = []
    for first in range(0, n, 125):
        [one] = stacks(min(125, n - first), FIRST, SEED + first)
        found.append(evidence(one))
        print(f"{first + 125} of {n} worlds", flush=True)
    prior = make(found, {"worlds": n, "ranges": "FIRST", "seed": SEED})
    PATH.parent.mkdir(exist_ok=True)
    prior.save(PATH)


def evidence(one: Measured) -> tuple[Evidence, Evidence, Tensor, Tensor]:
    """For trained and for rehearsed arms; the diagnoses, and the truth."""
    trained = Evidence.of(one.fits(GRID), one.moved)
    rehearsed = Evidence.of(one.fits(GRID, rehearsed=True), one.rehearsed)
    return trained, rehearsed, one.diagnoses, one.gain


def make(found: Sequence[tuple[Evidence, Evidence, Tensor, Tensor]], made: dict[str, object]) -> Prior:
    """The prior that these worlds teach."""
    gain = torch.cat([f[3] for f in found])
    diagnoses = torch.cat([f[2] for f in found])
    centre, spread = diagnoses.mean(0), torch.cov(diagnoses.T)
    precision = torch.linalg.inv(spread + 1e-6 * torch.eye(len(spread), dtype=spread.dtype))
    away = diagnoses - centre
    distance = torch.einsum("wd,de,we->w", away, precision, away)
    columns = torch.cat([torch.ones(len(away), 1, dtype=away.dtype), away], 1)
    penalty = torch.diag_embed(torch.tensor([0.0] + [1.0] * away.shape[1], dtype=away.dtype))
    ridge = torch.linalg.solve(columns.T @ columns + penalty, columns.T @ gain)  # [1 + D, C]
    return Prior(
        settings=GRID,
        trained=calibrate(_joined([f[0] for f in found]), gain),
        rehearsed=calibrate(_joined([f[1] for f in found]), gain),
        centre=tuple(centre.tolist()),
        precision=tuple(map(tuple, precision.tolist())),
        limit=float(distance.quantile(0.99)),
        ridge=tuple(map(tuple, ridge.tolist())),
        made={**made, "arms": [arm.name for arm in ARMS]},
    )


def calibrate(seen: Evidence, gain: Float[Tensor, "W C"], steps: int = 400) -> Calibration:
    """Weights of the settings, temper, slope and width under which the arms' true gains are likeliest."""
    settings = seen.log.shape[1]
    log_weight = torch.zeros(settings, dtype=torch.float64, requires_grad=True)
    log_temper, slope, log_widen = (
        torch.full((1,), start, dtype=torch.float64, requires_grad=True) for start in (-0.5, 1.0, 0.2)
    )
    optimiser = torch.optim.Adam([log_weight, log_temper, slope, log_widen], lr=0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        mean, sd = _mixed(seen, log_weight, log_temper.exp(), slope, log_widen.exp())
        off = (gain[:, 1:] - mean[:, 1:]) / sd[:, 1:]  # doing nothing gains nothing
        loss = (off.square() / 2 + sd[:, 1:].log()).mean() + 0.005 * log_weight.square().mean()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        mean, sd = _mixed(seen, log_weight, log_temper.exp(), slope, log_widen.exp())
        gained = lambda c: float(gain.gather(1, (mean - c * sd).argmax(1, keepdim=True)).mean())
        return Calibration(
            log_weight=tuple(log_weight.log_softmax(0).tolist()),
            temper=float(log_temper.exp()),
            slope=float(slope),
            widen=float(log_widen.exp() * ((gain - mean) / sd)[:, 1:].abs().quantile(0.8) / Z80),  # no tail is normal
            caution=max(CAUTIONS, key=gained),
        )


def _mixed(seen: Evidence, log_weight: Tensor, temper: Tensor, slope: Tensor, widen: Tensor) -> tuple[Tensor, Tensor]:
    weight = (log_weight + temper * seen.log).softmax(1)[..., None]  # [W, S, 1]
    mean = (weight * seen.mean).sum(1)
    variance = (weight * (seen.variance + (seen.mean - mean[:, None]).square())).sum(1)
    return slope * mean, widen * (variance + 1e-6).sqrt()


def _joined(parts: Sequence[Evidence]) -> Evidence:
    pick = lambda name: torch.cat([getattr(p, name) for p in parts])
    return Evidence(pick("mean"), pick("variance"), pick("log"))


if __name__ == "__main__":
    main(sys.argv[1:])
