"""What worlds have taught: how to read pairs before any label is bought, and where that knowledge ends.

Fitted by `fit_prior.py` on worlds whose truth is known, shipped as JSON: the settings under which pairs are read, how
probable each is, three numbers that make intervals honest, how much caution costs least, the range of diagnoses.
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

from modeseek.advise import belief
from modeseek.advise.belief import Belief, Setting
from modeseek.advise.diagnose import NAMES
from modeseek.advise.worlds import Worlds


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What turns the mixture into a belief: fitted once for trained candidates, once for rehearsed ones."""

    log_weight: tuple[float, ...]  # of each setting
    temper: float  # how far the pairs may choose among the settings: 1 is Bayes' rule
    slope: float  # what predicted gains are multiplied by
    widen: float  # what their standard deviations are multiplied by
    caution: float  # standard deviations that are taken off a gain before candidates are compared


@dataclass(frozen=True)
class Prior:
    """The shipped knowledge."""

    settings: tuple[Setting, ...]
    trained: Calibration
    rehearsed: Calibration
    centre: tuple[float, ...]  # of the diagnoses
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
            precision=tuple(map(tuple, tree["precision"])),
            limit=tree["limit"],
            ridge=tuple(map(tuple, tree["ridge"])),
            made=tree["made"],
        )

    def save(self, path: Path) -> None:
        """As JSON, numbers cut to what matters."""
        path.write_text(json.dumps(_short(asdict(self)), indent=1) + "\n")

    def believe(self, worlds: Worlds, *, rehearsed: bool = False) -> Belief:
        """What to think of every response before a judge has said a word."""
        fits = belief.fit(
            worlds.seen.flatten(1, 2), worlds.pairs, worlds.count, worlds.proxy, worlds.given, self.settings
        )
        return calibrated(fits, self.rehearsed if rehearsed else self.trained)

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


def calibrated(fits: belief.Fits, by: Calibration) -> Belief:
    """The mixture that a calibration makes of the fits."""
    log_weight = torch.tensor(by.log_weight, dtype=torch.float64)
    return fits.mixed(log_weight, by.temper, by.slope, by.widen)


def predicted(held: Belief, moved: Float[Tensor, "W C M"]) -> tuple[Float[Tensor, "W C"], Float[Tensor, "W C"]]:
    """Each arm's gain over the reference, and its standard deviation."""
    mean, covariance = held.of(moved)
    return mean, covariance.diagonal(dim1=1, dim2=2).clamp(min=1e-12).sqrt()


def choose(mean: Float[Tensor, "W C"], sd: Float[Tensor, "W C"], caution: float) -> Tensor:
    """The arm with the largest gain after caution."""
    return (mean - caution * sd).argmax(-1)


def _tuples(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in tree.items()}


def _short(x: Any) -> Any:
    if isinstance(x, float):
        return float(f"{x:.5g}")
    if isinstance(x, dict):
        return {key: _short(value) for key, value in x.items()}
    return [_short(value) for value in x] if isinstance(x, list | tuple) else x
