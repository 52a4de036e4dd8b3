"""What worlds have taught: how to read pairs before any label is bought, and where that knowledge ends.

Fitted by `fit_prior.py` on worlds whose truth is known, shipped as JSON: the settings under which pairs are read, how
probable each is, what makes intervals honest, how much caution costs least, the range of diagnoses.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from modeseek.advise.belief import Belief, Fits, Setting
from modeseek.advise.diagnose import NAMES

Z80 = 1.2815515655446004  # a normal is within so many standard deviations 80% of the time
FURTHEST = 2.5  # standard deviations of a diagnosis beyond which widths grow no more


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What turns the mixture into a belief: fitted once for trained candidates, once for rehearsed ones."""

    log_weight: tuple[float, ...]  # of each setting
    temper: float  # how far the pairs may choose among the settings: 1 is Bayes' rule
    slope: float  # what predicted gains are multiplied by
    widen: float  # what their standard deviations are multiplied by where all diagnoses are as usual
    own: float  # standard deviation of what no setting says of a response
    by_diagnosis: tuple[float, ...]  # what one standard deviation of a diagnosis adds to the log of the width
    caution: float  # standard deviations that are taken off a gain before candidates are compared


@dataclass(frozen=True)
class Prior:
    """The shipped knowledge."""

    settings: tuple[Setting, ...]
    trained: Calibration
    rehearsed: Calibration
    centre: tuple[float, ...]  # of the diagnoses
    spread: tuple[float, ...]  # their standard deviations
    precision: tuple[tuple[float, ...], ...]  # inverse covariance of the diagnoses
    limit: float  # squared distance that 99% of the worlds lie within
    ridge: tuple[tuple[float, ...], ...]  # diagnoses to gains, the first row a constant: for comparison only
    made: dict[str, Any]  # from what

    @staticmethod
    def load(path: Path | None = None) -> Prior:
        """The one that is shipped, or another that `fit_prior.py` wrote."""
        file = resources.files("modeseek.configs").joinpath("advise/prior.json") if path is None else path
        tree = json.loads(file.read_text())
        return Prior(
            settings=tuple(Setting(**s) for s in tree["settings"]),
            trained=Calibration(**_tuples(tree["trained"])),
            rehearsed=Calibration(**_tuples(tree["rehearsed"])),
            centre=tuple(tree["centre"]),
            spread=tuple(tree["spread"]),
            precision=tuple(map(tuple, tree["precision"])),
            limit=tree["limit"],
            ridge=tuple(map(tuple, tree["ridge"])),
            made=tree["made"],
        )

    def save(self, path: Path) -> None:
        """As JSON, numbers cut to what matters."""
        path.write_text(json.dumps(_short(asdict(self)), indent=1) + "\n")

    def belief(self, fits: Fits, found: Float[Tensor, "W D"], *, rehearsed: bool = False) -> Belief:
        """What to think of every response before a judge has said a word. `found` are the diagnoses."""
        by = self.rehearsed if rehearsed else self.trained
        log_weight = torch.tensor(by.log_weight, dtype=torch.float64)
        away = standardised(found, torch.tensor(self.centre), torch.tensor(self.spread))
        width = by.widen * (away @ torch.tensor(by.by_diagnosis, dtype=torch.float64)).exp()
        return fits.mixed(log_weight, by.temper, by.slope, width, by.own)

    def distance(self, found: Float[Tensor, "W D"]) -> Float[Tensor, " W"]:
        """Squared Mahalanobis distance of diagnoses from those of the worlds that taught the prior."""
        away = found - torch.tensor(self.centre, dtype=torch.float64)
        return torch.einsum("wd,de,we->w", away, self._precision, away)

    def outside(self, found: Float[Tensor, "W D"]) -> Bool[Tensor, " W"]:
        """Where the prior does not know."""
        return self.distance(found) > self.limit

    def furthest(self, found: Float[Tensor, " D"]) -> str:
        """The diagnosis that is most unlike the worlds'."""
        away = found - torch.tensor(self.centre, dtype=torch.float64)
        return NAMES[int((away.square() * self._precision.diagonal()).argmax())]

    @cached_property
    def _precision(self) -> Tensor:
        return torch.tensor(self.precision, dtype=torch.float64)


def standardised(found: Float[Tensor, "W D"], centre: Tensor, spread: Tensor) -> Float[Tensor, "W D"]:
    """Diagnoses in standard deviations from the worlds', cut where the worlds end."""
    return ((found - centre) / spread).clamp(-FURTHEST, FURTHEST)


def predicted(held: Belief, moved: Float[Tensor, "W C M"]) -> tuple[Float[Tensor, "W C"], Float[Tensor, "W C"]]:
    """Each arm's gain over the reference, and its standard deviation."""
    mean, covariance = held.of(moved)
    return mean, covariance.diagonal(dim1=1, dim2=2).clamp(min=1e-12).sqrt()


def choose(mean: Float[Tensor, "W C"], sd: Float[Tensor, "W C"], caution: float) -> Tensor:
    """The arm with the largest gain after caution."""
    return (mean - caution * sd).argmax(-1)


def safe(mean: Float[Tensor, "W C"], sd: Float[Tensor, "W C"]) -> Tensor:
    """The arm with the largest gain of those whose 80% interval is above zero; where there is none, doing nothing,
    which is the first."""
    sure = mean > Z80 * sd
    sure[:, 0] = True
    return mean.masked_fill(~sure, -torch.inf).argmax(-1)


def _tuples(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in tree.items()}


def _short(x: Any) -> Any:
    if isinstance(x, float):
        return float(f"{x:.5g}")
    if isinstance(x, dict):
        return {key: _short(value) for key, value in x.items()}
    return [_short(value) for value in x] if isinstance(x, list | tuple) else x
