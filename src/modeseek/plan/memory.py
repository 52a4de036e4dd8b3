"""Memory at the moments of a run that can be the fullest, by part, on one device of several."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from modeseek.build import needs_critic, needs_reference, samples, scores
from modeseek.config import Run
from modeseek.plan.architectures import architecture
from modeseek.plan.devices import Device
from modeseek.plan.lengths import Lengths, responses
from modeseek.plan.simulate import Groups, Learner, Sizes, copied, reading_pass, scoring_pass, sizes, training_pass
from modeseek.rewards import Ensemble, Model

_ADAM_8BIT = 2  # bytes of two moments
_NF4 = 0.55  # bytes of a quantised weight with its scales
_BATCH = 32  # prompts of the held-out evaluation at once


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A moment of a run: bytes by part, those of nothing left out."""

    name: str
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class Models:
    """Every model of a run."""

    policy: Learner
    own: Sizes
    critic: Learner | None
    judges: tuple[Learner, ...]  # reward models


def models(run: Run, device: Device) -> Models:
    """The shapes of what the run trains, and of what it reads rewards from."""
    policy = learner(run, run.model, device)
    critic = replace(learner(run, run.critic or run.model, device), lora=None) if needs_critic(run) else None
    judged = run.reward.members if isinstance(run.reward, Ensemble) else (run.reward,)
    judges = tuple(learner(replace(run, lora=None), m.path, device) for m in judged if isinstance(m, Model))
    return Models(policy=policy, own=sizes(policy, scores=scores(run)), critic=critic, judges=judges)


def learner(run: Run, model: str, device: Device) -> Learner:
    """A model of the run as it is trained there."""
    return Learner(
        config=json.dumps(architecture(model).config),
        dtype=run.dtype,
        lora=run.lora,
        bf16=run.bf16,
        checkpointing=run.gradient_checkpointing,
        on_gpu=device.gpu,
    )


def moments(run: Run, device: Device, devices: int, told: Lengths) -> list[Moment]:
    """The fullest first."""
    made = models(run, device)
    pieces = devices if devices > 1 and run.parallel == "fsdp" else 1
    always = _always(run, made, pieces, device)
    gathered = _gathered(run, made, pieces)
    found = [
        Moment(name="training step", parts=always | _training(run, made, devices, told, pieces) | gathered),
        Moment(name="optimiser step", parts=always | _gradients(made, pieces) | _stepping(run, made, pieces, device)),
        Moment(name="drawing a round", parts=always | _gradients(made, pieces) | _drawing(run, made, devices, told)),
    ]
    if pieces > 1 and samples(run):
        whole = made.own.parameters * (2 if run.bf16 else made.own.weights / made.own.parameters)
        found[2] = replace(found[2], parts={**found[2].parts, "gathered weights": whole})
    if pieces > 1:  # whole on every device before it is cut
        kept = ("runtime", "weights", "reference")
        loaded = {k: v * (1 if k == "runtime" else pieces) for k, v in always.items() if k in kept}
        found.append(Moment(name="loading", parts=loaded))
    cleaned = [replace(m, parts={k: v for k, v in m.parts.items() if v}) for m in found]
    return sorted(cleaned, key=lambda m: -m.total)


def _always(run: Run, made: Models, pieces: int, device: Device) -> dict[str, float]:
    """What is there from the first step to the last."""
    own = made.own
    frozen = own.parameters - own.trained
    weights = (
        own.weights if not run.load_in_4bit else own.gradients + _NF4 * (frozen - own.embedding) + 2 * own.embedding
    )
    copies = not run.lora and not scores(run) and (run.measure_kl or needs_reference(run))
    moments = own.trained * _ADAM_8BIT if run.optim == "adamw_8bit" else 2 * own.gradients
    critic = None if made.critic is None else sizes(made.critic, scores=True)
    return {
        "runtime": device.overhead,
        "weights": weights / pieces,
        "reference": own.weights / pieces if copies else 0.0,
        "optimiser": moments / pieces,
        "critic and its optimiser": 0.0 if critic is None else 3 * critic.weights,
        "reward model": float(sum(sizes(j, scores=True).weights for j in made.judges)),
    }


def _gradients(made: Models, pieces: int) -> dict[str, float]:
    critic = 0 if made.critic is None else sizes(made.critic, scores=True).gradients
    return {"gradients": (made.own.gradients + critic) / pieces}


def _training(run: Run, made: Models, devices: int, told: Lengths, pieces: int) -> dict[str, float]:
    """A forward and backward of the fullest micro-batch. Gradients come as activations go: the fuller end counts."""
    per_rank = math.ceil((run.minibatch or run.prompts_per_round) / devices)
    prompts = min(run.microbatch or per_rank, per_rank)
    groups = fullest(run, told, prompts)
    layers = json.loads(made.policy.config)["num_hidden_layers"]
    found = scoring_pass(made.policy, groups) if scores(run) else training_pass(made.policy, merged(groups))
    others = found.peak(layers)
    if made.critic is not None:
        theirs = scoring_pass(made.critic, groups)
        others += theirs.peak(json.loads(made.critic.config)["num_hidden_layers"])
    gradients = _gradients(made, pieces)["gradients"]
    if prompts >= per_rank:  # one pass: no gradients are there when it begins
        late = found.layer + found.passing
        if gradients + late > others:
            others = late
        else:
            gradients = 0.0
    tile = 0 if scores(run) else min(others, _output_layer(made, groups))
    return {"gradients": gradients, "activations": others - tile, "output layer": tile}


def _output_layer(made: Models, groups: Groups) -> int:
    """A tile of logits, and the output layer's gradient with its scaled copy."""
    vocabulary = json.loads(made.policy.config)["vocab_size"]
    rows = max(512, int(1.5 * 2**30 / (4 * vocabulary))) if made.policy.on_gpu else 512
    trained = 0 if made.policy.lora else 2 * 4 * made.own.head
    return min(rows, groups.prompts * groups.responses * groups.response) * vocabulary * 4 + trained


def _stepping(run: Run, made: Models, pieces: int, device: Device) -> dict[str, float]:
    """AdamW's temporaries: a number for each trained weight on a GPU (foreach), of one tensor at a time elsewhere."""
    return {"AdamW's temporaries": made.own.gradients / pieces if device.gpu else 2.0 * made.own.largest}


def _drawing(run: Run, made: Models, devices: int, told: Lengths) -> dict[str, float]:
    """Sampling, and reading a round without a gradient: the last step's gradients are still there."""
    budget = run.token_budget or math.inf
    held = 0 if scores(run) or not run.eval_prompts else min(run.eval_prompts, _BATCH)
    prompts, k = held, 1
    if samples(run) and run.prompts_per_round / devices * run.source.num_generations > held:  # type: ignore[union-attr]
        prompts, k = math.ceil(run.prompts_per_round / devices), run.source.num_generations  # type: ignore[union-attr]
    need = prompts * (told.prompt.most + k * run.max_completion_length)
    part = min(1.0, budget / need) if need else 0.0
    cache = part * need * cache_per_token(made)
    prefill = _reading(made, part * prompts * told.prompt.most) if part else 0
    reads = needs_reference(run) or samples(run)
    at_once = 16 if not reads else max(16, math.ceil(run.prompts_per_round / devices))
    groups = fullest(run, told, at_once)
    reading = 0 if scores(run) else _reading(made, min(budget, groups.packed))
    copies = copied(made.policy) if prompts else 0
    if cache + prefill + copies > reading:
        return {"keys and values": cache, "weights laid out anew": float(copies), "activations": float(prefill)}
    return {"activations": float(reading)}


def _reading(made: Models, tokens: float) -> int:
    """Rounded up to two digits, so that one simulation serves many plans."""
    step = 10 ** max(0, len(str(int(tokens))) - 2)
    return reading_pass(made.policy, max(2, math.ceil(tokens / step) * step))


def _gathered(run: Run, made: Models, pieces: int) -> dict[str, float]:
    """FSDP holds two layers' weights whole, and the output layer's."""
    if pieces == 1:
        return {}
    own, layers = made.own, json.loads(made.policy.config)["num_hidden_layers"]
    bytes_each = 2 if run.bf16 else own.weights / own.parameters
    body = own.parameters - own.embedding - (0 if own.tied else own.head)
    return {"gathered weights": bytes_each * (2 * body / layers + max(own.embedding, own.head))}


def cache_per_token(made: Models) -> float:
    """Bytes of keys and values, in the weights' dtype."""
    told = json.loads(made.policy.config)
    heads = told.get("num_key_value_heads") or told["num_attention_heads"]
    width = told.get("head_dim") or told["hidden_size"] // told["num_attention_heads"]
    return 2.0 * told["num_hidden_layers"] * heads * width * {"bfloat16": 2, "float64": 8}.get(made.policy.dtype, 4)


def fullest(run: Run, told: Lengths, prompts: int) -> Groups:
    """The fullest of many micro-batches of so many prompts, its groups being equal."""
    given, own = responses(run)
    of = lambda x: x.mean + (x.most - x.mean) / math.sqrt(prompts)
    response = (given * of(told.told) + own * of(told.sampled)) / max(1, given + own)
    return Groups(prompts, given + own, math.ceil(of(told.prompt)), math.ceil(response))


def merged(groups: Groups) -> Groups:
    """As many tokens in at most two long groups: activations go by tokens, and the fewer calls are sooner made."""
    if groups.prompts <= 2:
        return groups
    half = groups.prompts / 2
    return Groups(2, 1, math.ceil(half * groups.prompt), math.ceil(half * groups.responses * groups.response))
