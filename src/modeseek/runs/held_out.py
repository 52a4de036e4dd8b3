"""What a policy does on held-out data, measured the same way for every method."""

from typing import Any

import numpy as np
import torch

from modeseek.batch import Batch
from modeseek.build import Parts
from modeseek.data.groups import Groups
from modeseek.distributed import shared
from modeseek.distributed.team import home
from modeseek.estimate import Estimate, mean
from modeseek.evaluate import answer
from modeseek.objectives import BradleyTerry, pair_metrics
from modeseek.ops import seq
from modeseek.policies.hf import HFPolicy
from modeseek.rewards.assess import assess
from modeseek.rewards.model import RewardModel


@torch.no_grad()
def held_out(parts: Parts) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """What the policy does on held-out data: `eval/...` numbers, and samples beside the reference's."""
    data, run = parts.held_out, parts.run
    if data is None or not len(data):
        return {}, []
    row = _on_pairs(parts, data)
    if isinstance(parts.policy, RewardModel):
        return row | (_assessed(parts, data) if row else {}), []
    if not run.eval_prompts:
        return row, []
    index = torch.arange(min(run.eval_prompts, len(data)))
    rows, texts = _on_prompts(parts, data, index)
    return row | rows, texts


def _on_pairs(parts: Parts, data: Groups) -> dict[str, float]:
    """Log-probabilities and margins of held-out pairs, for every method alike."""
    if not data.prompts(slice(0, 1)).response.shape[1] > 1:
        return {}
    sums: dict[str, list[float]] = {}
    beta = getattr(parts.run.objective, "beta", 1.0)
    for index in torch.arange(min(len(data), 256)).split(16):
        batch = data.prompts(index).to(device_in(parts))
        batch = batch.prompts(batch.present[:, :2].all(-1))
        policy, reference = asked(parts, parts.policy), asked(parts, parts.reference)
        if isinstance(parts.policy, RewardModel):
            found = BradleyTerry()(policy.score(batch)).metrics
        else:
            logp = policy.logp(batch)
            ref = None if reference is None else reference.logp(batch)
            found = pair_metrics(logp, batch.mask, ref, beta)
        for name, values in found.items():
            sums.setdefault(name, []).extend(values.tolist())
    return {f"eval/{name}": sum(values) / len(values) for name, values in sums.items()}


def _assessed(parts: Parts, data: Groups) -> dict[str, float]:
    """Calibration, the pull of length and the accuracy by source of a reward model, on the pairs of `_on_pairs`."""
    scores, lengths, sources = [], [], []
    for index in torch.arange(min(len(data), 256)).split(16):
        batch = data.prompts(index).to(device_in(parts))
        batch = batch.prompts(batch.present[:, :2].all(-1))
        scores += asked(parts, parts.policy).score(batch)[:, :2].tolist()
        lengths += batch.mask.sum(-1)[:, :2].tolist()
        sources += [data.records[i].source for i in batch["row"].tolist()]
    if not scores:
        return {}
    found = assess(np.array(scores), np.array(lengths), sources)
    named = ("ece", "length_correlation", "margin_length_correlation", "longer_chosen", "longer_preferred")
    row = {f"eval/{name}": float(getattr(found, name)) for name in named}
    return row | {f"eval/accuracy/{name}": e.value for name, e in found.by_source.items() if len(found.by_source) > 1}


def _on_prompts(parts: Parts, data: Groups, index: torch.Tensor) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Reward, KL, length of fresh answers to held-out prompts."""
    none = lambda batch: torch.zeros(batch.fresh.shape, device=batch.fresh.device)
    prompts = data.prompts(index)
    assert isinstance(parts.policy, HFPolicy)
    policy, reference, reward = (asked(parts, x) for x in (parts.policy, parts.reference, parts.reward))
    answers = answer(policy, prompts, reward or none, reference=reference, batch_size=32, seed=parts.run.seed)
    column = lambda read: torch.cat([read(b).flatten() for b in answers]).tolist()
    numbers: dict[str, Estimate] = {
        "eval/completions/mean_length": mean(column(lambda b: b.mask.sum(-1).float())),
        "eval/completions/finished": mean(column(lambda b: b["finished"].float())),
    }
    if parts.reward is not None:
        numbers["eval/reward"] = mean(column(lambda b: b["reward"]))
    if (gold := asked(parts, parts.gold)) is not None:
        numbers["eval/gold_reward"] = mean(column(gold))
    if parts.reference is not None:
        numbers["eval/kl"] = mean(column(lambda b: seq(b["old_logp"] - b["ref_logp"], b.mask)))
        numbers["eval/surprise"] = mean(column(lambda b: -seq(b["ref_logp"], b.mask)))
    row = {name: e.value for name, e in numbers.items()}
    row |= {f"{name}/low": e.low for name, e in numbers.items() if name in ("eval/reward", "eval/kl")}
    row |= {f"{name}/high": e.high for name, e in numbers.items() if name in ("eval/reward", "eval/kl")}
    row["eval/n"] = len(index)
    return row, [_text(parts, b, p) for b in answers for p in range(len(b))][:8]


def _text(parts: Parts, batch: Batch, p: int) -> dict[str, Any]:
    decode = parts.template.decode
    sample = {
        "prompt": decode(batch.prompt[p][batch.prompt_mask[p]].tolist()),
        "response": decode(batch.response[p, 0][batch.mask[p, 0]].tolist()),
    }
    return sample | ({"reward": float(batch["reward"][p, 0])} if parts.reward is not None else {})


def asked(parts: Parts, model: Any) -> Any:
    """Who is asked: the model, or all ranks together."""
    return None if model is None else shared(model, parts.loop.team, parts.run.microbatch)


def device_in(parts: Parts) -> torch.device:
    return home(next(iter(parts.loop.trainable.values())))
