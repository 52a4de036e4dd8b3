"""Several policies against several baselines: each pair, all seeds as one, all baselines as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float

from modeseek import estimate
from modeseek.batch import Batch
from modeseek.estimate import Estimate
from modeseek.evaluate import length_control
from modeseek.evaluate.compare import Evaluation, compare
from modeseek.evaluate.frontier import Overoptimised, Point, frontier, overoptimisation
from modeseek.evaluate.length_control import FEWEST, LengthControlled
from modeseek.evaluate.seeds import OverSeeds, over_seeds
from modeseek.evaluate.sides import CHARACTERS

Answers = Mapping[str, Sequence[Batch]]  # of each policy, in the order of the prompts


@dataclass(frozen=True, kw_only=True)
class Several:
    """What `several` found. Keys of the pairs are (policy, baseline)."""

    pairs: Mapping[tuple[str, str], Evaluation]
    wins: Mapping[tuple[str, str], Float[np.ndarray, " P"]]  # ours, of each prompt, ties as halves
    controlled: Mapping[tuple[str, str], LengthControlled] = field(default_factory=dict)
    over_baselines: Mapping[str, Estimate] = field(default_factory=dict)  # of each policy, where there are several
    over_seeds: Mapping[str, OverSeeds] = field(default_factory=dict)  # against each baseline, and all of them
    points: tuple[Point, ...] = ()
    overoptimised: Overoptimised | None = None


def several(
    policies: Answers,
    baselines: Answers,
    *,
    together: str = "seeds",
    gold: str = "",
    level: float = 0.95,
    seed: int = 0,
    wins: Mapping[tuple[str, str], Float[np.ndarray, "P K"]] | None = None,
) -> Several:
    """Compare every policy with every baseline, from their answers (`answer`), which carry a `reward`.

    `together` says what several policies are: `seeds` of one method, which become one estimate whose interval counts
    seeds and prompts, or `checkpoints`, which become points of reward against KL. `gold` names a column with another
    reward. `wins` are a judge's, where the reward is not what decides.
    """
    if together not in ("seeds", "checkpoints"):
        raise ValueError(f"together: found {together!r}, expected seeds or checkpoints")
    judged = wins or {}
    pairs = {(p, b): compare(policies[p], baselines[b], level=level, seed=seed) for p in policies for b in baselines}
    shares = {pair: _shares(found, judged.get(pair)) for pair, found in pairs.items()}
    found = {pair: _with_wins(e, shares[pair], level, seed) for pair, e in pairs.items()}
    stacked = {b: np.stack([shares[p, b] for p in policies]) for b in baselines}  # [policies, P]
    overall = {p: np.mean([shares[p, b] for b in baselines], 0) for p in policies}
    merged = dict[str, OverSeeds]()
    if together == "seeds" and len(policies) > 1 and len(next(iter(overall.values()))) > 1:
        tables = stacked | ({"all baselines": np.stack(list(overall.values()))} if len(baselines) > 1 else {})
        merged = {b: over_seeds(x, level=level, name="win_rate", bounds=(0, 1)) for b, x in tables.items()}
    first = next(iter(baselines))
    points = _points({p: found[p, first] for p in policies}, gold, level) if together == "checkpoints" else ()
    return Several(
        pairs=found,
        wins=shares,
        controlled={pair: c for pair, e in found.items() if (c := controlled(e, shares[pair], level, seed))},
        over_baselines={p: estimate.share(x, level=level, seed=seed, name="win_rate") for p, x in overall.items()}
        if len(baselines) > 1
        else {},
        over_seeds=merged,
        points=points,
        overoptimised=_over(policies, gold, level)
        if gold and len(policies) > 1 and together == "checkpoints"
        else None,
    )


def controlled(
    found: Evaluation, wins: Float[np.ndarray, " P"], level: float = 0.95, seed: int = 0
) -> LengthControlled | None:
    """The length-controlled win rate of one comparison; None where it cannot be fitted.

    Lengths are in tokens, or in characters where the answers say them (`sides.measured`). Instruction difficulty needs
    other models' wins on the same prompts and is left out.
    """
    told = all(CHARACTERS in batch for batch in (*found.ours, *found.theirs))
    length = lambda batch: batch[CHARACTERS] if told else batch.mask.sum(-1)
    ours, theirs = (_per_prompt(b, length) for b in (found.ours, found.theirs))
    if len(wins) < FEWEST or np.ptp(ours - theirs) == 0:
        return None
    return length_control.win_rate(wins, ours, theirs, level=level, seed=seed)


def _shares(found: Evaluation, judged: np.ndarray | None) -> np.ndarray:
    if judged is not None:
        return np.asarray(judged, dtype=np.float64).reshape(len(judged), -1).mean(1)
    a, b = (torch.cat([x["reward"].double() for x in side]).numpy() for side in (found.ours, found.theirs))
    return (1 + np.sign(a[:, :, None] - b[:, None, :]).mean((1, 2))) / 2


def _with_wins(found: Evaluation, wins: np.ndarray, level: float, seed: int) -> Evaluation:
    return replace(found, win_rate=estimate.share(wins, level=level, seed=seed, name="win_rate"))


def _points(found: Mapping[str, Evaluation], gold: str, level: float) -> tuple[Point, ...]:
    return frontier(
        [
            Point(
                name=name,
                kl=e.kl,
                reward=e.reward,
                gold=estimate.mean(_rewards(e.ours, gold), level=level, name=gold) if gold else None,
            )
            for name, e in found.items()
            if e.kl is not None
        ]
    )


def _over(policies: Answers, gold: str, level: float) -> Overoptimised:
    proxy, true = (np.stack([_rewards(x, column) for x in policies.values()]) for column in ("reward", gold))
    return overoptimisation(list(policies), proxy, true, level=level)


def _rewards(batches: Sequence[Batch], column: str) -> Float[np.ndarray, " P"]:
    return _per_prompt(batches, lambda b: b[column])


def _per_prompt(batches: Sequence[Batch], read: Callable[[Batch], torch.Tensor]) -> Float[np.ndarray, " P"]:
    return torch.cat([read(b).double().mean(1) for b in batches]).numpy()
