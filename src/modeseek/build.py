"""From a Run to its parts: the one place where names become objects."""

import dataclasses
import importlib.util
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Literal, get_args, get_origin

import torch

from modeseek import stages as stage_module
from modeseek.batch import COLUMNS
from modeseek.config import Hybrid, Offline, OnPolicy, Run, StageSpec, to_dict
from modeseek.data.control import by_label
from modeseek.data.files import read, split_holdout
from modeseek.data.records import DataError, Record
from modeseek.data.tokenise import Groups, Responses, Template, prefix_of, tokenise
from modeseek.distributed.team import home
from modeseek.objectives import SFT, max_age, may_read, reads
from modeseek.objectives.base import one_of
from modeseek.policies.cache import Cached
from modeseek.policies.hf import HFPolicy, Reference, end_tokens, load_model
from modeseek.policies.stop import Stop
from modeseek.policies.sync import InStep, in_step
from modeseek.rewards import Prompts, build_reward, by_tokens
from modeseek.rewards.model import RewardModel
from modeseek.sources import Hybrid as HybridSource
from modeseek.sources import Offline as OfflineSource
from modeseek.sources import OnPolicy as OnPolicySource
from modeseek.sources import Sampler, Source
from modeseek.stages import Reward, Stage
from modeseek.train import Loop

# Stages that compare the responses to one prompt.
PAIRING = ("all_pairs", "best_random", "best_second", "best_sigma", "best_worst", "group_mean", "group_std")
PAIRING += ("leave_one_out", "ranked", "win_rate", "duel")


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
    device = device_of(run.device)
    template = Template.load(run.model, trust_remote_code=run.trust_remote_code)
    template = template.steered(run.control_good) if run.control_good else template
    policy = trained(run, template, "meta" if empty else device)
    train, held_out, counts = load_data(run, template, context=context_of(policy))
    for column in sorted(reads(run.objective) & {"margin", "label"}):
        if column not in train.columns and not (column == "label" and _has(run, "label_pairs")):
            what = COLUMNS[column].partition("] ")[2]
            raise ValueError(
                f"data: {run.method or 'this method'} reads {column} ({what}), which these data do not have"
            )
    heard = "label" in reads(run.objective) or _has(run, "keep_good") or bool(run.control_good)
    if "label" in train.columns and not heard:
        method = run.method or "this method"
        raise ValueError(
            f"data: single responses with labels, which {method} does not read; write kto or binary_feedme"
        )
    keeps = isinstance(policy, HFPolicy) and (run.measure_kl or needs_reference(run) or policy.has_adapter)
    reference = policy.reference() if isinstance(policy, HFPolicy) and keeps else None
    if isinstance(policy, HFPolicy) and "kl" in reads(run.objective) | may_read(run.objective):
        policy.measure_against(reference or policy.reference())
    if reference is not None and run.reference_cache and not empty:
        reference = Cached(reference, run.reference_cache)
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
    card = describe(run, policy, template, counts)
    if isinstance(drawn := sampled_by(loop), InStep):
        card |= {"sampler": drawn.describe()}
        card["warnings"] = [*card["warnings"], f"sampler: exact: {drawn.describe()['exact']}"]
    card |= {"reference_cache": reference.describe()} if isinstance(reference, Cached) else {}
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
        card=card,
    )


def scores(run: Run) -> bool:
    """Whether what is trained is a reward model, not a policy."""
    return "score" in reads(run.objective)


def raw_prompts(*groups: Groups | None) -> Prompts:
    """Prompts as they stood in the data, for rewards that read text."""
    found = [g for g in groups if g is not None]
    return by_tokens((g.prompt[i], g.records[i].prompt) for g in found for i in range(len(g)))


def refuse(run: Run) -> None:
    """What does not go together, said before anything is loaded."""
    for key, value in _numbers(run.objective, "objective"):
        if value < 0:
            raise ValueError(f"{key}: {value}, expected at least 0")
    names = [spec.name for spec in run.stages]
    reads_reward = "reward" in _asked_by_stages(run)
    if scores(run) and (run.lora or not isinstance(run.source, Offline)):
        raise ValueError(
            "objective: a reward model is trained in full and on the data's pairs: no lora, source offline"
        )
    if reads_reward and run.reward is None:
        raise ValueError(
            f"reward: {run.method or 'this method'} scores responses; write --reward, such as --reward length"
        )
    if run.gold_reward is not None and not run.eval_prompts:
        raise ValueError("gold_reward: given, but eval_prompts is 0, so nothing would read it; write --eval-prompts 32")
    if run.reward is not None and not reads_reward and not run.eval_prompts:
        raise ValueError("reward: given, but no stage scores and eval_prompts is 0, so nothing would read it")
    if run.correction != "none" and corrects_itself(run):
        other = "write objective.correction" if hasattr(run.objective, "correction") else "it reads old_logp"
        raise ValueError(f"correction: {type(run.objective).__name__} has its own ({other}); leave it out")
    named = getattr(run.objective, "correction", None) or (run.correction if run.correction != "none" else None)
    if named and not reuses(run):
        raise ValueError(f"correction: {named}, but no own sample is used twice: set passes or minibatch too")
    if run.critic and not needs_critic(run):
        raise ValueError(
            f"critic: given, but {run.method or 'this method'} reads no value; `modeseek train ppo_critic` does"
        )
    if run.reference_cache and (isinstance(run.source, OnPolicy) or not needs_reference(run)):
        raise ValueError(
            f"reference_cache: {run.method or 'this method'} asks no reference about the data's responses; leave it out"
        )
    if run.control_good or run.control_bad:
        alone = isinstance(run.objective, SFT) and isinstance(run.source, Offline) and run.responses == "best_worst"
        if not (run.control_good and run.control_bad and alone and not run.stages):
            raise ValueError(
                "control_good, control_bad: both are needed, and they are for sft on the data's good and bad responses "
                "without stages: `modeseek train binary_feedme_control`"
            )
        if run.control_good == run.control_bad:
            raise ValueError(f"control_bad: {run.control_bad!r}, expected other words than control_good")
    if run.unverified and (not run.fast or device_of(run.device) == "cpu"):
        raise ValueError("unverified: packed rows are verified on a CPU, and `fast: false` takes none; leave it out")
    if run.sampler and run.stop_strings:
        raise ValueError("stop_strings: a server draws the samples and would cut them off; leave them or sampler out")
    if run.sampler and isinstance(run.source, Offline):
        raise ValueError(f"sampler: {run.sampler}, but {run.method or 'this method'} draws no samples; leave it out")
    own = run.objective.axes.on_policy
    if own and isinstance(run.source, Offline):
        raise ValueError(f"source: {type(run.objective).__name__} learns from the policy's own samples, not offline")
    if isinstance(run.source, OnPolicy):
        cut = run.source.temperature != 1 or run.source.top_p < 1 or run.source.top_k
        if cut and own:
            raise ValueError(
                f"source: {type(run.objective).__name__} needs samples of the whole distribution: temperature 1, "
                f"top_p 1, top_k 0; found {run.source.temperature}, {run.source.top_p}, {run.source.top_k}"
            )
        several = {*names} & {*PAIRING}
        if several and not {*names} & {"challenge", "challenge_mixture"} and run.source.num_generations < 2:
            raise ValueError(f"source.num_generations: {min(several)} needs at least 2 responses to a prompt")
    if getattr(run.objective, "kl_baseline", "") == "leave_one_out" and getattr(run.source, "num_generations", 2) < 2:
        raise ValueError(
            "source.num_generations: kl_baseline leave_one_out needs at least 2 fresh responses to a prompt"
        )
    if run.max_completion_length >= run.max_length:
        raise ValueError(
            f"max_completion_length: {run.max_completion_length}, expected less than max_length ({run.max_length}), "
            "which counts prompt and response together"
        )


def _numbers(part: Any, where: str) -> Iterator[tuple[str, float]]:
    for name, value in vars(part).items():
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, f"{where}.{name}")
        elif isinstance(value, int | float):
            yield f"{where}.{name}", value


def settled(run: Run, prompts: int) -> Run:
    """The run with `num_train_epochs` turned into optimiser steps."""
    if run.num_train_epochs is None:
        return run
    rounds = [run.prompts_per_round] * (prompts // run.prompts_per_round)
    if prompts % run.prompts_per_round:
        rounds.append(prompts % run.prompts_per_round)
    steps = sum(-(-size // (run.minibatch or size)) for size in rounds) * run.passes
    return replace(run, max_steps=steps * run.num_train_epochs, num_train_epochs=None)


def trained(run: Run, template: Template, device: str) -> HFPolicy | RewardModel:
    """What the run trains, as it begins; on the device `meta` all but its weights."""
    if scores(run):
        return RewardModel.load(run.model, trust_remote_code=run.trust_remote_code, device=device)
    policy = load_policy(run.model, template, max_new=run.max_completion_length, run=run, device=device)
    if needs_critic(run):
        policy.critic = critic(run, policy, device)
    return policy


def load_policy(
    name: str, template: Template, *, max_new: int, run: Run | None = None, device: str = "cpu"
) -> HFPolicy:
    """A policy by folder, run directory or hub name; a folder with an adapter is loaded onto its base."""
    run = run or Run()
    words = prefix_of(name)
    if words and words != template.prefix:
        raise ValueError(
            f"{name} was trained with {words!r} before every prompt, and here prompts begin with {template.prefix!r}: "
            "the tokenizer_config.json of the model that prompts are written for needs the same prompt_prefix"
        )
    torch.manual_seed(run.seed)  # adapters start from random numbers
    model = load_model(
        name,
        dtype=run.dtype,
        lora=run.lora,
        load_in_4bit=run.load_in_4bit,
        gradient_checkpointing=run.gradient_checkpointing,
        trust_remote_code=run.trust_remote_code,
        device=device,
    )
    ends = end_tokens(model, template.tokenizer)
    config: Any = model.config
    stop = Stop(run.stop_strings, template.tokenizer, config.vocab_size) if run.stop_strings else None
    how: dict[str, Any] = {"fast": run.fast, "unverified": run.unverified, "token_budget": run.token_budget}
    return HFPolicy(model, eos=ends, max_new=max_new, stop=stop, **how)


def load_data(run: Run, template: Template, context: int | None) -> tuple[Groups, Groups | None, dict[str, Any]]:
    """Training and held-out groups, and what became of the rows."""
    data: Any = [vars(part) for part in run.mixture] if run.mixture else run.data
    aside = Path(run.output_dir) / "bad_rows.jsonl" if run.skip_bad_rows else None
    reading = read(data, split=run.split, columns=run.columns, skip_bad_rows=aside)
    held: Sequence[Record] = []
    records: Sequence[Record] = reading.records
    if run.eval_data:
        held = read(run.eval_data, split=run.split, columns=run.columns).records
    elif run.eval_size:
        records, held = split_holdout(records, run.eval_size, run.seed)
    held = Random(run.seed).sample(held, len(held))  # evaluation takes the first of them, and files are often sorted
    limit = min(run.max_length, context or run.max_length)
    match run.source:
        case OnPolicy():
            responses: Responses = "none"
        case Hybrid():
            responses = "best_worst"
        case Offline():
            told = isinstance(run.objective, SFT) and all(len(r.responses) == 1 for r in records)  # demonstrations
            responses = "keep" if run.control_good or told or unpaired(records) else run.responses
    options: dict[str, Any] = {"max_length": limit, "max_completion_length": run.max_completion_length}
    options["truncate_responses"] = run.truncate_responses
    if run.control_good:  # the words are in each prompt, by the label of its response
        if template.prompt_ids("") == template.steered(run.control_bad).prompt_ids(""):
            raise ValueError("control_good, control_bad: the tokenizer writes both as the same tokens; choose others")
        labelled = by_label(records, run.control_good, run.control_bad)
        train = tokenise(labelled, template.steered(""), responses="keep", **options)
    else:
        train = tokenise(records, template, responses=responses, **options)
    has_pairs = any(len(r.responses) > 1 for r in held)
    try:
        kept = tokenise(held, template, responses="best_worst" if has_pairs else "none", **options) if held else None
    except DataError as error:
        raise DataError(f"held out: {error}; hold out more rows (eval_size), or none with eval_size: 0") from error
    counts = {"train": train.counts, "held_out": kept.counts if kept else {}, "bad_rows": len(reading.bad)}
    return train, kept, counts


def unpaired(records: Sequence[Record]) -> bool:
    """Whether the rows are single responses, each with a label. Other rows among them would be taken for good ones."""
    labelled = [record.labels is not None for record in records]
    if any(labelled) and not all(labelled):
        odd = records[labelled.index(False)]
        raise ValueError(
            f"data: {odd.source}, row {odd.row}: found no label, expected one, since {sum(labelled)} of {len(records)} "
            "rows have one; train on one kind of rows, pairs or labelled responses"
        )
    return any(labelled)


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


def stage_names() -> list[str]:
    """The stages that a config can name."""
    return sorted(
        name
        for name, value in vars(stage_module).items()
        if callable(value)
        and getattr(value, "__module__", "").startswith(stage_module.__name__)
        and name.islower()
        and not name.startswith("_")
    )


def stage_of(spec: StageSpec, parts: Mapping[str, Any]) -> Stage:
    """A stage by name. Its parameters called policy, reference and reward are given to it; the others are options."""
    made = _stage(spec.name)
    parameters = inspect.signature(made).parameters
    if list(parameters) == ["batch"]:
        if spec.options:
            raise ValueError(f"stages.{spec.name}: takes no options, found {', '.join(spec.options)}")
        return made
    options = {n: p for n, p in parameters.items() if n not in ("policy", "reference", "reward")}
    for key in spec.options:
        if key not in options:
            raise ValueError(f"stages.{spec.name}.{key}: no such option; there are {', '.join(options) or 'none'}")
    for key, parameter in options.items():
        if parameter.default is parameter.empty and key not in spec.options:
            raise ValueError(f"stages.{spec.name}.{key}: needed, as in --stages.{spec.name}.{key} 0.05")
    told = {
        key: _option(f"stages.{spec.name}.{key}", spec.options[key], options[key].annotation) for key in spec.options
    }
    return made(**{n: parts[n] for n in parameters if n in parts}, **told)


def _option(where: str, value: Any, kind: Any) -> Any:
    """A stage's option as its annotation asks for it; YAML reads 1e-3 as a text."""
    if get_origin(kind) is Literal:
        one_of(where, value, dict.fromkeys(get_args(kind)))
    elif kind in (int, float):
        try:
            number = None if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = None
        if number is None or (kind is int and not number.is_integer()):
            raise ValueError(f"{where}: {value!r}, expected {'a whole' if kind is int else 'a'} number")
        return kind(number)
    return value


def corrected(run: Run) -> tuple[StageSpec, ...]:
    """The stages before every optimiser step, with the correction of old samples in front where one is named."""
    if run.correction == "none":
        return run.before
    return (StageSpec(name="reweigh", options={"correction": run.correction}), *run.before)


def reuses(run: Run) -> bool:
    """Whether an optimiser step may see own samples of an older policy."""
    steps = run.passes * -(-run.prompts_per_round // (run.minibatch or run.prompts_per_round))
    return samples(run) and steps > 1 and run.max_age != 0 and max_age(run.objective) != 0


def corrects_itself(run: Run) -> bool:
    """Whether the objective has a ratio to the policy that sampled."""
    return "old_logp" in reads(run.objective) or hasattr(run.objective, "correction")


def needs_critic(run: Run) -> bool:
    """Whether the objective or a stage asks what a state is worth."""
    return "value" in reads(run.objective) or _has(run, "recall_value")


def critic(run: Run, policy: HFPolicy, device: str) -> RewardModel:
    """A value head on a body of its own, in the policy's dtype; the head of a language model starts at zero."""
    dtype = next(policy.parameters()).dtype
    where = "meta" if device == "meta" else "cpu"
    made = RewardModel.load(run.critic or run.model, trust_remote_code=run.trust_remote_code, device=where)
    vocabulary = lambda model: model.get_input_embeddings().num_embeddings
    theirs, ours = vocabulary(made.model), vocabulary(policy.model)
    if theirs < ours:
        raise ValueError(f"critic: {run.critic} reads {theirs} tokens and the policy writes {ours}: another tokenizer")
    return made.to(device=device, dtype=dtype)


def needs_reference(run: Run) -> bool:
    """Whether a stage of the run reads the reference."""
    return "reference" in _asked_by_stages(run)


def samples(run: Run) -> bool:
    """Whether the run draws from the policy."""
    return not isinstance(run.source, Offline)


def device_of(name: str) -> str:
    """`auto` is the GPU where there is one."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device: {name}, but no CUDA device is there; write --device cpu")
    return name


def context_of(policy: HFPolicy | RewardModel) -> int | None:
    """The tokens that the model reads at most, where it says so."""
    config: Any = getattr(policy.model, "config", None)
    return getattr(config, "max_position_embeddings", None)


def optimiser_of(run: Run, device: str) -> Any:
    """The optimiser's class; one pass over each weight where weights are whole, five times as fast on a CPU."""
    if run.optim == "adamw":
        return partial(torch.optim.AdamW, fused=run.parallel != "fsdp")
    if device == "cpu" or importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("optim: adamw_8bit needs a CUDA device and the package bitsandbytes; write --optim adamw")
    return importlib.import_module("bitsandbytes").optim.AdamW8bit


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
        warnings.append(f"{dropped} of {counts['train']['rows']} training rows were dropped: {reasons}")
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


def _has(run: Run, stage: str) -> bool:
    return any(spec.name == stage for spec in (*run.stages, *run.before))


def _stage(name: str) -> Any:
    if name not in stage_names():
        raise ValueError(f"stages: no stage {name!r}; there are {', '.join(stage_names())}")
    return getattr(stage_module, name)


def _asked_by_stages(run: Run) -> set[str]:
    return {n for spec in (*run.stages, *run.before) for n in inspect.signature(_stage(spec.name)).parameters}
