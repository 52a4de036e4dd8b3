"""What an evaluation found as plain data: rows for the terminal and a run's folder, and all that its page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from modeseek.batch import Batch
from modeseek.estimate import Estimate
from modeseek.evaluate.compare import Evaluation
from modeseek.evaluate.frontier import BestOf
from modeseek.evaluate.several import Several
from modeseek.evaluate.sizes import prompts_needed, smallest_difference
from modeseek.rewards import Decoder

SHOWN = 200  # samples that the page holds: those that differ most and as many that hardly do
ROW = ("name", "value", "low", "high", "n", "standard_error")
DIFFERENCES = (0.1, 0.05, 0.02, 0.01)  # of a win rate, in the table of sizes


def rows(found: Several, *, judged: bool = False) -> list[dict[str, Any]]:
    """One row a number: `name, value, low, high, n, standard_error`, and of whom where there are several.

    A run's results are rows without `policy`. Where a judge decided, the reward is its verdict and is not repeated.
    """
    several_policies = len({p for p, _ in found.pairs}) > 1
    several_baselines = len({b for _, b in found.pairs}) > 1
    made = list[dict[str, Any]]()
    for (policy, baseline), evaluation in found.pairs.items():
        who = {"policy": policy} if several_policies else {}
        who |= {"against": baseline} if several_baselines else {}
        for e in _numbers(evaluation, found, (policy, baseline), judged):
            made.append(who | row(e))
    for policy, e in found.over_baselines.items():
        made.append(({"policy": policy} if several_policies else {}) | {"against": "all baselines"} | row(e))
    for baseline, o in found.over_seeds.items():
        who = {"policy": f"all {o.seeds} seeds"} | ({"against": baseline} if several_baselines else {})
        made.append(who | row(o.estimate))
    return made


def _numbers(e: Evaluation, found: Several, pair: tuple[str, str], judged: bool) -> list[Estimate]:
    numbers = [x for x in e.estimates() if not (judged and "reward" in x.name)]
    if pair in found.controlled:
        at = next(i for i, x in enumerate(numbers) if x.name == "win_rate")
        numbers.insert(at + 1, found.controlled[pair].estimate)
    return numbers


def exhibit(
    found: Several,
    decoder: Decoder,
    *,
    title: str,
    told: Mapping[str, Any],
    best_of: Sequence[BestOf] = (),
    tasks: Sequence[Estimate] = (),
    judge: Mapping[str, int] | None = None,
    our_decoder: Decoder | None = None,
) -> dict[str, Any]:
    """Everything that `modeseek.report.evaluation` shows. Samples are those of the first policy and baseline.

    `decoder` reads the baseline's tokens and the prompts; `our_decoder` the policy's, where they are others.
    """
    pair = next(iter(found.pairs))
    wins = found.wins[pair]
    spread = float(np.std(wins, ddof=1)) if len(wins) > 1 else 0.5
    return {
        "title": title,
        "told": dict(told),
        "policies": list(dict.fromkeys(p for p, _ in found.pairs)),
        "baselines": list(dict.fromkeys(b for _, b in found.pairs)),
        "prompts": len(wins),
        "rows": rows(found, judged=judge is not None),
        "seeds": [
            {"against": b, "seeds": o.seeds, "seed": o.seed_deviation, "prompt": o.prompt_deviation, "noise": o.noise}
            for b, o in found.over_seeds.items()
        ],
        "controlled": [
            {"policy": p, "against": b, "raw": c.raw, "value": c.estimate.value, "extreme": c.extreme}
            | asdict(c.fit.coefficients)
            for (p, b), c in found.controlled.items()
        ],
        "sizes": {
            "deviation": spread,
            "smallest": smallest_difference(len(wins), deviation=spread) if spread else None,
            "needed": [{"difference": d, "prompts": prompts_needed(d, deviation=spread or 0.5)} for d in DIFFERENCES],
        },
        "points": [_cells(asdict(p), ("kl", "reward", "gold")) for p in found.points],
        "overoptimised": None if found.overoptimised is None else _cells(asdict(found.overoptimised), ("drop",)),
        "best_of": [_cells(asdict(b), ("proxy", "gold", "win_rate")) for b in best_of],
        "tasks": [row(e) for e in tasks],
        "judge": None if judge is None else dict(judge),
        "samples": samples(found.pairs[pair], wins, decoder, our_decoder=our_decoder),
    }


def samples(
    found: Evaluation, wins: np.ndarray, decoder: Decoder, shown: int = SHOWN, *, our_decoder: Decoder | None = None
) -> list[dict[str, Any]]:
    """First answers of both to each prompt, where the policies differ most first: by reward, then by length.

    Beyond `shown` prompts those in the middle are left out: the page is for the extremes.
    """
    every = list[dict[str, Any]]()
    for ours, theirs in zip(found.ours, found.theirs, strict=True):
        for p in range(len(ours)):
            one, other = _sample(ours, p, our_decoder or decoder), _sample(theirs, p, decoder)
            prompt = decoder.decode(ours.prompt[p][ours.prompt_mask[p]].tolist())
            every.append({"prompt": prompt, "ours": one, "theirs": other, "win": float(wins[len(every)])})
    gap = lambda s, key: s["ours"][key] - s["theirs"][key]
    every.sort(key=lambda s: (-abs(gap(s, "reward")), -abs(gap(s, "length"))))
    if len(every) <= shown:
        return every
    return [*every[: shown - shown // 2], *every[-(shown // 2) :]]


def _sample(batch: Batch, p: int, decoder: Decoder) -> dict[str, Any]:
    return {
        "text": decoder.decode(batch.response[p, 0][batch.mask[p, 0]].tolist()),
        "reward": float(batch["reward"][p, 0]),
        "length": int(batch.mask[p, 0].sum()),
        "finished": bool(batch["finished"][p, 0]),
    }


def row(e: Estimate) -> dict[str, Any]:
    """An estimate as plain data."""
    return {name: getattr(e, name) for name in ROW}


def _cells(tree: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Estimates inside as their value and ends."""
    kept = ("value", "low", "high", "n")
    return {k: {n: v[n] for n in kept} if k in names and v is not None else v for k, v in tree.items()}
