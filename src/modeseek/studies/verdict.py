"""What claims come to, from rows alone: each part tested over paired seeds, Holm's correction over all parts of a set.

A part holds where its test is significant, is refuted where the test of its negation is, and is else undecided: that a
difference is not significant is never a verdict. A seed that is missing or whose number is not finite is counted,
and its part stays undecided: to leave out runs that diverged would flatter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from modeseek.estimate import Estimate, bca, holm, mean, p_above, p_below, tost
from modeseek.studies.base import AT, At, Cell, Claim, Contrast, Part, Study
from modeseek.studies.store import Trace

ALPHA = 0.05
ROUNDING = 1e-12  # of the terms' sizes
FEWEST = 5  # seeds from which a bootstrap interval is shown

Status = Literal["holds", "refuted", "undecided"]
Verdict = Literal["replicated", "mixed", "not replicated", "undecided"]
Traces = Mapping[str, Mapping[int, Trace]]  # of one cell: metric, seed
Read = Callable[[Cell], Traces]


@dataclass(frozen=True, kw_only=True)
class Tested:
    """A part with its numbers. `estimate` is of the contrast's mean over seeds, unadjusted."""

    part: Part
    n: int  # seeds with a finite number
    wanted: int  # seeds that were planned
    lost: int  # seeds whose number is NaN or infinite
    estimate: Estimate | None  # Student's t; None where no seed has a number
    bca: Estimate | None  # None below FEWEST seeds
    p: float  # of the part's negation: small where the part holds
    p_against: float  # of the part itself: small where it is refuted
    reason: str = ""  # why it was not tested
    adjusted: float = 1.0
    adjusted_against: float = 1.0

    @property
    def status(self) -> Status:
        """Decided at ALPHA, after correction."""
        if self.adjusted <= ALPHA:
            return "holds"
        return "refuted" if self.adjusted_against <= ALPHA else "undecided"


@dataclass(frozen=True)
class Judged:
    """A claim with its tested parts."""

    claim: Claim
    parts: tuple[Tested, ...]

    @property
    def verdict(self) -> Verdict:
        """Replicated: every part holds. Mixed: some do. Not replicated: none does and one is refuted."""
        statuses = [part.status for part in self.parts]
        if all(s == "holds" for s in statuses):
            return "replicated"
        if "holds" in statuses:
            return "mixed"
        return "not replicated" if "refuted" in statuses else "undecided"


def judge(study: Study, read: Read, planned: Callable[[Cell], Sequence[int]]) -> list[Judged]:
    """The verdicts of a study. `planned` says which seeds a cell was to run.

    Parts that could not be tested count in the family with p = 1, so that leaving some out never helps the others.
    """
    tested = [[_test(part, read, planned) for part in claim.parts] for claim in study.claims]
    flat = [t for parts in tested for t in parts]
    if not flat:
        return []
    adjusted, against = holm([t.p for t in flat]), holm([t.p_against for t in flat])
    found = iter(zip(adjusted.tolist(), against.tolist(), strict=True))
    return [
        Judged(claim, tuple(_adjust(t, *next(found)) for t in parts))
        for claim, parts in zip(study.claims, tested, strict=True)
    ]


def pull(trace: Trace, at: At) -> float:
    """One number of a trace. `area` is the mean over steps, by trapezoids; `slope` is per step."""
    steps, values = trace.steps.astype(np.float64), trace.values
    match at:
        case "end":
            return float(values[-1])
        case "start":
            return float(values[0])
        case "highest":
            return float(np.max(values))
        case "lowest":
            return float(np.min(values))
        case "area":
            return float(np.trapezoid(values, steps) / np.ptp(steps)) if len(steps) > 1 else float(values[0])
        case "slope":
            last = steps >= steps[-1] - np.ptp(steps) / 3
            if last.sum() < 2:
                raise ValueError("slope: the final third has a single checkpoint, expected at least two")
            x = steps[last] - steps[last].mean()
            return float((x * values[last]).sum() / (x * x).sum())
    raise ValueError(f"at: {at!r}, expected one of {', '.join(AT)}")


def per_seed(contrast: Contrast, read: Read, seeds: Sequence[int]) -> dict[int, float]:
    """The contrast of each of these seeds that has every term. A metric that no seed has is an error.

    Terms that cancel up to rounding are zero: seeds that round alike would else look significant.
    """
    terms: dict[int, list[float]] = {seed: [] for seed in seeds}
    for coefficient, cell, metric, at in contrast.terms:
        traces = read(cell)
        if traces and metric not in traces:
            raise ValueError(f"{cell} has no metric {metric!r}; it has {', '.join(traces)}")
        told = traces.get(metric, {})
        terms = {s: [*found, coefficient * pull(told[s], at)] for s, found in terms.items() if s in told}
    return {seed: _sum(found) for seed, found in terms.items()}


def _sum(terms: Sequence[float]) -> float:
    """NaN where a term is, or where infinities cancel."""
    x = np.array(terms)
    if not np.isfinite(x).all():
        with np.errstate(invalid="ignore"):
            return float(x.sum())
    total = float(x.sum())
    return 0.0 if abs(total) <= ROUNDING * float(np.abs(x).sum()) else total


def _test(part: Part, read: Read, planned: Callable[[Cell], Sequence[int]]) -> Tested:
    seeds = _common([planned(cell) for _, cell, _, _ in part.contrast.terms])
    try:
        found = per_seed(part.contrast, read, seeds)
    except ValueError as error:
        found, reason = {}, str(error)
    else:
        reason = "" if len(found) == len(seeds) else f"{len(seeds) - len(found)} of {len(seeds)} seeds have no rows"
    values = np.array(list(found.values()), dtype=np.float64)
    finite = values[np.isfinite(values)]
    lost = len(values) - len(finite)
    if lost and not reason:
        reason = f"{lost} of {len(seeds)} seeds are not finite"
    if len(finite) < 2 and not reason:
        reason = f"{len(finite)} seed: no interval"
    p, against = (1.0, 1.0) if reason else _p_values(part, finite)
    return Tested(
        part=part,
        n=len(finite),
        wanted=len(seeds),
        lost=lost,
        estimate=mean(finite) if len(finite) else None,
        bca=bca(finite) if len(finite) >= FEWEST else None,
        p=p,
        p_against=against,
        reason=reason,
    )


def _p_values(part: Part, x: np.ndarray) -> tuple[float, float]:
    """Of the part and of its negation. Beyond either end of an equivalence margin counts twice, for two ends."""
    match part.relation:
        case "greater":
            return p_above(x, part.margin), p_below(x, part.margin)
        case "less":
            return p_below(x, -part.margin), p_above(x, -part.margin)
        case "equal":
            outside = min(p_above(x, part.margin), p_below(x, -part.margin))
            return tost(x, part.margin), min(1.0, 2 * outside)


def _adjust(tested: Tested, adjusted: float, against: float) -> Tested:
    return dataclasses.replace(tested, adjusted=adjusted, adjusted_against=against)


def _common(plans: Sequence[Sequence[int]]) -> list[int]:
    """Seeds that every cell was to run, in the first one's order."""
    return [s for s in plans[0] if all(s in plan for plan in plans[1:])]
