"""A run's parts over the processes of a team."""

from dataclasses import replace

from modeseek.build import Parts, corrected, optimiser_of, source_of, stage_of
from modeseek.config import Run
from modeseek.distributed import Team, shared
from modeseek.distributed.shard import shard
from modeseek.objectives import may_read, reads
from modeseek.policies.hf import HFPolicy
from modeseek.rewards.model import RewardModel
from modeseek.runs.held_out import device_in
from modeseek.train import Loop


def spread(parts: Parts, team: Team) -> Parts:
    """The same parts over a team: weights in pieces where asked for, and what stages and sources ask shared out."""
    if team.size == 1 and not team.sharded:
        return parts
    run, policy, reference = parts.run, parts.policy, parts.reference
    if run.sampler:
        raise ValueError("sampler: a server is given weights by one process only; leave it out, or start one")
    refuse_sharded(run, policy, device_in(parts).type) if team.sharded else team.agree(parts.loop.trainable.values())
    if team.sharded:
        shard(policy, team, bf16=run.bf16, offload=run.fsdp_offload)
        if reference is not None and reference.module is not policy:
            shard(reference.module, team, bf16=run.bf16, offload=run.fsdp_offload)
    asked = {"policy": policy, "reference": reference, "reward": parts.reward}
    given = {name: x if x is None else shared(x, team, run.microbatch) for name, x in asked.items()}
    loop = Loop(
        policy,
        run.objective,
        source_of(run, given["policy"], parts.train),
        [stage_of(spec, given) for spec in run.stages],
        run,
        [stage_of(spec, given) for spec in corrected(run)],
        optimiser_of(run, device_in(parts).type),
        team,
    )
    card = parts.card | {"devices": {"processes": team.size, "weights": "in pieces" if team.sharded else "whole"}}
    if device_in(parts).type == "cuda":
        unverified = "parallel: several CUDA devices are unverified: no one has run this path on them"
        card["warnings"] = [*card["warnings"], unverified]
    return replace(parts, loop=loop, card=card)


def refuse_sharded(run: Run, policy: HFPolicy | RewardModel, device: str) -> None:
    """What cannot be honoured where weights are in pieces, in the user's words."""
    if run.token_budget is not None:
        raise ValueError(
            "token_budget: fsdp needs as many passes on every rank; leave it out and write microbatch (prompts)"
        )
    if run.reference_cache:
        raise ValueError("reference_cache: fsdp needs as many passes on every rank; leave it out, or --parallel ddp")
    if run.load_in_4bit or run.optim != "adamw":
        raise ValueError("parallel: fsdp has not been run with 4-bit weights or 8-bit moments; write --parallel ddp")
    if run.fsdp_offload and device != "cuda":
        raise ValueError("fsdp_offload: the pieces are in host memory already; it needs CUDA devices")
    if any(spec.name == "moving_reference" for spec in run.before):
        raise ValueError("before.moving_reference: copies the policy, which fsdp keeps in pieces; write --parallel ddp")
    if "kl" in reads(run.objective) | may_read(run.objective) and not getattr(policy, "has_adapter", False):
        raise ValueError("objective: exact kl under fsdp is measured against LoRA's base only; write --lora.r 16")
