"""TRL 1.x: the trainers' configs as YAML or as `trl dpo --flags`. Defaults as of 1.16."""

from __future__ import annotations

from modeseek.migrate import batch, trl_losses
from modeseek.migrate.translation import Given, Said, Translation

TRAINER = {"num_train_epochs": 3, "lr_scheduler_type": "linear", "per_device_train_batch_size": 8}
TRAINER |= {"gradient_accumulation_steps": 1, "seed": 42, "max_grad_norm": 1.0, "bf16": True}
DEFAULTS = {
    "dpo": {"beta": 0.1, "learning_rate": 1e-6, "max_length": 1024, "loss_type": "sigmoid"},
    "kto": {"beta": 0.1, "learning_rate": 1e-6, "max_length": 1024, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    "orpo": {"beta": 0.1, "learning_rate": 1e-6, "max_length": 1024},
    "cpo": {"beta": 0.1, "learning_rate": 1e-6, "max_length": 1024, "loss_type": "sigmoid", "cpo_alpha": 1.0},
    "sft": {"learning_rate": 2e-5, "max_length": 1024},
    "reward": {"learning_rate": 1e-4, "max_length": 1024},
    "grpo": {
        "beta": 0.0,
        "learning_rate": 1e-6,
        "num_generations": 8,
        "max_completion_length": 512,
        "epsilon": 0.2,
        "num_iterations": 1,
        "loss_type": "dapo",
        "temperature": 1.0,
    },
    "rloo": {
        "beta": 0.05,
        "learning_rate": 1e-6,
        "num_generations": 2,
        "max_completion_length": 512,
        "temperature": 1.0,
        "num_iterations": 1,
    },
    "online_dpo": {"beta": 0.1, "learning_rate": 5e-7, "max_new_tokens": 64, "temperature": 0.9},
}
UNNEEDED = {
    "output_dir": "say --output_dir when training",
    "gradient_checkpointing_kwargs": "non-reentrant in any case",
    "precompute_ref_batch_size": "changes memory only: write token_budget",
    "padding_free": "no padding reaches the model where the model allows it",
    "use_liger_kernel": "the output layer is fused and runs on responses only",
    "use_logits_to_keep": "the output layer runs on responses only",
    "remove_unused_columns": "columns that are not read are not loaded",
    "truncation_mode": "prompts lose their left side",
    "logging_strategy": "by steps",
    "save_strategy": "by steps",
    "eval_strategy": "by steps",
    "do_eval": "held-out rows are always evaluated",
    "per_device_eval_batch_size": "changes speed only",
    "dataloader_num_workers": "the data are in memory",
    "dataset_num_proc": "changes speed only",
    "disable_dropout": "dropout is off in both models",
    "attn_implementation": "the run card says which path attention takes",
    "logging_first_step": "every step is logged by default",
    "log_completions": "samples are in samples.jsonl",
    "push_to_hub": "see `modeseek export --push`",
    "hub_model_id": "see `modeseek export --push`",
    "overwrite_output_dir": "a run is never overwritten",
    "use_vllm": "sampling has its own cache; a server can sample too",
    "vllm_mode": "sampling has its own cache",
    "vllm_gpu_memory_utilization": "sampling has its own cache",
    "run_name": "the output directory names the run",
    "ddp_find_unused_parameters": "changes speed only",
    "accelerate_config": "see docs/distributed.md",
    "num_processes": "see docs/distributed.md",
    "generate_during_eval": "held-out prompts are always answered (eval_prompts)",
    "dataset_test_split": "held-out rows are split off by prompt; write eval_data for a file",
    "use_peft": "lora stands for it",
    "preprocessing_num_workers": "changes speed only",
    "dataloader_pin_memory": "changes speed only",
    "log_level": "the run card and rows.jsonl hold what there is to know",
    "hub_strategy": "see `modeseek export --push`",
    "hub_private_repo": "see `modeseek export --push`",
    "hub_model_revision": "see `modeseek export --push`",
    "torch_compile": "changes speed only",
    "dataset_kwargs": "rows are known by their columns",
    "save_only_model": "checkpoints hold all that a resume needs",
    "load_best_model_at_end": "write metric_for_best_model: eval/... to keep the best",
    "ddp_timeout": "write hang_timeout",
    "f_alpha_divergence_coef": "read with f_divergence_type: alpha_divergence only",
}
LOST = {
    "lora_dropout": "dropout is off, so that policy and reference agree",
    "model_revision": "a model is a folder or a hub name: download that revision and name its folder",
    "sync_ref_model": "a moving reference: `modeseek train tr_dpo`",
    "ref_model_sync_steps": "a moving reference: `modeseek train tr_dpo`",
    "ref_model_mixup_alpha": "a moving reference: `modeseek train tr_dpo`",
    "ref_model_name_or_path": "the reference is the initial policy; there is no other",
    "reference_free": "`modeseek train simpo` and `orpo` have no reference",
    "lr_scheduler_kwargs": "schedules end at zero",
    "load_in_8bit": "only a 4-bit base is known here",
    "top_entropy_quantile": "`modeseek train high_entropy_grpo`, whose quantile is one less TRL's",
    "missing_eos_penalty": "add {penalise_unfinished: {penalty: ...}} to the stages, behind score",
    "normalize_advantages": "add whiten to the stages: over tokens, where TRL's is over responses",
    "reward_clip_range": "add {clip_reward: {low: ..., high: ...}} to the stages, behind score",
    "mask_truncated_completions": "add keep_finished to the stages, behind score",
    "delta": "PPO's ratio has no second limit here",
    "neftune_noise_alpha": "no noise is added to embeddings",
    "packing": "prompts share no row here, so nothing leaks between them",
}


def trainer_of(given: Given) -> str:
    """Which trainer's config it is, from the keys that only one of them has."""
    keys = given.keys
    if {"num_generations", "epsilon", "num_iterations"} & keys.keys():
        return "rloo" if "rloo_k" in keys or "normalize_advantages" in keys else "grpo"
    if {"desirable_weight", "undesirable_weight"} & keys.keys():
        return "kto"
    if "center_rewards_coefficient" in keys:
        return "reward"
    return "cpo" if {"cpo_alpha", "simpo_gamma"} & keys.keys() or keys.get("loss_type") == "simpo" else "dpo"


def translate(out: Translation, given: Given, trainer: str, devices: int) -> None:
    """Fill `out` from a TRL config."""
    if trainer not in DEFAULTS:
        raise ValueError(f"trainer: {trainer!r}, expected one of {', '.join(DEFAULTS)}")
    given.defaults = {**TRAINER, **DEFAULTS[trainer]}
    trl_losses.method(out, given, trainer)
    out.set("model", given.take("model_name_or_path", "model"))
    _data(out, given)
    out.set("learning_rate", given.take("learning_rate"), float)
    own = trainer in ("grpo", "rloo", "online_dpo")
    batch.pairs(
        out, given, micro="per_device_train_batch_size", accumulation="gradient_accumulation_steps", devices=devices
    )
    if own:
        _own_samples(out, given, trainer)
    batch.epochs_or_steps(out, given, "num_train_epochs")
    batch.warmup(out, given, "warmup_ratio", "warmup_steps")
    batch.schedule(out, given.take("lr_scheduler_type"))
    for theirs in ("max_grad_norm", "weight_decay", "adam_beta1", "adam_beta2"):
        out.set(theirs, given.take(theirs), float)
    for theirs in ("seed", "save_total_limit"):
        out.set(theirs, given.take(theirs), int)
    for theirs in ("eval_steps", "save_steps", "logging_steps"):
        batch.often(out, theirs, given.take(theirs))
    batch.optimiser(out, given.take("optim"))
    _dtype(out, given.take("dtype", "torch_dtype"))
    for theirs in ("gradient_checkpointing", "load_in_4bit", "trust_remote_code"):
        out.set(theirs, given.take(theirs), bool)
    out.set("bf16", given.take("bf16"), bool)
    out.set("max_length", given.take("max_length"), int)
    out.set("max_completion_length", given.take("max_completion_length", "max_new_tokens"), int)
    batch.lora(out, given.take("lora_r"), given.take("lora_alpha"), given.take("lora_target_modules"))
    batch.precomputed(out, given.take("precompute_ref_log_probs"))
    report = given.take("report_to")
    known = ("tensorboard", "wandb", "trackio")
    out.set("report_to", report, lambda v: [x for x in (v if isinstance(v, list) else [v]) if x in known])
    prompt = given.take("max_prompt_length")
    if prompt is not None:
        out.lose(prompt.origin, "one budget for prompt and response (max_length); prompts lose their left side")
    out.differs.append(
        "a response that does not fit max_length is dropped and counted; TRL cuts it, as truncate_responses: true does"
    )


def _own_samples(out: Translation, given: Given, trainer: str) -> None:
    k = given.take("num_generations") or Said(2, "two responses")
    rows = out.entries["prompts_per_round"]
    if trainer != "online_dpo":  # a row of TRL's batch is a completion
        out.set("prompts_per_round", Said(max(1, int(rows.value) // int(k.value)), f"{rows.origin} / {k.origin}"))
        if "microbatch" in out.entries:
            micro = out.entries["microbatch"]
            out.set("microbatch", Said(max(1, int(micro.value) // int(k.value)), f"{micro.origin} / {k.origin}"))
    out.set("source.num_generations", k, int)
    for key in ("temperature", "top_p", "top_k"):
        said = given.take(key)
        neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}[key]
        if said is None or float(said.value) == neutral:
            continue
        if trainer == "online_dpo":
            out.set(f"source.{key}", said, int if key == "top_k" else float)
        else:
            out.lose(said.origin, "an on-policy gradient needs samples of the whole distribution; left at neutral")
    passes = given.take("num_iterations")
    if passes is not None and int(passes.value) > 1:
        out.set("passes", passes, int)
        if trainer == "rloo":
            out.set("objective.correction", Said("clip", passes.origin))
            out.lose(passes.origin, "TRL clips a response's ratio on both sides; here it weighs at most 1")
    reward = given.take("reward_model_path", "reward_model_name_or_path", "reward_funcs")
    if reward is None:
        out.lose("reward", "none named in the file; say --reward when training")
    else:
        path = reward.value[0] if isinstance(reward.value, list) else reward.value
        out.set("reward", Said({"type": "model", "path": str(path)}, reward.origin))
        if isinstance(reward.value, list) and len(reward.value) > 1:
            out.lose(reward.origin, "several rewards: write reward: {type: ensemble, ...}")


def _data(out: Translation, given: Given) -> None:
    out.set("data", given.take("dataset_name"))
    out.set("split", given.take("dataset_train_split"))
    subset = given.take("dataset_config")
    if subset is not None:
        out.lose(subset.origin, "a subset of a hub data set: save it as a file and name that")
    several, mixed = given.take("datasets"), given.take("dataset_mixture")
    if mixed is not None:  # of the alignment handbook and of TRL's scripts
        several = Said((mixed.value or {}).get("datasets") or [], mixed.origin)
    if several is not None:
        _mixture(out, several)
    mixer, splits = given.take("dataset_mixer"), given.take("dataset_splits")
    if mixer is not None:
        train = next((str(x) for x in (splits.value if splits else []) if "test" not in str(x)), None)
        split = {} if train is None else {"split": train}
        _mixture(
            out, Said([{"path": path, "fraction": part, **split} for path, part in mixer.value.items()], mixer.origin)
        )


def _mixture(out: Translation, several: Said) -> None:
    """Parts of the data. A share of the rows is none of ours: weights count each row so much."""
    parts = []
    for d in several.value:
        columns = d.get("columns")
        share = d.get("fraction", d.get("weight"))
        parts.append({"path": d.get("path") or d.get("id"), **_only(d, "split")})
        if isinstance(columns, dict):
            parts[-1]["columns"] = columns
        if share is not None and float(share) != 1:
            parts[-1]["weight"] = float(share)
            out.lose(
                f"{parts[-1]['path']}: {share}", "takes a share of the rows there, and weighs each row so much here"
            )
        for key in ("config", "name"):
            if d.get(key):
                out.lose(f"{key}: {d[key]}", "a subset of a hub data set: save it as a file and name that")
    if len(parts) == 1 and parts[0].keys() <= {"path", "split"}:
        out.set("data", Said(parts[0]["path"], several.origin))
        out.set("split", Said(parts[0].get("split", "train"), several.origin))
    else:
        out.set("mixture", Said(parts, several.origin))


def _dtype(out: Translation, said: Said | None) -> None:
    """Weights in bfloat16 take smaller steps than weights in float32 under autocast."""
    if said is None or said.value == "auto":
        return
    name = str(said.value).removeprefix("torch.")
    if name in ("bfloat16", "float32"):
        out.set("dtype", Said(name, said.origin))
    else:
        out.lose(said.origin, "weights are in float32 or bfloat16 here")


def _only(tree: dict, *names: str) -> dict:
    return {name: tree[name] for name in names if name in tree}
