"""A run's parts over the processes of a team."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from modeseek.build import Parts, corrected, device_of, optimiser_of, sampled_by, source_of, stage_of, trained
from modeseek.config import Run
from modeseek.distributed import Served, Team, shared
from modeseek.distributed.deal import tensors
from modeseek.distributed.shard import shard
from modeseek.objectives import may_read, reads
from modeseek.policies.cache import Cached, identity
from modeseek.policies.hf import HFPolicy, Reference
from modeseek.rewards.model import RewardModel
from modeseek.train import Loop


def spread(parts: Parts, team: Team) -> Parts:
    """The same parts over a team: weights in pieces where asked for, and what stages and sources ask shared out."""
    if team.size == 1 and not team.sharded:
        return parts
    run, policy, reference, device = parts.run, parts.policy, parts.reference, device_of(parts.run.device)
    refuse_sharded(run, policy, device) if team.sharded else team.agree(parts.loop.trainable.values())
    if team.sharded:
        reference = _cut(parts, team, device)
    asked = {"policy": policy, "reference": reference, "reward": parts.reward}
    given = {name: x if x is None else shared(x, team, run.microbatch) for name, x in asked.items()}
    draws = Served(sampled_by(parts.loop), team) if run.sampler else given["policy"]
    loop = Loop(
        policy,
        run.objective,
        source_of(replace(run, sampler=""), draws, parts.train),
        [stage_of(spec, given) for spec in run.stages],
        run,
        [stage_of(spec, given) for spec in corrected(run)],
        optimiser_of(run, device),
        team,
    )
    card = parts.card | ({"reference_cache": reference.describe()} if isinstance(reference, Cached) else {})
    card |= {"paths": policy.paths} if isinstance(policy, HFPolicy) else {}
    card |= {"devices": {"processes": team.size, "weights": "in pieces" if team.sharded else "whole"}}
    if device.startswith("cuda"):
        unverified = "parallel: several CUDA devices are unverified: no one has run this path on them"
        card["warnings"] = [*card["warnings"], unverified]
    return replace(parts, loop=loop, card=card, reference=reference)


def _cut(parts: Parts, team: Team, device: str) -> Reference | Cached | None:
    """Policy and reference in pieces, which the leading rank has read once for both; the reference is returned.

    A model that came with its weights, as a 4-bit base does, stays whole on every rank but for what is trained.
    """
    run, policy, reference = parts.run, parts.policy, parts.reference
    options: dict[str, Any] = {"bf16": run.bf16, "offload": run.fsdp_offload, "device": device}
    if not any(x.is_meta for x in policy.parameters()):
        team.agree(parts.loop.trainable.values())
        shard(policy, team, **options)
        return reference
    read: dict[str, Tensor] = {}
    told, ways = {"gathered": "bfloat16"} if run.bf16 else {}, None
    if team.leads:
        with team.busy("reading the model"):
            model = trained(run, parts.template, "cpu")
            if isinstance(model, HFPolicy):
                told, ways = told | (identity(model) if run.reference_cache else {}), model.ways
            read = tensors(model)
            del model
    told, ways = team.hear((told, ways), "the model")[0]
    for asked in (policy, None if reference is None else reference.module):
        if isinstance(asked, HFPolicy) and ways is not None:
            asked.go(ways, device.partition(":")[0])
    if reference is not None and reference.module is not policy:
        shard(reference.module, team, **options, take=read.__getitem__)
    shard(policy, team, **options, take=read.pop)
    if reference is None or not run.reference_cache:
        return reference
    assert not isinstance(reference, Cached), "one is made here, where its identity is known"
    return Cached(reference, run.reference_cache, told)


def refuse_sharded(run: Run, policy: HFPolicy | RewardModel, device: str) -> None:
    """What cannot be honoured where weights are in pieces, in the user's words."""
    if run.token_budget is not None:
        raise ValueError(
            "token_budget: fsdp needs as many passes on every rank; leave it out and write microbatch (prompts)"
        )
    if run.optim != "adamw":
        raise ValueError("optim: fsdp has not been run with 8-bit moments; write --optim adamw or --parallel ddp")
    if run.load_in_4bit and run.reference_cache:
        raise ValueError("reference_cache: fsdp does not know a 4-bit base by its content; leave one of them out")
    if run.fsdp_offload and not device.startswith("cuda"):
        raise ValueError("fsdp_offload: the pieces are in host memory already; it needs CUDA devices")
    if any(spec.name == "moving_reference" for spec in run.before):
        raise ValueError("before.moving_reference: copies the policy, which fsdp keeps in pieces; write --parallel ddp")
    if "kl" in reads(run.objective) | may_read(run.objective) and not getattr(policy, "has_adapter", False):
        raise ValueError("objective: exact kl under fsdp is measured against LoRA's base only; write --lora.r 16")
