"""A run's first step, rehearsed on a bandit before anything is computed: is every column that is read filled?

What an objective and the stages read and fill is declared nowhere but in their code, so the code is asked: the run's
own source, stages, objective and loop take one step with a bandit's actions for text. It costs milliseconds.
"""

import contextlib
import copy
import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from modeseek.batch import COLUMNS, Batch, NotFilled
from modeseek.build.needs import corrected
from modeseek.build.stages import stage_class, stage_names, stage_of
from modeseek.config import OnPolicy, Run, StageSpec
from modeseek.data.groups import Groups
from modeseek.policies.bandit import Bandit
from modeseek.sources import Hybrid as HybridSource
from modeseek.sources import Offline as OfflineSource
from modeseek.sources import OnPolicy as OnPolicySource
from modeseek.sources import Sampler, Source
from modeseek.stages import Stage
from modeseek.train import Loop, NotFinite, NothingToLearn

TOLD = ("label", "margin", "reward")  # columns that data may bring
_PROMPTS, _ACTIONS = 4, 4


def rehearse(run: Run, data: Groups | None = None) -> None:
    """Raise ValueError, naming who reads what and which stage would fill it, where the run could not take a step.

    Without `data` they are taken to bring every column that data may bring: what then is missing, the config lacks.
    """
    try:
        with contextlib.suppress(NotFinite, NothingToLearn):  # a bandit's numbers say nothing
            _step(run, data)
    except NotFilled as missing:
        if data is not None and missing.column in TOLD:
            what, reader = COLUMNS[missing.column].partition("] ")[2], run.method or "this method"
            raise ValueError(f"data: {reader} reads {missing.column} ({what}), which these data do not have") from None
        who = _remedies(run, data, missing) or ["no stage alone"]
        more = "" if len(who) > 1 or who[0] in stage_names() else "; `modeseek objectives` shows the shipped methods'"
        raise ValueError(f"stages: {missing}; {' or '.join(who)} would{more}") from None


def _step(run: Run, data: Groups | None) -> None:
    """One optimiser step of the run, by a bandit."""
    if data is None:
        told, run = _told(_PROMPTS, 2, TOLD), replace(run, minibatch=None, passes=1)
    else:
        some = data.prompts(slice(0, run.prompts_per_round))
        told = _told(len(some), some.fresh.shape[1], tuple(some.columns))
    policy = _bandit(max(_ACTIONS, told.response.shape[1]))
    parts = {"policy": policy, "reference": copy.deepcopy(policy), "reward": _reward}
    stages = [_named("stages", spec, parts) for spec in run.stages]
    before = [_named("before", spec, parts) for spec in corrected(run)]
    loop = Loop(policy, run.objective, _source(run, policy, told), stages, replace(run, bf16=False), before)
    loop.advance()


def _remedies(run: Run, data: Groups | None, missing: NotFilled) -> list[str]:
    """The stages with which the step can be taken: each is tried where the column is missed."""
    names = [f"stages.{spec.name}" for spec in run.stages]
    at = names.index(missing.reader) if missing.reader in names else len(names)
    found = []
    for name in stage_names():
        more = StageSpec(name=name, options=_needed(name))
        with contextlib.suppress(Exception):  # it cannot stand there, or something else is missing too
            _step(replace(run, stages=(*run.stages[:at], more, *run.stages[at:])), data)
            found.append(name)
    return found


def _told(P: int, K: int, names: tuple[str, ...]) -> Batch:
    """P prompts with K actions each, the better first, and those columns of data that are named."""
    batch = Batch.of([[0]] * P, [[[k] for k in range(K)]] * P)
    better = torch.arange(K, 0, -1.0).expand(P, K)
    known: dict[str, Tensor] = {"label": better == K, "margin": torch.ones(P), "reward": better}
    own = {"row": torch.arange(P), "finished": batch.present}
    return batch.fill(**own, **{name: known[name] for name in names if name in known})


def _bandit(actions: int) -> Bandit:
    """A bandit that also says whatever a policy, a critic or a reward model may be asked."""
    made = Bandit(torch.zeros(1, actions))
    score = lambda batch: made.logp(batch).sum(-1)
    for name in ("entropy", "value", "kl", "collision", "score"):
        setattr(made, name, score if name == "score" else made.logp)
    return made


def _reward(batch: Batch) -> Tensor:
    """Rewards without ties."""
    return torch.arange(batch.fresh.numel(), dtype=torch.float32).view(batch.fresh.shape)


def _source(run: Run, policy: Bandit, told: Batch) -> Source:
    drawn, k = OfflineSource(told, run.prompts_per_round), getattr(run.source, "num_generations", 0)
    if not k:
        return drawn
    sampler = Sampler(policy=policy, k=k)
    return OnPolicySource(sampler, drawn) if isinstance(run.source, OnPolicy) else HybridSource(sampler, drawn)


def _named(where: str, spec: StageSpec, parts: Mapping[str, Any]) -> Stage:
    """The stage, which says its name when a column that it reads is not there."""
    stage = stage_of(spec, parts)

    def named(batch: Batch) -> Batch:
        try:
            return stage(batch)
        except NotFilled as missing:
            raise NotFilled(missing.column, f"{where}.{spec.name}") from None

    return named


def _needed(stage: str) -> dict[str, float]:
    """The options that a stage cannot do without, as ones."""
    parameters = inspect.signature(stage_class(stage)).parameters
    given = ("batch", "policy", "reference", "reward")
    return {n: 1 for n, p in parameters.items() if p.default is p.empty and n not in given}
