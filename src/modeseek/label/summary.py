"""What people's labels are worth: agreement, bias towards a side and towards length, haste, disagreements."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import median
from typing import Any, Literal

from scipy import stats

from modeseek import estimate
from modeseek.evaluate.agreement import alpha, cohen_kappa
from modeseek.label.app import FAST, words

SLOW = (300.0, 5.0)  # slow: more seconds than this, and than this many times the person's median
SHOWN = 50  # disagreements that the page shows

QUERY = """select labels.pair, annotator, preferred, shown, seconds, note, prompts.prompt, x.response, y.response
    from labels, pairs, prompts, responses x, responses y
    where labels.kind = 'person' and undone is null and pairs.id = labels.pair and prompts.id = pairs.prompt
    and x.id = pairs.a and y.id = pairs.b order by labels.id"""


@dataclass(frozen=True, kw_only=True)
class Given:
    """One label as a person gave it. `prompt`, `a` and `b` are plain text."""

    pair: int
    annotator: str
    preferred: Literal["a", "b", "tie", "skip"]
    order: str  # ab: a stood first
    seconds: float | None
    note: str
    prompt: str
    a: str
    b: str

    @property
    def first(self) -> bool | None:
        """Whether the response that stood first was preferred; None for a tie or a skip."""
        return None if self.preferred in ("tie", "skip") else self.preferred == self.order[0]

    @property
    def longer(self) -> bool | None:
        """Whether the longer was preferred, in words; None for a tie, a skip, or equal lengths."""
        gap = len(words(self.a)) - len(words(self.b))
        return None if self.preferred in ("tie", "skip") or gap == 0 else (self.preferred == "a") == (gap > 0)

    @property
    def fast(self) -> bool:
        """Answered before anybody could have read both responses."""
        read = (len(words(self.a)) + len(words(self.b))) / FAST
        return self.preferred != "skip" and self.seconds is not None and self.seconds < read


def given(rows: Iterable[Sequence[Any]]) -> list[Given]:
    """What `QUERY` finds in a store."""
    found = list[Given]()
    for pair, annotator, preferred, shown, seconds, note, *texts in rows:
        prompt, a, b = (_plain(json.loads(text)) for text in texts)
        label = Given(
            pair=pair,
            annotator=annotator,
            preferred=preferred,
            order=shown or "ab",
            seconds=seconds,
            note=note,
            prompt=prompt,
            a=a,
            b=b,
        )
        found.append(label)
    return found


def summarise(labels: Sequence[Given], *, level: float = 0.95) -> dict[str, Any]:
    """Plain data for the page `modeseek.report.labels` makes."""
    people = sorted({x.annotator for x in labels})
    by_pair = defaultdict[int, list[Given]](list)
    for x in labels:
        by_pair[x.pair].append(x)
    units = [[x.preferred for x in group if x.preferred != "skip"] for group in by_pair.values()]
    shared = [unit for unit in units if len(unit) > 1]
    found = alpha(units, level=level)
    return {
        "labels": sum(x.preferred != "skip" for x in labels),
        "skips": sum(x.preferred == "skip" for x in labels),
        "pairs": len(by_pair),
        "overlap": len(shared),
        "preferred": dict(Counter(x.preferred for x in labels)),
        "alpha": None if found is None else _interval(found),
        "kappas": _kappas(by_pair, people),
        "people": [_person([x for x in labels if x.annotator == name], level) for name in people],
        "everybody": _person(labels, level) if len(people) > 1 else None,
        "disagreements": _disagreements(by_pair),
        "level": level,
    }


def _person(labels: Sequence[Given], level: float) -> dict[str, Any]:
    said = [x for x in labels if x.preferred != "skip"]
    timed = [x.seconds for x in said if x.seconds is not None]
    usual = median(timed) if timed else None
    slow = [
        x for x in said if usual is not None and x.seconds is not None and x.seconds > max(SLOW[0], SLOW[1] * usual)
    ]
    return {
        "name": labels[0].annotator if len({x.annotator for x in labels}) == 1 else "everybody",
        "labels": len(said),
        "skips": len(labels) - len(said),
        "ties": sum(x.preferred == "tie" for x in said),
        "seconds": usual,
        "fast": sum(x.fast for x in said),
        "slow": len(slow),
        "first": _share([x for x in said if x.first is not None], lambda x: bool(x.first), level),
        "longer": _share([x for x in said if x.longer is not None], lambda x: bool(x.longer), level),
    }


def _share(labels: Sequence[Given], is_so: Callable[[Given], bool], level: float) -> dict[str, Any] | None:
    """A share with its interval over pairs, and the chance of one so far from a half if there were no bias."""
    if not labels:
        return None
    pairs = defaultdict[int, list[float]](list)
    for x in labels:
        pairs[x.pair].append(float(is_so(x)))
    means = [sum(v) / len(v) for v in pairs.values()]
    found = _interval(estimate.share(means, level=level, name="share"))
    hits = sum(is_so(x) for x in labels)
    return found | {"labels": len(labels), "p": float(stats.binomtest(hits, len(labels)).pvalue)}


def _kappas(by_pair: dict[int, list[Given]], people: Sequence[str]) -> list[dict[str, Any]]:
    said = {pair: {x.annotator: x.preferred for x in group if x.preferred != "skip"} for pair, group in by_pair.items()}
    found = []
    for one, other in combinations(people, 2):
        both = [(labels[one], labels[other]) for labels in said.values() if one in labels and other in labels]
        if both:
            a, b = zip(*both, strict=True)
            same = sum(x == y for x, y in both) / len(both)
            found.append({"one": one, "other": other, "pairs": len(both), "same": same, "kappa": cohen_kappa(a, b)})
    return found


def _disagreements(by_pair: dict[int, list[Given]]) -> dict[str, Any]:
    """Opposite choices first, then a choice against a tie."""
    found = []
    for pair, group in by_pair.items():
        kinds = {x.preferred for x in group if x.preferred != "skip"}
        if len(kinds) > 1:
            said = [{"name": x.annotator, "preferred": x.preferred, "note": x.note} for x in group]
            texts = {name: getattr(group[0], name) for name in ("prompt", "a", "b")}
            found.append({"pair": pair, "opposite": {"a", "b"} <= kinds, "said": said, **texts})
    found.sort(key=lambda x: (not x["opposite"], x["pair"]))
    return {"all": len(found), "opposite": sum(x["opposite"] for x in found), "shown": found[:SHOWN]}


def _interval(found: estimate.Estimate) -> dict[str, Any]:
    return {name: value for name, value in asdict(found).items() if name in ("value", "low", "high", "n")}


def _plain(text: Any) -> str:
    return text if isinstance(text, str) else "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in text)
