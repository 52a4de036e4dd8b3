"""What a run is, for its card."""

import dataclasses
import json
from typing import Any

import torch

from modeseek.build.needs import corrects_itself, needs_critic, reuses
from modeseek.config import Run, to_dict
from modeseek.data.template import Template
from modeseek.objectives import may_read, reads
from modeseek.policies.hf import HFPolicy
from modeseek.rewards.model import RewardModel


def describe(run: Run, policy: HFPolicy | RewardModel, template: Template, counts: dict[str, Any]) -> dict[str, Any]:
    """The run card: everything that someone who was not there needs to know."""
    objective = run.objective
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    warnings = []
    if getattr(objective, "correction", None) == "none" or (
        run.correction == "none" and reuses(run) and not corrects_itself(run)
    ):
        warnings.append("correction: none uses old samples as if they were fresh: the gradient is biased")
    if (limit := counts["train"].get("max_length", run.max_length)) < run.max_length:
        warnings.append(f"max_length: {run.max_length}, but the model reads {limit} tokens, which is the limit")
    dropped = sum(counts["train"].get("dropped", {}).values())
    if dropped:
        reasons = ", ".join(f"{n} {why}" for why, n in counts["train"]["dropped"].items())
        long = counts["train"]["dropped"].get("response too long", 0)
        cure = f"; raise max_completion_length ({run.max_completion_length}) or max_length, or set truncate_responses"
        warnings.append(
            f"{dropped} of {counts['train']['rows']} training rows were dropped: {reasons}"
            + (cure if long > dropped / 2 else "")
        )
    return {
        "method": run.method,
        "seed": run.seed,
        "model": run.model,
        "parameters": sum(p.numel() for p in policy.parameters()),
        "trained_parameters": trained,
        "data": run.data or [part.path for part in run.mixture],
        "rows": counts,
        "objective": {"name": type(objective).__name__, **dataclasses.asdict(objective)},
        "equation": objective.equation,
        "on_policy": objective.axes.on_policy,
        "negative_gradient": objective.axes.negative_gradient,
        "claimed_kl": objective.axes.claimed_kl,
        "reads": sorted(reads(objective) | may_read(objective)),
        "source": {"name": type(run.source).__name__, **vars(run.source)},
        "stages": [json.loads(json.dumps({s.name: s.options} if s.options else s.name)) for s in run.stages],
        "dials": {
            "prompts_per_round": run.prompts_per_round,
            "minibatch": run.minibatch or run.prompts_per_round,
            "passes": run.passes,
            "max_age": run.max_age,
        },
        "reward": to_dict(run)["reward"],
        "reference": _reference_of(policy),
        "critic": (run.critic or "a copy of the policy's body") if needs_critic(run) else None,
        "paths": policy.paths if isinstance(policy, HFPolicy) else {"score": "plain padded rows"},
        "template": template.describe(),
        "torch": torch.__version__,
        "warnings": warnings,
    }


def _reference_of(policy: HFPolicy | RewardModel) -> str:
    if isinstance(policy, RewardModel):
        return "none: a reward model"
    return "base with adapters off" if policy.has_adapter else "frozen copy of the initial policy"
