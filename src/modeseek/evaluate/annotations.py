"""Raw annotations of pairs, in whatever code they were written, as preferences between 0 and 1."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

Unknown = Literal["refuse", "drop", "tie"]

PANDALM = {"0": 0.5, "1": 1.0, "2": 0.0, "Tie": 0.5}  # three codes of a tie: 0, "0" and "Tie"
LETTERS = {"A": 1.0, "B": 0.0, "C": 0.5, "tie": 0.5}


@dataclass(frozen=True, kw_only=True)
class Preferences:
    """`values[i]`: 1 where ours was preferred in the i-th pair, 0 where theirs was, between for a tie or a probability.

    NaN where the pair has no annotation; `dropped` counts those, so that rows keep their places.
    """

    values: Float[np.ndarray, " P"]
    dropped: int


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What a leaderboard prints. Shares, not percentages."""

    win_rate: float  # a tie half a win, a probability as it stands
    standard_error: float  # of `win_rate`: the deviation over pairs (n - 1) by the root of n; NaN for one pair
    discrete_win_rate: float  # each preference rounded to a win, a tie or a loss first
    wins: int
    losses: int
    ties: int
    n: int
    dropped: int  # pairs without an annotation


def alpaca_eval(raw: Iterable[object]) -> Preferences:
    """AlpacaEval's `preference`: 1 the first output (the baseline), 2 the second, 1 to 2 the second's probability.

    0 and 1.5 are ties; None and NaN are no annotation. Ours is the second output, as on the leaderboard.
    """
    values = list[float]()
    for i, code in enumerate(raw):
        try:
            x = math.nan if code is None else float(code)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise ValueError(f"preference {i}: found {code!r}, expected a number from 1 to 2, 0 or null") from None
        if not (math.isnan(x) or x == 0 or 1 <= x <= 2):
            raise ValueError(f"preference {i}: found {x}, expected a number from 1 to 2, 0 or null")
        values.append(0.5 if x == 0 else x - 1)
    return _made(values)


def coded(raw: Iterable[object], codes: Mapping[str, float], *, unknown: Unknown = "refuse") -> Preferences:
    """Annotations by a table from what was written (as text) to our share of the win, such as `PANDALM`.

    What the table does not have is refused, or on request dropped or taken for a tie.
    """
    values = list[float]()
    for i, code in enumerate(raw):
        known = codes.get(str(code))
        if known is None and unknown == "refuse":
            have = ", ".join(codes)
            raise ValueError(f"annotation {i}: found {code!r}, expected one of {have}; or say what unknown ones are")
        values.append(known if known is not None else 0.5 if unknown == "tie" else math.nan)
    return _made(values)


def tally(preference: ArrayLike) -> Tally:
    """Win rate, standard error and counts of preferences between 0 and 1, NaN where there is none.

    These are AlpacaEval's `win_rate`, `standard_error` and `discrete_win_rate` (tatsu-lab/alpaca_eval,
    `metrics/helpers.py`) divided by 100. Rounding is as there: exactly 0.5 is a tie, all else its nearer side.
    """
    every = np.asarray(preference, dtype=np.float64)
    x = every[~np.isnan(every)]
    if not len(x):
        raise ValueError("tally: found no annotated pair, expected one at least")
    if x.min() < 0 or x.max() > 1:
        raise ValueError(f"tally: found preferences from {x.min():g} to {x.max():g}, expected 0 to 1")
    wins, losses = int((x > 0.5).sum()), int((x < 0.5).sum())
    ties, n = len(x) - wins - losses, len(x)
    return Tally(
        win_rate=float(x.mean()),
        standard_error=float(x.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan,
        discrete_win_rate=(wins + ties / 2) / n,
        wins=wins,
        losses=losses,
        ties=ties,
        n=n,
        dropped=len(every) - n,
    )


def both_orders(first: ArrayLike, second: ArrayLike) -> Float[np.ndarray, " P"]:
    """One preference a pair from the two orders it was asked in, both as our share of the win.

    A response wins only if it wins both times: verdicts that change with the order are ties. NaN where either is.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"both_orders: found {len(a)} and {len(b)} verdicts, expected one of each a pair")
    agree = np.where((a > 0.5) & (b > 0.5), 1.0, np.where((a < 0.5) & (b < 0.5), 0.0, 0.5))
    return np.where(np.isnan(a) | np.isnan(b), np.nan, agree)


def _made(values: list[float]) -> Preferences:
    found = np.array(values, dtype=np.float64)
    return Preferences(values=found, dropped=int(np.isnan(found).sum()))
