"""A model and its pairs, looked at once: what the advice, the race and the plan of what to collect start from."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from modeseek.advise.cost import Speed
from modeseek.advise.lm import twin_of
from modeseek.advise.worlds import Worlds
from modeseek.build import context_of, load_policy, raw_prompts
from modeseek.data.files import load
from modeseek.data.groups import Groups
from modeseek.data.records import Record
from modeseek.data.template import Template
from modeseek.data.tokenise import tokenise
from modeseek.diagnostics.look import Look, look
from modeseek.policies.hf import HFPolicy
from modeseek.rewards import AnyReward, Reward, build_reward


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem:
    """What a look at a model and its data found."""

    template: Template
    policy: HFPolicy
    reward: Reward | None
    pairs: Groups  # of the data, as many as were looked at
    records: list[Record]  # all of the data
    look: Look
    twin: Worlds
    speed: Speed
    tokens: float  # a prompt and one response have on average

    @property
    def all_pairs(self) -> int:
        """Rows of the data."""
        return len(self.records)


def meet(
    model: str,
    data: str,
    reward: AnyReward | None,
    *,
    split: str = "train",
    prompts: int = 96,
    samples: int = 4,
    max_length: int = 1024,
    max_completion_length: int = 256,
    device: str = "cpu",
    seed: int = 0,
    tell: Callable[[str, int], object] = lambda what, n: None,
) -> Problem:
    """Load both, sample and score. `tell` hears of each batch of prompts."""
    template = Template.load(model)
    policy = load_policy(model, template, max_new=max_completion_length, device=device)
    limit = min(max_length, context_of(policy) or max_length)
    records = list(load(data, split=split))
    order = np.random.default_rng(seed).permutation(len(records))
    several = [records[i] for i in order if len(records[i].responses) > 1][: 2 * prompts]
    if not several:
        raise ValueError(f"data: {data} has no pairs; advice needs a chosen and a rejected response to a prompt")
    cut = partial(
        tokenise,
        template=template,
        max_length=limit,
        max_completion_length=max_completion_length,
        responses="best_worst",
        truncate_responses=True,
    )
    groups = cut(several)
    whole = [i for i in range(len(groups)) if groups.first[i + 1] - groups.first[i] == 2][:prompts]
    if len(whole) < 8:
        raise ValueError(
            f"data: {len(whole)} of {len(several)} pairs fit into {limit} tokens, expected at least 8; "
            "write a larger --max_length, or give more data"
        )
    pairs = cut([groups.records[i] for i in whole])
    worth = None if reward is None else build_reward(reward, template, raw_prompts(pairs))
    clock = Clock(tell)
    seen = look(policy, pairs, samples=samples, reward=worth, seed=seed, tell=clock)
    length = np.concatenate([seen.own_length, seen.told_length], 1)
    prompt = float(np.mean([len(pairs.prompts(slice(i, i + 1)).prompt[0]) for i in range(len(pairs))]))
    tokens = prompt + float(length.mean())
    written = float(seen.own_length.sum()) + len(pairs) * prompt
    read = float(length.sum()) + length.size * prompt
    speed = Speed(sampled=written / clock.spent["sampled"], scored=read / clock.spent["scored"])
    return Problem(
        template=template,
        policy=policy,
        reward=worth,
        pairs=pairs,
        records=records,
        look=seen,
        twin=twin_of(seen),
        speed=speed,
        tokens=tokens,
    )


class Clock:
    """How long each kind of work took."""

    def __init__(self, tell: Callable[[str, int], object]):
        self.tell, self.last = tell, time.monotonic()
        self.spent = {"sampled": 1e-6, "scored": 1e-6}  # seconds

    def __call__(self, what: str, n: int) -> None:
        now = time.monotonic()
        self.spent[what] += now - self.last
        self.last = now
        self.tell(what, n)
