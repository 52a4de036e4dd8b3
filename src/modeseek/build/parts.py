"""A run's parts, and the loop that they make."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeseek.build.card import describe
from modeseek.build.data import load_data, raw_prompts, settled
from modeseek.build.first_step import rehearse
from modeseek.build.models import context_of, device_of, optimiser_of, trained
from modeseek.build.needs import corrected, has_stage, needs_reference
from modeseek.build.refuse import refuse
from modeseek.build.stages import stage_of
from modeseek.config import Hybrid, Offline, OnPolicy, Run
from modeseek.data.groups import Groups
from modeseek.data.template import Template
from modeseek.distributed.team import home
from modeseek.objectives import may_read, reads
from modeseek.policies.cache import Cached
from modeseek.policies.hf import HFPolicy, Reference
from modeseek.policies.sync import InStep, in_step
from modeseek.rewards import build_reward
from modeseek.rewards.model import RewardModel
from modeseek.sources import Hybrid as HybridSource
from modeseek.sources import Offline as OfflineSource
from modeseek.sources import OnPolicy as OnPolicySource
from modeseek.sources import Sampler, Source
from modeseek.stages import Reward
from modeseek.train import Loop


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a run is made of."""

    run: Run  # with its number of steps settled
    template: Template
    policy: HFPolicy | RewardModel
    reference: Reference | Cached | None
    reward: Reward | None
    gold: Reward | None  # of held-out answers only
    train: Groups
    held_out: Groups | None
    loop: Loop
    card: dict[str, Any]


def build(run: Run, *, empty: bool = False) -> Parts:
    """Load data, model and reward, and put the loop together. Raises ValueError before anything is spent.

    With `empty` the policy has no weights yet (PyTorch's `meta`): `runs.spread` deals them out in pieces.
    """
    if not run.model:
        raise ValueError("model: none given; write --model FOLDER_OR_HUB_NAME")
    if not (run.data or run.mixture):
        raise ValueError("data: none given; write --data FILE_OR_HUB_NAME")
    refuse(run)
    rehearse(run)
    device = device_of(run.device)
    template = Template.load(run.model, trust_remote_code=run.trust_remote_code)
    template = template.steered(run.control_good) if run.control_good else template
    policy = trained(run, template, "meta" if empty else device)
    train, held_out, counts = load_data(run, template, context=context_of(policy))
    _refuse_unread_labels(run, train)
    rehearse(run, train)
    reference = _reference_of(run, policy, cached=not empty)
    reward = None if run.reward is None else build_reward(run.reward, template, raw_prompts(train, held_out))
    gold = None if run.gold_reward is None else build_reward(run.gold_reward, template, raw_prompts(train, held_out))
    run = settled(run, len(train))
    parts: dict[str, Any] = {"policy": policy, "reference": reference, "reward": reward}
    loop = Loop(
        policy,
        run.objective,
        source_of(run, policy, train),
        [stage_of(spec, parts) for spec in run.stages],
        run,
        [stage_of(spec, parts) for spec in corrected(run)],
        optimiser_of(run, device),
    )
    return Parts(
        run=run,
        template=template,
        policy=policy,
        reference=reference,
        reward=reward,
        gold=gold,
        train=train,
        held_out=held_out,
        loop=loop,
        card=_completed(describe(run, policy, template, counts), sampled_by(loop), reference),
    )


def _refuse_unread_labels(run: Run, train: Groups) -> None:
    heard = "label" in reads(run.objective) or has_stage(run, "keep_good") or bool(run.control_good)
    if "label" in train.columns and not heard:
        method = run.method or "this method"
        raise ValueError(
            f"data: single responses with labels, which {method} does not read; write kto or binary_feedme"
        )


def _reference_of(run: Run, policy: Any, *, cached: bool) -> Any:
    """The frozen model that the run asks for, if it does; `cached` on disk where the run says so."""
    if not isinstance(policy, HFPolicy):
        return None
    keeps = run.measure_kl or needs_reference(run) or policy.has_adapter
    reference = policy.reference() if keeps else None
    if "kl" in reads(run.objective) | may_read(run.objective):
        policy.measure_against(reference or policy.reference())
    if reference is None or not run.reference_cache or not cached:
        return reference
    return Cached(reference, run.reference_cache)


def _completed(card: dict[str, Any], sampler: Any, reference: Any) -> dict[str, Any]:
    """The run card with what the sampler and the cache say of themselves."""
    if isinstance(sampler, InStep):
        told = sampler.describe()
        card |= {"sampler": told, "warnings": [*card["warnings"], f"sampler: exact: {told['exact']}"]}
    return card | ({"reference_cache": reference.describe()} if isinstance(reference, Cached) else {})


def source_of(run: Run, policy: Any, data: Groups) -> Source:
    """Where rounds come from."""
    drawn = OfflineSource(data, run.prompts_per_round, home(next(policy.parameters())))
    if run.sampler:
        policy = in_step(run.sampler, policy, Path(run.output_dir) / "sampler", where="sampler")
    match run.source:
        case Offline():
            return drawn
        case OnPolicy(num_generations=k, temperature=temperature, top_p=top_p, top_k=top_k):
            sampler = Sampler(policy=policy, k=k, temperature=temperature, top_p=top_p, top_k=top_k)
            return OnPolicySource(sampler, drawn)
        case Hybrid(num_generations=k):
            return HybridSource(Sampler(policy=policy, k=k), drawn)


def sampled_by(loop: Loop) -> Any:
    """Who draws a round's own samples: the policy, or a server in step with it; None offline."""
    return getattr(getattr(loop.source, "sampler", None), "policy", None)
