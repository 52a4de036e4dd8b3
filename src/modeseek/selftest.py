"""Before any compute is spent: is the reference the policy, is something trained, does the sampler agree, do
responses end once? Each failure says what is wrong and what to do.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn

from modeseek.batch import Batch
from modeseek.objectives import Objective, call, may_read, reads
from modeseek.policies.base import Policy
from modeseek.train import Loop, evaluate

ROUNDINGS = 16  # of the weights' dtype between two ways to one log-probability: 0.125 nats in bfloat16


class SelfTestFailed(ValueError):
    """The run would not do what it says."""


@torch.no_grad()
def self_test(
    loop: Loop,
    policy: nn.Module,
    reference: Policy | None,
    told: Batch,
    *,
    ends: Sequence[int],
    samples: bool,
    reference_is_initial: bool = True,
) -> dict[str, float]:
    """Prove the set-up right on a few prompts; what was measured goes to the run card.

    Raises SelfTestFailed. `told` holds some prompts of the data with their responses; `samples` says whether the
    run draws from the policy. The generator and the source are left as they were.
    """
    _trained_parameters(loop)
    own = None
    if samples:
        rng = torch.Generator().manual_seed(0)
        own = policy.sample(told.prompt, told.prompt_mask, 2, rng)  # type: ignore[operator]
    found = {}
    for batch in filter(None, (told if told.response.shape[1] else None, own)):
        _ends_once(batch, ends, or_text=batch is own and getattr(policy, "stop", None) is not None)
    some = told if told.response.shape[1] else own
    if some is not None:
        floor = _noise_floor(policy, some)
        found["noise_floor"] = floor
        if reference is not None and reference_is_initial:
            found["reference_gap"] = _reference_gap(policy, reference, some, floor)
            _first_loss(loop.objective, policy, reference, told)
    if own is not None:
        found["sampler_gap"] = _sampler_gap(policy, own, found["noise_floor"])
    return found


def _trained_parameters(loop: Loop) -> None:
    optimised = {id(p) for group in loop.optimiser.param_groups for p in group["params"]}
    for name, parameter in loop.model.named_parameters():
        if parameter.requires_grad != (id(parameter) in optimised):
            state = "requires a gradient but is not" if parameter.requires_grad else "is frozen but"
            raise SelfTestFailed(f"{name} {state} in the optimiser; freeze or unfreeze before the loop is made")


def _ends_once(batch: Batch, ends: Sequence[int], *, or_text: bool) -> None:
    """A finished response has one end token, its last; a cut one has none, nor need one that a text has ended."""
    is_end = torch.isin(batch.response, torch.tensor(tuple(ends), device=batch.response.device)) & batch.mask
    finished = batch["finished"] if "finished" in batch else batch.present
    last = (batch.mask.sum(-1) - 1).clamp(min=0)
    ends_last = is_end.gather(-1, last[..., None]).squeeze(-1)
    by_text = or_text & (is_end.sum(-1) == 0)
    wrong = torch.where(finished, ~by_text & ((is_end.sum(-1) != 1) | ~ends_last), is_end.sum(-1) != 0) & batch.present
    if wrong.any():
        p, k = wrong.nonzero()[0].tolist()
        row = int(batch["row"][p]) if "row" in batch else p
        raise SelfTestFailed(
            f"response {k} of prompt {row} holds {int(is_end[p, k].sum())} end tokens in the loss, expected exactly "
            "one, at its end; look at `modeseek check --model` and at the tokenizer's eos_token"
        )


def _noise_floor(policy: nn.Module, batch: Batch) -> float:
    """By how many nats the same tokens differ when they are computed in another company."""
    whole = policy.logp(batch)  # type: ignore[operator]
    first = batch.prompts(slice(0, 1)).trim()
    alone = policy.logp(first)  # type: ignore[operator]
    width = alone.shape[2]
    return _gap(alone, whole[:1, :, :width], first)


def _reference_gap(policy: nn.Module, reference: Policy, batch: Batch, floor: float) -> float:
    gap = _gap(policy.logp(batch), reference.logp(batch), batch)  # type: ignore[operator]
    if not gap <= max(1e-4, 4 * floor):
        raise SelfTestFailed(
            f"the reference is not the initial policy: their log-probabilities differ by {gap:.2g} nats (noise floor "
            f"{floor:.2g}); is dropout on, was an adapter merged or trained before, is the base quantised?"
        )
    return gap


def _first_loss(objective: Objective, policy: nn.Module, reference: Policy, told: Batch) -> None:
    """With policy and reference equal, a loss of log-ratios is that of zero: ln 2 for a sigmoid."""
    if not {"logp", "ref_logp"} <= reads(objective) <= {"logp", "ref_logp", "mask"} or told.response.shape[1] < 2:
        return
    if may_read(objective):
        return
    batch = told.fill(ref_logp=reference.logp(told))
    got = evaluate(objective, policy, batch).per_prompt
    want = call(objective, batch, {"logp": batch["ref_logp"]}).per_prompt
    if not (got - want).abs().max() <= 1e-3 * max(1.0, float(want.abs().max())):
        raise SelfTestFailed(
            f"the loss before the first step is {got.mean():.6g}, expected {want.mean():.6g} (a sigmoid loss gives "
            f"ln 2 = {math.log(2):.6g}); policy and reference are not the same"
        )


def _sampler_gap(policy: nn.Module, own: Batch, floor: float) -> float:
    gap = _gap(policy.logp(own), own["old_logp"], own)  # type: ignore[operator]
    dtype = next(x.dtype for x in policy.parameters() if x.is_floating_point())
    rounding = ROUNDINGS * torch.finfo(dtype).eps
    if not gap <= max(1e-3, 10 * floor, rounding):
        raise SelfTestFailed(
            f"the sampler and the trainer disagree by {gap:.2g} nats on the policy's own samples (noise floor "
            f"{floor:.2g}), so what is sampled is not what is trained; this is a bug or an unsupported model"
        )
    return gap


def _gap(a: torch.Tensor, b: torch.Tensor, batch: Batch) -> float:
    differ = (a.double() - b.double()).abs()[batch.mask]
    return float(differ.max()) if differ.numel() else 0.0
