"""The arms: the same start and the same pairs, under one method after another."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from modeseek import config, estimate
from modeseek.build import describe, samples, source_of, stage_of
from modeseek.config import Offline, OnPolicy, Run
from modeseek.data.fables import MAX_NEW_TOKENS, judge
from modeseek.evaluate import answer, compare
from modeseek.objectives import pair_metrics
from modeseek.policies.hf import HFPolicy
from modeseek.quickstart.world import CONTEXT, World, read
from modeseek.record import Record
from modeseek.rewards.text import Reply
from modeseek.selftest import self_test
from modeseek.train import Loop
from modeseek.train import run as run_loop

SHOWN = 8  # prompts whose answers are kept as samples
WORTH = "modeseek.quickstart.world:worth"


@dataclass(frozen=True)
class Arm:
    """A shipped method and what is changed in its config."""

    name: str
    method: str
    changes: Mapping[str, Any] = field(default_factory=dict)  # of the config's keys, nested ones as in the file

    @property
    def folder(self) -> str:
        """Its name as a file name."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower())

    def run(self, world: World) -> Run:
        """Its config for one seed, as `modeseek train` would take it."""
        shipped = config.read_tree(self.method)
        told = world.folder
        return config.from_dict(
            config.over(shipped, {"learning_rate": 3e-4, **self.changes})
            | {
                "model": str(told / "model"),
                "data": str(told / "pairs.jsonl"),
                "eval_data": str(told / "held_out.jsonl"),
                "output_dir": str(told / self.folder),
                "reward": {"type": "python", "function": WORTH},
                "max_steps": world.recipe.steps,
                "prompts_per_round": 16,
                "max_length": CONTEXT,
                "max_completion_length": MAX_NEW_TOKENS,
                "device": "cpu",
                "seed": world.seed,
            },
            where=self.name,
        )


DPO_SFT = {"type": "with_sft", "inner": {"type": "dpo", "beta": 0.1}, "nll": 0.1, "nll_reduction": "sum"}
SHORT = (
    Arm("DPO", "dpo"),
    Arm("tuned DPO", "dpo", {"learning_rate": 1e-4, "objective": {"beta": 0.3}}),
    Arm("HyPO", "hypo"),
    Arm("online DPO", "online_dpo"),
)
FULL = (
    *SHORT,
    Arm("SFT on chosen", "pref_ft"),
    Arm("DPO + SFT", "dpo", {"objective": DPO_SFT}),
    Arm("DPO beta 0.05", "dpo", {"objective": {"beta": 0.05}}),
    Arm("DPO beta 0.3", "dpo", {"objective": {"beta": 0.3}}),
    Arm("IPO", "ipo"),
    Arm("HyPO kl 0.003", "hypo", {"objective": {"kl": 0.003}}),
    Arm("HyPO kl 0.03", "hypo", {"objective": {"kl": 0.03}}),
    Arm("best of 4", "best_of_n", {"source": {"num_generations": 4}}),
    Arm("RLOO", "rloo", {"source": {"num_generations": 4}}),
)


def learns_from(run: Run) -> str:
    """What the method is shown: the first thing to know before two of them are compared."""
    own = "" if isinstance(run.source, Offline) else "own fables"
    told = "" if isinstance(run.source, OnPolicy) else "pairs"
    scores = any(stage.name == "score" for stage in run.stages)
    return " + ".join(filter(None, [told, own, "reward" if scores else ""]))


def train(arm: Arm, world: World, first: Evaluation, tell: Callable[[int], object]) -> Evaluation:
    """One arm of one seed, recorded in its directory; `first` is what was measured before any step."""
    run = arm.run(world)
    policy = world.policy()
    parts = {"policy": policy, "reference": world.reference, "reward": world.reward}
    loop = Loop(
        policy,
        run.objective,
        source_of(run, policy, world.pairs),
        [stage_of(spec, parts) for spec in run.stages],
        run,
        [stage_of(spec, parts) for spec in run.before],
    )
    counts = {"train": world.pairs.counts, "held_out": {"kept": len(world.held_out)}}
    card = describe(run, policy, world.template, counts)
    settings = config.to_dict(run)
    card |= {"method": arm.name, "learns_from": learns_from(run), "recipe": vars(world.recipe)}
    told = world.pairs.prompts(torch.arange(min(4, len(world.pairs))))
    card["self_test"] = self_test(loop, policy, world.reference, told, ends=policy.eos, samples=samples(run))
    record = Record.start(run.output_dir, settings, card)
    record.row({"step": 0, **first.row, **on_pairs(policy, world, run)})
    last, at = first, looks(run.max_steps)

    def watch(loop: Loop, row: dict[str, float]) -> None:
        nonlocal last
        record.row(row)
        if loop.step in at:
            last = look(policy, world)
            record.row({"step": loop.step, **last.row, **on_pairs(policy, world, run)})
        tell(loop.step)

    run_loop(loop, watch)
    record.card(minibatches_without_a_lesson=loop.skipped)
    record.results(last.results)
    record.samples([{"step": loop.step, **sample} for sample in last.samples])
    record.close()
    return last


def looks(steps: int) -> set[int]:
    """The steps to measure at: 25, 50, 75, 100, 150 of 150."""
    return {max(1, round(steps * share)) for share in (1 / 6, 1 / 3, 1 / 2, 2 / 3, 1)}


@dataclass(frozen=True)
class Evaluation:
    """What was measured at one step."""

    row: Mapping[str, float]
    results: list[dict[str, Any]]
    samples: list[dict[str, Any]]


@torch.no_grad()
def look(policy: HFPolicy, world: World) -> Evaluation:
    """Reward, win rate, KL and share of degenerate fables, on fresh answers to the prompts."""
    ours = answer(
        policy,
        world.prompts,
        world.reward,
        reference=world.reference,
        samples_per_prompt=world.recipe.samples,
        batch_size=len(world.prompts),
        seed=2 * world.seed + 1,
    )
    found = compare(ours, world.answers, seed=world.seed)
    told = [[_reply(one) for one in group] for batch in ours for group in read(batch, world.template)]
    fell_apart = [[judge(one.prompt, one.response, one.finished).degenerate for one in group] for group in told]
    assert found.kl is not None
    measured = [
        found.reward,
        found.win_rate,
        found.kl,
        estimate.share(fell_apart, seed=world.seed, name="degenerate"),
    ]
    row = {f"eval/{e.name}": e.value for e in measured}
    row |= {f"eval/{e.name}/{end}": getattr(e, end) for e in measured for end in ("low", "high")}
    row |= {"eval/completions/mean_length": found.length.value, "eval/n": len(told)}
    theirs = [_reply(group[0]) for batch in world.answers for group in read(batch, world.template)]
    return Evaluation(
        row=row,
        results=[{"name": e.name, "value": e.value, "low": e.low, "high": e.high, "n": e.n} for e in measured],
        samples=[
            {
                "prompt": group[0].prompt,
                "response": group[0].response,
                "reward": judge(group[0].prompt, group[0].response, group[0].finished).reward,
                "degenerate": bad[0],
                "finished": group[0].finished,
                "reference": other.response,
            }
            for group, bad, other in list(zip(told, fell_apart, theirs, strict=True))[:SHOWN]
        ],
    )


@torch.no_grad()
def on_pairs(policy: HFPolicy, world: World, run: Run) -> dict[str, float]:
    """Log-probabilities and margins of the held-out pairs."""
    found: dict[str, list[float]] = {}
    beta = getattr(getattr(run.objective, "inner", run.objective), "beta", 1.0)
    for part in world.held_out.split(32):
        said = pair_metrics(policy.logp(part), part.mask, part["ref_logp"], beta)
        for name, values in said.items():
            found.setdefault(f"eval/{name}", []).extend(values.tolist())
    return {name: sum(values) / len(values) for name, values in found.items()}


def _reply(one: Reply | None) -> Reply:
    assert one is not None  # a policy's own groups are whole
    return one
