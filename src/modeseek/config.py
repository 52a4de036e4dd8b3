"""A run, from a YAML file and the command line: the file picks the parts, the flags turn the knobs.

One YAML whose keys are the flags. An unknown key or value is an error that names the nearest one.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import cattrs
import tyro
import yaml
from cattrs.v import format_exception

from modeseek.objectives import DPO, AnyObjective
from modeseek.policies.adapter import Lora
from modeseek.rewards import AnyReward
from modeseek.train import Steps


@dataclass(frozen=True, kw_only=True)
class Offline:
    """Train on the responses of the data."""


@dataclass(frozen=True, kw_only=True)
class OnPolicy:
    """Train on the policy's own responses to the data's prompts."""

    num_generations: int = 4  # responses to each prompt
    temperature: float = 1.0  # an on-policy objective needs 1: it learns from the distribution it sampled
    top_p: float = 1.0  # 1 keeps the whole vocabulary; an on-policy objective needs that
    top_k: int = 0  # 0 keeps the whole vocabulary; an on-policy objective needs that


@dataclass(frozen=True, kw_only=True)
class Hybrid:
    """Train on the data's responses and on fresh ones to the same prompts, at temperature 1."""

    num_generations: int = 2  # fresh responses to each prompt


AnySource = Offline | OnPolicy | Hybrid


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """One part of the training data."""

    path: str  # file or hub name
    weight: float = 1.0  # counts each of its rows so much
    split: str = "train"
    columns: dict[str, str] | None = None  # our name of a column: its name in the file


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """A stage by name, with what it is told: `kl_shaped: {beta: 0.05}`."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Run(Steps):
    """One training run. The keys of its YAML file are its flags."""

    # what
    model: str = ""  # folder that save_pretrained wrote, or hub name
    data: str = ""  # preference file or hub name; several: `mixture` in the YAML file
    mixture: Annotated[tuple[Mixture, ...], tyro.conf.Suppress] = ()
    split: str = "train"  # split of a hub data set
    eval_data: str = ""  # held-out file; unset: `eval_size` is split off by prompt
    eval_size: float = 0.05  # share of the prompts held out (below 1), or their number
    output_dir: str = "runs/latest"
    # how: the parts, picked by the file
    method: Annotated[str, tyro.conf.Suppress] = ""
    objective: AnyObjective = field(default_factory=DPO)
    source: AnySource = field(default_factory=Offline)
    stages: Annotated[tuple[StageSpec, ...], tyro.conf.Suppress] = ()  # once per round
    before: Annotated[tuple[StageSpec, ...], tyro.conf.Suppress] = ()  # before every optimiser step
    sampler: str = ""  # vllm:URL, a server that draws the policy's samples and is given its weights; unset: itself
    reward: Annotated[AnyReward | None, tyro.conf.Suppress] = (
        None  # scores responses; `--reward SPEC` on the command line
    )
    gold_reward: Annotated[AnyReward | None, tyro.conf.Suppress] = (
        None  # scores held-out answers and is never trained on, to see over-optimisation; `--gold-reward SPEC`
    )
    # how much
    prompts_per_round: int = 16  # B: prompts drawn before the stages run
    # own samples older than one step, for objectives without a correction of their own: `ratio` weighs a group by
    # pi / pi_old, `clip` by that but at most 1, `none` uses them as they are, which is biased (and the card says so)
    correction: Literal["none", "clip", "ratio"] = "none"
    num_train_epochs: int | None = None  # instead of max_steps: times the data is gone through
    # text
    max_length: int = 1024  # tokens of prompt and response together
    max_completion_length: int = 256  # tokens of a response, told or sampled
    stop_strings: tuple[str, ...] = ()  # texts that end a sampled response too; it keeps them
    truncate_responses: bool = False  # cut responses that do not fit instead of dropping their pair
    skip_bad_rows: bool = False  # set bad rows aside into bad_rows.jsonl instead of stopping
    responses: Literal["best_worst", "best", "keep"] = "best_worst"  # of a rated list, offline
    control_good: str = ""  # words before the prompt of a good response, and before every prompt that is answered
    control_bad: str = ""  # words before the prompt of a bad one; both for sft, offline
    # model
    measure_kl: bool = True  # keep a frozen copy of the initial policy even where only the held-out KL reads it
    lora: Annotated[Lora | None, tyro.conf.Suppress] = None  # adapters instead of the full weights; `--lora.r 16`
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    critic: str = ""  # model that PPO's critic starts from, such as a reward model; unset: a copy of the policy's body
    load_in_4bit: bool = False  # QLoRA: needs a CUDA device and bitsandbytes
    optim: Literal["adamw", "adamw_8bit"] = "adamw"  # adamw_8bit needs a CUDA device and bitsandbytes
    gradient_checkpointing: bool = False
    fast: bool = True  # packed rows and cached sampling where the model allows it; false: the plain path
    token_budget: int | None = None  # tokens in memory at once where no gradient is kept; unset: all of a batch's
    reference_cache: str = ""  # folder that keeps what the reference says of the data's responses, for every run
    trust_remote_code: bool = False  # run code that comes with the model
    device: str = "auto"
    # many devices, under torchrun
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"  # fsdp: weights in pieces; auto: ddp, the whole on each device
    fsdp_offload: bool = False  # keep the pieces in host memory between uses: needs CUDA devices
    hang_timeout: int = 45  # seconds for which a rank may keep the others waiting before the run ends
    background_saves: bool = False  # write checkpoints while training goes on
    # what is recorded
    logging_steps: int = 1
    eval_steps: int = 25  # optimiser steps between held-out evaluations; 0: only at the end
    eval_prompts: int = 32  # held-out prompts answered at each evaluation
    save_steps: int = 50  # optimiser steps between checkpoints; 0: only at the end
    save_total_limit: int = 2  # newest checkpoints kept, beside the best
    metric_for_best_model: str = ""  # a key of the eval rows, such as eval/reward; unset: the last is kept
    greater_is_better: bool = True
    report_to: tuple[str, ...] = ()  # tensorboard, wandb, trackio
    stop_on: tuple[str, ...] = ()  # sick states that end the run: displacement, drift, collapse, over-optimisation
    self_test: bool = True  # prove reference, sampler and end tokens right before any compute is spent


OTHERS = {
    "resume_from_checkpoint": "write --resume; the newest checkpoint in output_dir is found",
    "max_prompt_length": "write max_length: prompts lose their left side where prompt and response do not fit",
    "loss_type": "choose the method by its config, as in `modeseek train ipo`; `modeseek objectives` lists them",
    "pref_loss": "choose the method by its config, as in `modeseek train ipo`",
    "pref_beta": "write objective.beta",
    "rl_beta": "write objective.beta",
    "beta": "write objective.beta",
    "dpo_beta": "write objective.beta",
    "label_smoothing": "write objective.label_smoothing",
    "epsilon": "write objective.clip",
    "epsilon_high": "write objective.clip_high",
    "kl_coef": "write stages.kl_shaped.beta",
    "use_vllm": "write sampler: vllm:URL",
    "vllm_server_base_url": "write sampler: vllm:URL",
    "num_generations": "write source.num_generations",
    "temperature": "write source.temperature",
    "top_p": "write source.top_p",
    "top_k": "write source.top_k",
    "cutoff_len": "write max_length",
    "sequence_len": "write max_length",
    "max_seq_length": "write max_length",
    "max_new_tokens": "write max_completion_length",
    "response_length": "write max_completion_length",
    "model_name_or_path": "write model",
    "base_model": "write model",
    "ref_model": "the reference is the initial policy; there is no other",
    "dataset_name": "write data",
    "dataset": "write data",
    "datasets": "write mixture, a list of {path, weight, split, columns}",
    "per_device_train_batch_size": "write prompts_per_round (prompts a round), minibatch (prompts an optimiser step) "
    "and microbatch (prompts in memory at once)",
    "gradient_accumulation_steps": "write microbatch: it changes memory and never the result",
    "num_iterations": "write passes",
    "num_ppo_epochs": "write passes",
    "lr_scheduler_type": "write schedule",
    "max_grad_norm_clip": "write max_grad_norm",
    "epochs": "write num_train_epochs",
    "use_peft": "write lora.r",
    "lora_r": "write lora.r",
    "lora_alpha": "write lora.alpha",
    "lora_rank": "write lora.r",
    "precompute_ref_log_probs": "write reference_cache: FOLDER; each log-probability is computed once, for every run",
    "stop": "write stop_strings",
    "stop_sequences": "write stop_strings",
    "padding_free": "leave it out: no padding reaches the model where the model allows it; the run card says so",
    "use_logits_to_keep": "leave it out: the output layer runs on response positions only",
    "truncation_mode": "leave it out: prompts lose their left side, and responses that do not fit are dropped",
    "force_use_ref_model": "leave it out: the reference is the base with adapters off, or a frozen copy",
    "generate_during_eval": "write eval_steps and eval_prompts",
    "rpo_alpha": "write objective.nll in `modeseek train rpo`",
}


_NAMES = {
    "ChiPO": "chipo",
    "FDPO": "f_dpo",
    "HyPO": "hypo",
    "LDDPO": "ld_dpo",
    "NegativeBoN": "negative_bon",
    "SLiC": "slic",
    "SimPO": "simpo",
    "SquaredPO": "squared_po",
    "UnpairedAOT": "unpaired_aot",
    "WithKL": "with_kl",
    "WithSFT": "with_sft",
}


def snake(cls: type) -> str:
    """DPO -> dpo, PolicyGradient -> policy_gradient, HyPO -> hypo."""
    name = _NAMES.get(cls.__name__, cls.__name__)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def converter() -> cattrs.Converter:
    """How a Run goes to and from plain dicts; a union of dataclasses carries a `type`, wherever it stands."""
    made = cattrs.Converter(forbid_extra_keys=True)
    is_union = lambda hint: len(_dataclasses(hint)) > 1

    def structure(value: Any, union: Any) -> Any:
        if value is None and type(None) in get_args(_bare(union)):
            return None
        assert isinstance(value, Mapping)  # _check_union has seen it
        kinds = {snake(c): c for c in _dataclasses(union)}
        return _tagged(made, value, kinds)

    def unstructure(value: Any) -> Any:
        return None if value is None else {"type": snake(type(value)), **made.unstructure(value)}

    made.register_structure_hook_func(is_union, structure)
    made.register_unstructure_hook_func(is_union, unstructure)
    made.register_structure_hook(bool, _strict_bool)
    made.register_structure_hook(StageSpec, _stage)
    made.register_unstructure_hook(StageSpec, lambda s: {s.name: s.options} if s.options else s.name)
    return made


def _tagged(made: cattrs.Converter, tree: Mapping[str, Any], kinds: Mapping[str, type]) -> Any:
    return made.structure({k: v for k, v in tree.items() if k != "type"}, kinds[tree["type"]])


def from_dict(tree: Mapping[str, Any], where: str = "run") -> Run:
    """A Run from plain data. Raises ValueError naming the key and what to write instead."""
    tree = dict(tree)
    for key in ("reward", "gold_reward"):
        if isinstance(tree.get(key), str):
            tree[key] = reward_tree(tree[key])
    _check(tree, Run, where)
    try:
        return converter().structure(tree, Run)
    except ValueError as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # cattrs groups what it found
        raise ValueError(_reasons(error, where)) from None


def to_dict(run: Run) -> dict[str, Any]:
    """The inverse of `from_dict`: what run.yaml stores."""
    return converter().unstructure(run, unstructure_as=Run)


def load(config: str, flags: Sequence[str] = ()) -> Run:
    """A Run from a YAML file or the name of a shipped config, and flags that override it."""
    tree = read_tree(config)
    rest: list[str] = []
    tree = _apply_structural_flags(tree, list(flags), rest)
    run = from_dict(tree, where=config)
    return tyro.cli(tyro.conf.AvoidSubcommands[Run], default=run, args=_known(rest), prog="modeseek train CONFIG")


def read_tree(config: str, _within: tuple[str, ...] = ()) -> dict[str, Any]:
    """The keys of a YAML file, or of a shipped config by name; those it `extends` underneath its own."""
    path, shipped = Path(config), resources.files("modeseek.configs").joinpath(f"{config}.yaml")
    if re.fullmatch(r"(full/)?[\w.-]+", config) and shipped.is_file():
        text = shipped.read_text()
    elif path.is_file():
        text = path.read_text()
    elif path.suffix in (".yaml", ".yml"):
        raise ValueError(f"config: no file {config}")
    else:
        known = [*names(), *recipes()]
        raise ValueError(f"config: no method {config!r}{_nearest(config, known)}; there are {', '.join(names())}")
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{config}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{config}: expected keys and values, found a {type(tree).__name__}")
    under = tree.pop("extends", ())
    made: dict[str, Any] = {"method": path.stem}
    for base in [under] if isinstance(under, str) else under:
        if base in (*_within, config):
            raise ValueError(f"{config}.extends: {base} would be underneath itself")
        made = over(made, read_tree(base, (*_within, config)))
    return over(made, tree)


def over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of `above` on those of `below`, branch by branch; a part of another `type` is put in whole, lists too."""
    made = dict(below)
    for key, value in above.items():
        old = made.get(key)
        same = isinstance(old, Mapping) and isinstance(value, Mapping) and value.get("type") in (None, old.get("type"))
        made[key] = over(old, value) if same else value  # type: ignore[arg-type]
    return made


def names() -> list[str]:
    """The methods that are shipped as configs."""
    return _shipped(resources.files("modeseek.configs"))


def recipes() -> list[str]:
    """The published recipes, `full/NAME`: a method with its model, its data and its settings."""
    found = _shipped(resources.files("modeseek.configs").joinpath("full"))
    return [f"full/{name}" for name in found if not name.startswith("_")]


def _shipped(folder: Traversable) -> list[str]:
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def reward_tree(spec: str) -> dict[str, Any]:
    """`length`, `length:prefer=shorter`, `regex:pattern=ab+`: a reward's config from one word of the command line."""
    kind, _, options = spec.partition(":")
    if Path(spec).suffix in (".yaml", ".yml") and Path(spec).is_file():
        return yaml.safe_load(Path(spec).read_text())
    tree: dict[str, Any] = {"type": kind}
    for part in filter(None, options.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"reward: {part!r} in {spec!r}, expected key=value as in length:prefer=shorter")
        tree[key] = yaml.safe_load(value) if value else ""  # `cache=` says that there is none
    return tree


def parse_reward(spec: str | Mapping[str, Any], where: str = "reward") -> AnyReward:
    """A reward's config from the command line's word or a file's keys."""
    tree = dict(reward_tree(spec) if isinstance(spec, str) else spec)
    _check_union(tree, AnyReward, where)
    try:
        return converter().structure(tree, AnyReward)  # type: ignore[arg-type]
    except Exception as error:
        raise ValueError(_reasons(error, where)) from None


def _apply_structural_flags(tree: dict[str, Any], flags: list[str], rest: list[str]) -> dict[str, Any]:
    """`--reward`, `--lora.*`, `--stop-on` and `--stages.NAME.OPTION`, which tyro cannot read; the rest goes to it."""
    tree = dict(tree)
    while flags:
        flag = flags.pop(0)
        name, equals, value = flag.partition("=")
        key = name.lstrip("-").replace("-", "_")
        structural = key in ("reward", "gold_reward", "report_to", "stop_on") or key.startswith(
            ("lora", "stages.", "before.")
        )
        if not name.startswith("--") or not structural or key in OTHERS:
            rest.append(flag)
            continue
        if not equals:
            if not flags:
                raise ValueError(f"{name} needs a value")
            value = flags.pop(0)
        if key in ("reward", "gold_reward"):
            tree[key] = reward_tree(value)
        elif key in ("report_to", "stop_on"):
            tree[key] = [] if value == "none" else value.split(",")
        elif key.startswith("lora"):
            tree["lora"] = _lora(tree.get("lora"), key, value)
        else:
            part, stage, option = ([*key.split("."), "", ""])[:3]
            tree[part] = _tell_stage(list(tree.get(part, ())), part, stage, option, value)
    return tree


def _lora(now: Mapping[str, Any] | None, key: str, value: str) -> dict[str, Any] | None:
    if key == "lora":
        told = yaml.safe_load(value)
        if isinstance(told, dict) or told is None:
            return told
        return {} if told else None
    return {**(now or {}), key.partition(".")[2]: yaml.safe_load(value)}


def _tell_stage(stages: list[Any], part: str, name: str, option: str, value: str) -> list[Any]:
    for i, spec in enumerate(stages):
        known, options = (spec, {}) if isinstance(spec, str) else next(iter(spec.items()))
        if known == name and option:
            stages[i] = {name: {**(options or {}), option: yaml.safe_load(value)}}
            return stages
    have = [s if isinstance(s, str) else next(iter(s)) for s in stages]
    raise ValueError(f"{part}.{name}.{option}: this method has no such stage; it has {', '.join(have) or 'none'}")


def _known(flags: list[str]) -> list[str]:
    """Answer the flags of other tools before tyro says that it does not know them."""
    for flag in flags:
        name = flag.partition("=")[0].lstrip("-").replace("-", "_")
        if flag.startswith("--") and name in OTHERS:
            raise ValueError(f"--{name} is another tool's: {OTHERS[name]}")
    return flags


def _check(tree: Any, cls: type, where: str) -> None:
    """Unknown keys, with the nearest known one, before cattrs sees them."""
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where}: {tree!r}, expected keys and values")
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    for key, value in tree.items():
        if key not in known:
            said = OTHERS.get(str(key)) if cls is Run else None
            raise ValueError(f"{where}.{key}: no such key" + (f"; {said}" if said else _nearest(str(key), known)))
        kinds = _dataclasses(hints[key])
        if value is None:
            continue  # cattrs says where a null cannot stand
        if len(kinds) > 1:
            _check_union(value, hints[key], f"{where}.{key}")
        elif kinds and isinstance(value, Mapping):
            _check(value, kinds[0], f"{where}.{key}")
        elif get_origin(hints[key]) is Literal and value not in get_args(hints[key]):
            choices = [str(c) for c in get_args(hints[key])]
            raise ValueError(
                f"{where}.{key}: {value!r}{_nearest(str(value), choices)}; choose from {', '.join(choices)}"
            )


def _check_union(tree: Any, union: Any, where: str) -> None:
    if tree is None:
        return
    kinds = {snake(c): c for c in _dataclasses(union)}
    if not isinstance(tree, Mapping) or "type" not in tree:
        raise ValueError(f"{where}: {tree!r}, expected keys with a `type`, one of {', '.join(sorted(kinds))}")
    kind = tree["type"]
    if kind not in kinds:
        near = _nearest(str(kind), list(kinds))
        raise ValueError(f"{where}.type: {kind!r}{near}; choose from {', '.join(sorted(kinds))}")
    _check({k: v for k, v in tree.items() if k != "type"}, kinds[kind], where)


def _dataclasses(hint: Any) -> list[type]:
    hint = _bare(hint)
    members = get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else [hint]
    return [m for m in members if isinstance(m, type) and dataclasses.is_dataclass(m)]


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, 1, 0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _reasons(error: Exception, where: str) -> str:
    """What cattrs found, in one line; our own words where a dataclass refused its values."""

    def words(found: BaseException, kind: Any) -> str:
        ours = isinstance(found, ValueError) and not isinstance(found, ExceptionGroup)
        return str(found) if ours and str(found) else format_exception(found, kind)

    return "; ".join(dict.fromkeys(cattrs.transform_error(error, path=where, format_exception=words)))


def _strict_bool(value: Any, _: type) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r}, expected true or false")
    return value


def _stage(value: Any, _: type) -> StageSpec:
    if isinstance(value, str):
        return StageSpec(name=value)
    if isinstance(value, Mapping) and len(value) == 1:
        name, options = next(iter(value.items()))
        if isinstance(name, str) and isinstance(options, Mapping):
            return StageSpec(name=name, options=dict(options))
    raise ValueError(f"stage {value!r}, expected a name or `name: {{option: value}}`")
