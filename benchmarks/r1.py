"""Every on-policy method on the misaligned bandit, against the optimum it is itself after.

    python benchmarks/r1.py --out docs/r1.md --json r1.json

One dial per method (the KL's price, or what stands in its place) and the learning rate are tuned for the reward
reached, on seeds that are not reported. Every number is a sum over the arms, so the seeds carry all the noise.
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from modeseek import estimate, stages
from modeseek.batch import Batch
from modeseek.data import worlds
from modeseek.objectives import (
    CISPO,
    DPO,
    GSPO,
    IPO,
    PPO,
    REBEL,
    RWR,
    SFT,
    SPPO,
    XPO,
    NegativeBoN,
    Objective,
    PlackettLuce,
    SimPO,
)
from modeseek.objectives import PolicyGradient as PG
from modeseek.policies.bandit import Bandit
from modeseek.policies.base import pick, uniform
from modeseek.rewards.table import table
from modeseek.sources import on_policy
from modeseek.stages import Stage
from modeseek.train import Steps, fit

WORLD = worlds.bandit("R1")
SAMPLES, MAX_STEPS = 128, 200  # samples a round, whatever the size of a group; optimiser steps
RATES = (0.1, 0.3)
SEEDS, TUNING = range(10), range(1000, 1002)
PASSES = 4  # of the methods that reuse samples


@dataclass(frozen=True)
class Parts:
    """What the stages of a method are made of."""

    policy: Bandit
    reference: Bandit
    reward: Callable[[Batch], Tensor]

    def charged(self, beta: float, *first: Stage) -> list[Stage]:
        """Scored, with the KL charged to the reward."""
        asked = [stages.refer(self.reference), stages.recall(self.policy), stages.kl_shaped(beta)]
        return [stages.score(self.reward), *first, *asked]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row of source x stages x objective with one dial, and the policy that it is after at that dial."""

    objective: Callable[[float], Objective]
    stages: Callable[[Parts, float], list[Stage]]
    dial: str
    values: tuple[float, ...]
    target: Callable[[float], Tensor]
    kind: str  # of target
    k: int = 4
    passes: int = 1


def wins(hard: bool) -> Tensor:
    gap = WORLD.reward[:, None] - WORLD.reward
    return (gap.sign() + 1) / 2 if hard else gap.sigmoid()


def best_arm(dial: float) -> Tensor:
    return torch.eye(worlds.ARMS, dtype=torch.float64)[WORLD.reward.argmax()]


def grpo_target(kl: float) -> Tensor:
    """Where GRPO's expected gradient is zero in a large group.

    Its k3 has the gradient of KL(pi_ref || pi), so with s the standard deviation of the reward under pi
    pi (r - E r) / s = kl (pi - pi_ref), hence pi = c pi_ref / (c + E r - r) with c = kl s.
    """
    p, c = WORLD.reference, kl * 0.3
    for _ in range(500):
        low, high = 0.0, float(2 + c)  # of c + E r - max r
        for _ in range(100):
            middle = (low + high) / 2
            mass = (c * WORLD.reference / (middle + 1 - WORLD.reward)).sum()
            low, high = (middle, high) if mass > 1 else (low, middle)
        p = c * WORLD.reference / (high + 1 - WORLD.reward)
        p = p / p.sum()
        spread = (p @ WORLD.reward.square() - (p @ WORLD.reward) ** 2).clamp(min=0).sqrt()
        c = 0.5 * c + 0.5 * kl * float(spread)
    return p


SCORE = lambda m: stages.score(m.reward)
RL: dict[str, Any] = dict(dial="beta", values=(0.02, 0.05), target=WORLD.tilted, kind="KL")
LIMIT: dict[str, Any] = dict(target=best_arm, kind="best arm")
METHODS = {
    "REINFORCE": Method(objective=lambda b: PG(), stages=lambda m, b: [*m.charged(b), stages.group_mean], **RL),
    "RLOO": Method(objective=lambda b: PG(), stages=lambda m, b: [*m.charged(b), stages.leave_one_out], **RL),
    "ReMax": Method(
        objective=lambda b: PG(),
        stages=lambda m, b: [*m.charged(b), stages.greedy_baseline(m.policy, m.reward)],
        k=1,
        **RL,
    ),
    "PPO, no critic": Method(
        objective=lambda b: PPO(), stages=lambda m, b: [*m.charged(b), stages.group_mean], passes=PASSES, **RL
    ),
    "GRPO": Method(
        objective=lambda kl: PPO(kl=kl, logp_reduction="mean"),
        stages=lambda m, kl: [
            SCORE(m),
            stages.refer(m.reference),
            stages.recall(m.policy),
            stages.group_mean,
            stages.group_std,
        ],
        dial="kl",
        values=(0.02, 0.05),
        target=grpo_target,
        kind="forward KL",
        k=8,
    ),
    "Dr. GRPO": Method(
        objective=lambda b: PPO(), stages=lambda m, b: [*m.charged(b), stages.group_mean], k=8, passes=PASSES, **RL
    ),
    "DAPO": Method(
        objective=lambda b: PPO(clip_high=0.28, logp_reduction="group_mean"),
        stages=lambda m, b: [*m.charged(b, stages.keep_varied), stages.group_mean, stages.group_std],
        k=8,
        passes=PASSES,
        **RL,
    ),
    "GSPO": Method(
        objective=lambda b: GSPO(clip=0.2, clip_high=0.2),
        stages=lambda m, b: [*m.charged(b), stages.group_mean, stages.group_std],
        k=8,
        passes=PASSES,
        **RL,
    ),
    "CISPO": Method(
        objective=lambda b: CISPO(),
        stages=lambda m, b: [*m.charged(b), stages.group_mean, stages.group_std],
        k=8,
        passes=PASSES,
        **RL,
    ),
    "Nash-MD, self-play": Method(
        objective=lambda b: PG(),
        stages=lambda m, b: [
            SCORE(m),
            stages.duel,
            stages.refer(m.reference),
            stages.recall(m.policy),
            stages.kl_shaped(b),
            stages.group_mean,
        ],
        dial="beta",
        values=(0.01, 0.02),
        target=lambda b: WORLD.nash(wins(hard=False), b * 3 / 4),  # (k - 1) / k: see the page
        kind="Nash",
    ),
    "Nash-MD": Method(
        objective=lambda b: PG(),
        stages=lambda m, b: [
            stages.challenge_mixture(m.policy, m.reference, share=0.125),
            SCORE(m),
            stages.duel,
            stages.refer(m.reference),
            stages.recall(m.policy),
            stages.kl_shaped(b),
            stages.group_mean,
        ],
        dial="beta",
        values=(0.01, 0.02),
        target=lambda b: WORLD.nash(wins(hard=False), b, share=0.125),
        kind="Nash",
    ),
    "online IPO": Method(
        objective=IPO,
        stages=lambda m, tau: [SCORE(m), stages.best_worst, stages.refer(m.reference)],
        dial="tau",
        values=(0.02, 0.05),
        target=lambda tau: WORLD.nash(wins(hard=True), tau),
        kind="Nash",
        k=2,
    ),
    "online DPO": Method(
        objective=DPO,
        stages=lambda m, b: [SCORE(m), stages.best_worst, stages.refer(m.reference)],
        dial="beta",
        values=(0.05, 0.5),
        **LIMIT,
    ),
    **{
        f"online DPO, {named}": Method(
            objective=DPO,
            stages=lambda m, b, pairs=pairs: [SCORE(m), pairs, stages.refer(m.reference)],
            dial="beta",
            values=(0.05, 0.5),
            k=k,
            **LIMIT,
        )
        for named, pairs, k in (
            ("all pairs", stages.all_pairs(), 4),
            ("best and random", stages.best_random(), 4),
            ("best and next", stages.best_second, 4),
            ("best and 2 sigma", stages.best_sigma(), 8),
        )
    },
    "online SimPO": Method(
        objective=lambda b: SimPO(beta=b, gamma=0.5),
        stages=lambda m, _: [SCORE(m), stages.best_worst],
        dial="beta",
        values=(0.5, 2.0),
        k=2,
        **LIMIT,
    ),
    "listwise DPO": Method(
        objective=PlackettLuce,
        stages=lambda m, _: [SCORE(m), stages.keep_varied, stages.ranked, stages.refer(m.reference)],
        dial="beta",
        values=(0.05, 0.5),
        **LIMIT,
    ),
    "SELM": Method(
        objective=lambda b: XPO(beta=b),
        stages=lambda m, _: [SCORE(m), stages.best_worst, stages.challenge(m.reference), stages.refer(m.reference)],
        dial="beta",
        values=(0.05, 0.5),
        k=2,
        **LIMIT,
    ),
    "XPO": Method(
        objective=lambda b: XPO(beta=b),
        stages=lambda m, _: [stages.challenge(m.reference), SCORE(m), stages.best_worst, stages.refer(m.reference)],
        dial="beta",
        values=(0.05, 0.5),
        k=1,
        **LIMIT,
    ),
    "truncated IS": Method(
        objective=lambda b: PPO(),
        stages=lambda m, b: [*m.charged(b), stages.group_mean, stages.group_std, stages.truncated_is(high=2.0)],
        k=8,
        passes=PASSES,
        **RL,
    ),
    "REBEL": Method(
        objective=REBEL,
        stages=lambda m, eta: [SCORE(m), stages.recall(m.policy)],
        dial="eta",
        values=(3.0, 10.0),
        k=2,
        passes=PASSES,
        **LIMIT,
    ),
    "SPPO": Method(
        objective=SPPO,
        stages=lambda m, b: [SCORE(m), stages.win_rate, stages.recall(m.policy), stages.refer_old],
        dial="beta",
        values=(0.1, 0.3),
        passes=PASSES,
        **LIMIT,
    ),
    "best-of-4 (RAFT)": Method(
        objective=lambda _: SFT(),
        stages=lambda m, _: [SCORE(m), stages.best],
        dial="none",
        values=(0.0,),
        **LIMIT,
    ),
    "best-of-4, negative gradient": Method(
        objective=lambda b: NegativeBoN(beta=b),
        stages=lambda m, _: [SCORE(m), stages.ranked],
        dial="beta",
        values=(0.05, 0.5),
        **LIMIT,
    ),
    "best-of-4, worst pushed down": Method(
        objective=lambda b: NegativeBoN(beta=b, losers="worst"),
        stages=lambda m, _: [SCORE(m), stages.ranked],
        dial="beta",
        values=(0.05, 0.5),
        **LIMIT,
    ),
    "best-of-4, losers' complement": Method(
        objective=lambda b: NegativeBoN(beta=b, losers="complement"),
        stages=lambda m, _: [SCORE(m), stages.ranked],
        dial="beta",
        values=(0.05, 0.5),
        **LIMIT,
    ),
    "RWR, standardised": Method(
        objective=lambda b: RWR(beta=b, clip=math.inf),
        stages=lambda m, _: [SCORE(m), stages.standardise_reward],
        dial="beta",
        values=(0.5, 1.0),
        **LIMIT,
    ),
    "RWR": Method(
        objective=lambda b: RWR(beta=b, clip=math.inf),
        stages=lambda m, _: [SCORE(m)],
        dial="beta",
        values=(0.1, 0.5),
        **LIMIT,
    ),
}


class SideBySide(Bandit):
    """One bandit for each seed, as the contexts of one table. Each draws from a stream of random numbers of its own."""

    def __init__(self, logits: Tensor, seeds: Sequence[int]):
        super().__init__(logits.expand(len(seeds), -1))
        self.streams = [Generator().manual_seed(seed) for seed in seeds]

    @torch.no_grad()
    def sample(
        self,
        prompt: Tensor,
        prompt_mask: Tensor,
        k: int,
        rng: Generator,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
    ) -> Batch:
        context = prompt[:, 0].repeat_interleave(k)
        u = torch.empty(len(context), dtype=torch.float64)
        for seed, stream in enumerate(self.streams):
            u[context == seed] = uniform((int((context == seed).sum()),), stream, u.device)
        action, logp = pick(self.logits[context], u, temperature, top_p, top_k)
        response = action.view(-1, k, 1)
        return Batch.own(
            prompt, prompt_mask, response, torch.ones_like(response, dtype=torch.bool), old_logp=logp.view(-1, k, 1)
        )


def train(method: Method, dial: float, rate: float, seeds: Sequence[int]) -> list[Tensor]:
    """The policy that each seed reaches. No stage or objective here looks past a prompt's group, Adam works on each
    logit by itself, and nothing is clipped or shuffled across prompts, so seeds side by side come out as each would
    alone, but for rounding and Adam's epsilon (the gradient's divisor counts the prompts of all)."""
    logits = WORLD.reference.log().float()[None]
    policy, reference = SideBySide(logits, seeds), SideBySide(logits, [seed + 10_000 for seed in seeds])
    prompts = [[context] for context in range(len(seeds))] * (SAMPLES // method.k)
    source = on_policy(policy, Batch.of(prompts, [[] for _ in prompts]), len(prompts), method.k)
    parts = Parts(policy, reference, table(WORLD.reward.float().expand(len(seeds), -1)))
    steps = Steps(
        max_steps=MAX_STEPS, learning_rate=rate, schedule="linear", max_grad_norm=math.inf, passes=method.passes
    )
    try:
        fit(policy, method.objective(dial), source, method.stages(parts, dial), steps)
    except RuntimeError as error:  # every seed is at one arm, and pairs of one arm tie
        if "nothing to learn from" not in str(error):
            raise
    return list(policy.logits.detach().double().softmax(-1))


def tune(method: Method) -> tuple[dict[str, Any], ...]:
    """Every setting of the grid with the reward it reaches, best first."""
    found = []
    for dial, rate in itertools.product(method.values, RATES):
        reached = [WORLD.expected(p) for p in train(method, dial, rate, TUNING)]
        found.append({"dial": dial, "learning_rate": rate, "reward": sum(reached) / len(reached)})
    return tuple(sorted(found, key=lambda row: -row["reward"]))


def measure(name: str, method: Method, seeds: Sequence[int]) -> dict[str, Any]:
    """A row of the table: tuned, then run once for each seed."""
    start = time.process_time()
    tried = tune(method)
    dial, rate = tried[0]["dial"], tried[0]["learning_rate"]
    own = method.target(dial)
    reached = train(method, dial, rate, seeds)
    share = [WORLD.expected(p) / WORLD.expected(own) for p in reached]
    row: dict[str, Any] = {
        "method": name,
        "dial": method.dial,
        "value": dial,
        "learning_rate": rate,
        "kind": method.kind,
        "target": WORLD.expected(own),
        "reward": [WORLD.expected(p) for p in reached],
        "kl": [WORLD.kl(p) for p in reached],
        "share": share,
        "frontier": [WORLD.expected(p) / WORLD.expected(WORLD.best_at(WORLD.kl(p))) for p in reached],
        "tried": tried,
    }
    if method.kind == "KL":
        row["gain_share"] = [WORLD.gain(p, dial) / WORLD.gain(own, dial) for p in reached]
    return row | {"seconds": time.process_time() - start}


def judged(row: dict[str, Any]) -> bool:
    """Whether the mean share is at least 0.9: of the optimum's reward and, with a KL to the reference, of its gain."""
    return all(estimate.mean(row[x]).value >= 0.9 for x in ("share", "gain_share") if x in row)


TOP = """# Every on-policy method on the misaligned bandit

`python benchmarks/r1.py` makes this page and `r1.json`, with every seed and every setting tried; do not edit it.

A hundred arms; the reference is tanh(Cauchy(-0.7, 0.4)) in bins, the reward R1 is a bump of width 10 at arm 70, where
the reference has 0.2 % of its mass (Tajwar et al. 2024, section 5; `modeseek.data.worlds`). The reference earns
{reference:.3f}, the best of ten of its samples {best:.3f}, the best arm 1. The question is whether a method gets to
0.9 of *its own* regularised optimum.

Every method runs through `modeseek.train.fit` from the reference: {samples} samples a round, {steps} steps of AdamW,
the rate falling linearly to zero, no clipping of gradients. PPO, Dr. GRPO, DAPO, GSPO, CISPO, REBEL and SPPO take
{passes} steps on a round's samples, and so draw that many times fewer. One dial and the learning rate are tuned (at most
{settings} settings, {tuning} seeds each, apart from the ones reported) for the reward reached; tuning for the share of
the optimum would choose a KL so heavy that the optimum is near. Rewards and KL are exact sums over the arms. Intervals
are Student's t at 95 % over {seeds} seeds.

| method | dial | rate | own optimum | its E[r] | E[r] reached | share of it | share of its gain | KL (nats) | share of frontier | 0.9? |
|---|---|---|---|---|---|---|---|---|---|---|
"""  # noqa: E501
BOTTOM = """
{verdict}

**Own optimum.**

- *KL*: pi_ref exp(r / beta) / Z, where E[r] - beta KL(pi || pi_ref) is largest. That number is the *gain*; the share of
  the reward and the share of the gain must both be 0.9. Dr. GRPO, DAPO, GSPO and CISPO have no KL in their papers: here
  it is charged to the reward. GSPO clips at 0.2; its own 3e-4 is for the mean of many tokens, and a bandit has one.
- *forward KL*: GRPO's k3 in the loss has the gradient of KL(pi_ref || pi), and its advantage is divided by the reward's
  standard deviation s. In a large group the gradient is zero at pi = c pi_ref / (c + E[r] - r) with c = kl s.
- *Nash*: the policy that is the best answer to itself, pi_ref exp(P(y beats pi) / beta) / Z. P is Bradley-Terry on the
  reward for Nash-MD, and one or zero for online IPO, whose tau is this beta. In Nash-MD's self-play the chances to win
  sum to zero over a group, so that the group's mean takes nothing from them and 1 / k from the KL's gradient: the
  optimum is that of beta (k - 1) / k.
- *best arm*: the method has no regularised optimum short of the best arm, E[r] = 1. Labels without noise give DPO's
  loss no minimum short of a point mass; REBEL and SPPO hold on to the last round's policy, not to the reference;
  best-of-N and RWR have no KL.

**Not in the table.** `ppo_adaptive_kl`, `reinforce_pp` and `high_entropy_grpo` take statistics over the prompts of a
round, which here are the seeds; `ppo_critic` needs a critic.

**Share of frontier** is E[r] over the most that any policy within as many nats of the reference can earn (the tilted
family), which holds methods with different optima to one measure. It is no verdict alone: the reference has 1.
"""


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The table as Markdown, with what it says in words."""
    show = lambda x, digits=3: (lambda e: f"{e.value:.{digits}f} ± {e.high - e.value:.{digits}f}")(estimate.mean(x))
    text = TOP.format(
        reference=WORLD.expected(WORLD.reference),
        best=WORLD.best_of(10),
        samples=SAMPLES,
        steps=MAX_STEPS,
        settings=max(len(row["tried"]) for row in rows),
        tuning=len(TUNING),
        passes=PASSES,
        seeds=len(rows[0]["reward"]),
    )
    for row in rows:
        dial = "none" if row["dial"] == "none" else f"{row['dial']} {row['value']:g}"
        gain = show(row["gain_share"]) if "gain_share" in row else "–"
        text += (
            f"| {row['method']} | {dial} | {row['learning_rate']:g} | {row['kind']} | {row['target']:.3f} "
            f"| {show(row['reward'])} | {show(row['share'])} | {gain} | {show(row['kl'], 2)} | {show(row['frontier'])} "
            f"| {'yes' if judged(row) else '**no**'} |\n"
        )
    short = [row["method"] for row in rows if not judged(row)]
    verdict = f"{len(rows) - len(short)} of {len(rows)} methods reach 0.9 on average over the seeds"
    return text + BOTTOM.format(verdict=f"{verdict}; short of it: {', '.join(short)}." if short else f"{verdict}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/r1.md"))
    parser.add_argument("--json", type=Path, default=Path("r1.json"))
    parser.add_argument("--only", nargs="*", default=[*METHODS], choices=[*METHODS], metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    told = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in told.only:
        row = measure(name, METHODS[name], range(told.seeds))
        rows.append(row)
        seen = f"{name:30} {row['dial']} {row['value']:g} rate {row['learning_rate']:g}"
        print(f"{seen}: share {estimate.mean(row['share'])}, {row['seconds']:.0f} s", flush=True)
    told.json.write_text(json.dumps(rows, indent=1) + "\n")
    told.out.write_text(page(rows))


if __name__ == "__main__":
    main()
