"""What a run is told: every key of its YAML file, which is every flag of its command line."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

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
    subset: str | None = None  # configuration of a hub data set
    columns: dict[str, Any] | None = None  # our name of a column: its name in the file; unset: the run's


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """A stage by name, with what it is told: `kl_shaped: {beta: 0.05}`."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Run(Steps):
    """One training run. The keys of its YAML file are its flags.

    Beside those below: --reward SPEC, --gold-reward SPEC, --lora.r N, --stages.NAME.OPTION X, --columns YAML,
    --stop-on STATES, --report-to LOGGERS, --resume (go on from the newest checkpoint), --dry-run (two steps on a twin).
    """

    # what
    model: str = ""  # folder that save_pretrained wrote, or hub name
    data: str = ""  # preference file or hub name; several: `mixture` in the YAML file
    mixture: Annotated[tuple[Mixture, ...], tyro.conf.Suppress] = ()
    split: str = "train"  # split of a hub data set
    # our name of a column: its name in the file, where it has another; `--columns '{chosen: better, rejected: worse}'`
    columns: Annotated[dict[str, Any] | None, tyro.conf.Suppress] = None
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
    unverified: bool = False  # packed rows also on a device on which no one has run them, if they pass a trial there
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
