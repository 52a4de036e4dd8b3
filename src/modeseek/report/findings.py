"""One plain sentence under a plot, computed from what it shows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modeseek.report.curves import Curve, number
from modeseek.report.plots import paths

MOST = 4  # methods named one by one in a sentence; of more, those that moved furthest
OTHER_PAIRS = (
    "Every point is of other pairs, longer or shorter: the line shows what was drawn as well as what was learnt. "
    "With eval_size or eval_data the same pairs are measured throughout."
)
FALL = 0.2  # of everything the plot shows: a fall from the peak that is worth a sentence


def best(curves: Sequence[Curve], what: str) -> str:
    """Who ends highest, whether the seeds of the next overlap it, and who fell back from a peak."""
    order = sorted(curves, key=lambda c: -c.last)
    top, words = order[0], []
    near = [c.method for c in order[1:] if max(_ends(c)) >= min(_ends(top))]
    if len(order) == 1:
        words.append(f"{_move(top, what)}.")
    elif (overlap := len(near) == len(order) - 1) or number(order[-1].last) == number(top.last):
        words.append(f"No method stands out: all end {_between(order[-1], top)}")
        words[0] += ", and their seeds overlap." if overlap and len(top.lines) > 1 else "."
    else:
        words.append(f"{top.method} ends highest, at {ended(top)}; {order[-1].method} lowest, at {ended(order[-1])}.")
        if near:
            words.append(f"Seeds of {_list(near)} overlap with those of {top.method}.")
    everything = np.concatenate([line.values for c in curves for line in c.lines])
    for c in order:
        mean = c.values.mean(0) if len(c.steps) else c.lines[0].values
        steps = c.steps if len(c.steps) else c.lines[0].steps
        peak = int(mean.argmax())
        if (
            c.metric.startswith("eval/")
            and mean[peak] - mean[-1] > FALL * float(np.ptp(everything))
            and peak < len(mean) - 1
        ):
            words.append(
                f"{c.method} was at {number(mean[peak])} at step {steps[peak]} and fell to {number(mean[-1])}."
            )
    return " ".join(words)


def furthest(curves: Sequence[Curve], what: str) -> str:
    """Who ends furthest from zero and who nearest: for the KL and for shares of bad text."""
    order = sorted(curves, key=lambda c: -c.last)
    if len(order) == 1:
        return f"{_move(order[0], what)}."
    most, least = order[0], order[-1]
    if number(most.last) == number(least.last):
        return f"All end {_between(least, most)}."
    return f"{most.method} ends at {ended(most)}, the most; {least.method} at {ended(least)}, the least."


def moved(curves: Sequence[Curve], what: str) -> str:
    """From where to where each curve went."""
    named = _furthest_moved(curves)
    return "; ".join(_move(c, what if i == 0 else "") for i, c in enumerate(named)) + _rest(curves)


def chosen(curves: Sequence[Curve], margins: Sequence[Curve]) -> str:
    """Whether the answers that people preferred became less likely, and whether the margin hid it."""
    fell = sorted((c for c in curves if _change(c) < 0), key=_change)
    if not fell:
        return "The chosen responses became no less likely under any method."
    margin = {c.method: _change(c) for c in margins}
    words = []
    for c in fell[:MOST]:
        text = f"{c.method}'s by {number(-_change(c))} nats"
        if margin.get(c.method, 0) > 0:
            text += f" while its margin grew by {number(margin[c.method])}"
        words.append(text)
    rose = [c.method for c in curves if _change(c) >= 0]
    return f"The chosen log-prob fell: {'; '.join(words)}{_rest(fell)}" + (f" Not so {_list(rose)}." if rose else "")


def rejected(curves: Sequence[Curve], chosen: Sequence[Curve]) -> str:
    """Where the rejected responses went, and against the chosen ones."""
    other = {c.method: _change(c) for c in chosen}
    words = []
    for c in _furthest_moved(curves):
        text = f"{c.method} {_sign(_change(c))} by {number(abs(_change(c)))} nats"
        if c.method in other:
            text += f" (chosen: {other[c.method]:+.3g})"
        words.append(text)
    return "; ".join(words) + _rest(curves)


def frontier(kl: Sequence[Curve], reward: Sequence[Curve]) -> str:
    """Which methods no other beats in both reward and KL, at their mean end points."""
    ends = {}
    for k, r in zip(kl, reward, strict=True):
        if found := paths(k, r):
            ends[k.method] = np.mean([(x.last, y.last) for x, y in found], axis=0)
    beaten = {}
    for a, (kl_a, reward_a) in ends.items():
        better = [b for b, (kl_b, reward_b) in ends.items() if kl_b < kl_a and reward_b > reward_a]
        if better:
            beaten[a] = better
    words = [f"{_list(by)} {_verb(by)} with more reward at less KL than {a}." for a, by in beaten.items()]
    if len(ends) > 1 and not beaten:
        words.append("No method ends with more reward at less KL than another.")
    if len(ends) == 1:
        words = [f"{m} ends with reward {number(y)} at a KL of {number(x)} nats." for m, (x, y) in ends.items()]
    return " ".join(words)


def coincide(same: Sequence[Sequence[str]]) -> str:
    """Whose lines or marks a plot has in one place, behind another sentence; nothing where all stand apart."""
    colours = lambda names: "both colours" if len(names) == 2 else "all their colours"
    return "".join(f" {_list(names)} coincide: drawn in {colours(names)}." for names in same)


def ended(curve: Curve) -> str:
    """The mean of where the runs ended, and their range."""
    ends = _ends(curve)
    if len(ends) == 1:
        return number(ends[0])
    return f"{number(curve.last)} ({number(min(ends))} to {number(max(ends))} over {len(ends)} seeds)"


def _between(low: Curve, high: Curve) -> str:
    a, b = number(low.last), number(high.last)
    return f"at {a}" if a == b else f"between {a} and {b}"


def _furthest_moved(curves: Sequence[Curve]) -> list[Curve]:
    named = {c.method for c in sorted(curves, key=lambda c: -abs(_change(c)))[:MOST]}
    return [c for c in curves if c.method in named]


def _rest(curves: Sequence[Curve]) -> str:
    return f"; {len(curves) - MOST} more moved no further." if len(curves) > MOST else "."


def _ends(curve: Curve) -> list[float]:
    return [line.last for line in curve.lines]


def _change(curve: Curve) -> float:
    return curve.last - curve.first


def _move(curve: Curve, what: str) -> str:
    return f"{curve.method}{what and ': ' + what} from {number(curve.first)} to {ended(curve)}"


def _sign(change: float) -> str:
    return "fell" if change < 0 else "rose"


def _verb(names: Sequence[str]) -> str:
    return "ends" if len(names) == 1 else "end"


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
