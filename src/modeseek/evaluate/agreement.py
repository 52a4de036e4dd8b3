"""Whether annotators agree: counts against a gold label, Cohen's kappa of two, Krippendorff's alpha of any number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from modeseek.estimate import Estimate

Label = Hashable | None  # None: not labelled by this annotator


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """One annotator against gold labels. Precision, recall and F1 are means over the classes (macro)."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    n: int
    confusion: dict[tuple[Hashable, Hashable], int]  # (gold, said) -> pairs

    @property
    def agreed(self) -> int:
        """Pairs of which both say the same."""
        return sum(n for (gold, said), n in self.confusion.items() if gold == said)


def agreement(said: Sequence[Hashable], gold: Sequence[Hashable]) -> Agreement:
    """Accuracy and macro precision, recall and F1, as PandaLM's evaluation prints them.

    The classes are those that either has. A class that nobody said has precision 0; F1 is the mean of classes' F1.
    """
    _same_length(said, gold)
    counts = Counter(zip(gold, said, strict=True))
    classes = sorted({*said, *gold}, key=repr)
    told = {c: sum(n for (_, s), n in counts.items() if s == c) for c in classes}
    true = {c: sum(n for (g, _), n in counts.items() if g == c) for c in classes}
    precision = [counts[c, c] / told[c] if told[c] else 0.0 for c in classes]
    recall = [counts[c, c] / true[c] if true[c] else 0.0 for c in classes]
    f1 = [2 * p * r / (p + r) if p + r else 0.0 for p, r in zip(precision, recall, strict=True)]
    return Agreement(
        accuracy=sum(counts[c, c] for c in classes) / len(gold),
        precision=float(np.mean(precision)),
        recall=float(np.mean(recall)),
        f1=float(np.mean(f1)),
        n=len(gold),
        confusion=dict(counts),
    )


def majority(labels: Sequence[Hashable], otherwise: Hashable = None) -> Hashable:
    """The label that more annotators gave than any other; `otherwise` where two share the lead."""
    ranked = Counter(labels).most_common(2)
    return ranked[0][0] if len(ranked) == 1 or ranked[0][1] > ranked[1][1] else otherwise


def cohen_kappa(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """(observed - expected agreement) / (1 - expected), chance from each annotator's own shares (Cohen 1960).

    NaN where both gave one and the same label throughout: nothing could have disagreed.
    """
    _same_length(a, b)
    n, of_a, of_b = len(a), Counter(a), Counter(b)
    observed = sum(x == y for x, y in zip(a, b, strict=True)) / n
    expected = sum(of_a[c] * of_b[c] for c in of_a) / n**2
    return float("nan") if expected == 1 else (observed - expected) / (1 - expected)


def krippendorff_alpha(units: Iterable[Sequence[Label]]) -> float:
    """Krippendorff's alpha for nominal labels, any number of annotators, with missing labels (None).

    alpha = 1 - (n - 1) sum_u sum_{c != k} o_uck / sum_{c != k} n_c n_k, over units that two or more have labelled
    (Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section D). 1: they agree; 0: as by chance.
    NaN where no unit has two labels or all labels are one: nothing could have disagreed.
    """
    observed, totals = _disagreement(units)
    return _alpha(observed.sum(), totals.sum(0))


def alpha(
    units: Iterable[Sequence[Label]],
    *,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
    name: str = "krippendorff_alpha",
) -> Estimate | None:
    """The same with a percentile bootstrap over units; None where it is not defined.

    Resamples in which nothing could disagree are left out.
    """
    observed, totals = _disagreement(units)
    value = _alpha(observed.sum(), totals.sum(0))
    if np.isnan(value):
        return None
    rng = np.random.default_rng(seed)
    n = len(observed)
    drawn = (rng.multinomial(n, np.full(n, 1 / n)) for _ in range(resamples))
    found = np.array([_alpha(float(w @ observed), w @ totals) for w in drawn])
    found = found[~np.isnan(found)]
    tail = (1 - level) / 2
    low, high = (float(x) for x in np.quantile(found, [tail, 1 - tail])) if len(found) else (value, value)
    return Estimate(
        value=value,
        low=low,
        high=high,
        n=n,
        name=name,
        standard_error=float(found.std(ddof=1)) if len(found) > 1 else float("inf"),
        level=level,
        interval="percentile bootstrap",
    )


def _disagreement(units: Iterable[Sequence[Label]]) -> tuple[Float[np.ndarray, " U"], Float[np.ndarray, "U C"]]:
    """For each unit with two labels or more: its pairs that differ over (labels - 1), and its labels of each class."""
    counted = [Counter(label for label in unit if label is not None) for unit in units]
    counted = [c for c in counted if c.total() > 1]
    classes = sorted({label for c in counted for label in c}, key=repr)
    totals = np.array([[c[k] for k in classes] for c in counted], dtype=np.float64).reshape(len(counted), len(classes))
    m = totals.sum(1)
    return (m**2 - (totals**2).sum(1)) / np.maximum(m - 1, 1), totals


def _alpha(observed: float, classes: Float[np.ndarray, " C"]) -> float:
    n = classes.sum()
    expected = n**2 - (classes**2).sum()
    return float("nan") if expected == 0 else float(1 - (n - 1) * observed / expected)


def _same_length(a: Sequence[Hashable], b: Sequence[Hashable]) -> None:
    if len(a) != len(b) or not len(a):
        raise ValueError(f"agreement: found {len(a)} and {len(b)} labels, expected as many of each, one at least")
