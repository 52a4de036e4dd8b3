"""Axolotl: `axolotl train x.yml` with `rl: dpo`, `ipo`, `kto`, `orpo`, `simpo` or `grpo`."""

from __future__ import annotations

from modeseek.migrate import batch
from modeseek.migrate.translation import Given, Said, Translation

DEFAULTS = {
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "num_epochs": 1,
    "lr_scheduler": "cosine",
    "max_grad_norm": 1.0,
}
METHODS = {"dpo": "dpo", "ipo": "ipo", "kto": "kto", "orpo": "orpo", "simpo": "simpo", "grpo": "grpo"}
UNNEEDED = {
    "output_dir": "say --output_dir when training",
    "dataset_prepared_path": "nothing is cached",
    "flash_attention": "the run card says which path attention takes",
    "sdp_attention": "the run card says which path attention takes",
    "sample_packing": "prompts are packed with their responses in any case",
    "pad_to_sequence_len": "no padding reaches the model",
    "group_by_length": "no padding reaches the model",
    "tf32": "changes speed only",
    "xformers_attention": "the run card says which path attention takes",
    "special_tokens": "the tokenizer's own are taken",
    "wandb_project": "set it in wandb's environment",
    "wandb_entity": "set it in wandb's environment",
    "wandb_watch": "set it in wandb's environment",
    "wandb_name": "the output directory names the run",
    "deepspeed": "see docs/distributed.md",
    "fsdp": "see docs/distributed.md",
    "fsdp_config": "see docs/distributed.md",
    "chat_template": "the tokenizer's own is taken",
    "gradient_checkpointing_kwargs": "non-reentrant in any case",
    "resume_from_checkpoint": "say --resume when training",
    "save_safetensors": "in any case",
    "logging_steps": "every step is logged",
    "strict": "an unknown key is always an error",
    "model_type": "the model's config says it",
    "tokenizer_type": "the tokenizer's files say it",
    "base_model_config": "the model's own config is taken",
    "is_llama_derived_model": "the model's config says it",
    "skip_prepare_dataset": "rows are known by their columns",
    "eval_max_new_tokens": "held-out answers are as long as max_completion_length",
    "eval_batch_size": "changes speed only",
    "eval_sample_packing": "changes speed only",
    "loss_watchdog_threshold": "a loss that is not finite stops the run; stop_on names other sick states",
    "loss_watchdog_patience": "a loss that is not finite stops the run; stop_on names other sick states",
    "plugins": "kernels change speed only",
    "liger_rope": "changes speed only",
    "liger_rms_norm": "changes speed only",
    "liger_glu_activation": "changes speed only",
    "liger_fused_linear_cross_entropy": "the output layer is fused and runs on responses only",
    "cut_cross_entropy": "the output layer is fused and runs on responses only",
    "dpo_use_logits_to_keep": "the output layer runs on responses only",
    "dpo_padding_free": "no padding reaches the model where the model allows it",
    "lora_mlp_kernel": "changes speed only",
    "lora_qkv_kernel": "changes speed only",
    "lora_o_kernel": "changes speed only",
    "torch_compile": "changes speed only",
    "attn_implementation": "the run card says which path attention takes",
    "eager_attention": "the run card says which path attention takes",
    "dataset_processes": "changes speed only",
    "shuffle_merged_datasets": "prompts are always shuffled, from the seed",
    "unsloth_cross_entropy_loss": "changes speed only",
}
LOST = {
    "load_in_8bit": "only a 4-bit base is known here",
    "lora_model_dir": "name the adapter's folder as the model: it is loaded onto its base",
    "train_on_inputs": "prompts are never trained on here",
    "peft_use_dora": "adapters are plain LoRA here",
    "peft_use_rslora": "adapters are scaled by alpha / r here",
    "dpo_use_weighting": "write the method as `modeseek train wpo`",
    "revision_of_model": "a model is a folder or a hub name: download that revision and name its folder",
    "neftune_noise_alpha": "no noise is added to embeddings",
    "cosine_min_lr_ratio": "schedules end at zero",
    "test_datasets": "write eval_data with a file's path",
    "max_prompt_len": "one budget for prompt and response (max_length); prompts lose their left side",
    "early_stopping_patience": "write metric_for_best_model to keep the best, stop_on to end on a sick state",
    "fp16": "bfloat16 or float32 here",
}


def translate(out: Translation, given: Given, trainer: str, devices: int) -> None:
    """Fill `out` from an Axolotl config."""
    given.defaults = dict(DEFAULTS)
    name = _method(out, given)
    out.set("model", given.take("base_model"))
    _data(out, given)
    _steps(out, given, devices)
    _adapter(out, given)
    dropout = given.take("lora_dropout")
    if dropout is not None and float(dropout.value):
        out.lose(dropout.origin, "dropout is off, so that policy and reference agree")
    for theirs in ("saves_per_epoch", "evals_per_epoch"):
        often = given.take(theirs)
        if often is not None:
            out.unneeded.append(f"{often.origin}: write save_steps and eval_steps")
    if name == "grpo" and given.take("trl"):
        out.lose("trl", "GRPO's own settings: import them with `import-config trl --trainer grpo`")


def _method(out: Translation, given: Given) -> str:
    """The method and the settings of its objective; the name it has there."""
    kind = given.take("rl")
    name = "" if kind is None else str(kind.value)
    if name not in METHODS:
        raise ValueError(
            f"rl: {name or 'not set'}, expected one of {', '.join(METHODS)}: only preference training is translated"
        )
    assert kind is not None
    out.choose(METHODS[name], kind.origin)
    usual = 0.0 if name == "grpo" else 0.1
    beta = given.take("rl_beta", "dpo_beta", "orpo_alpha") or Said(usual, "TRL's default of beta")
    if name == "ipo":
        out.set("objective.tau", beta, float)
        out.set("objective.logp_reduction", Said("mean", "TRL's ipo averages over tokens"))
    elif name == "grpo":
        out.set("objective.kl", beta, float)
        if float(beta.value):
            out.set("objective.kl_by_ratio", Said(True, "TRL's default of use_bias_correction_kl"))
    else:
        out.set("objective.beta", beta, float)
    if name == "dpo":
        out.set("objective.label_smoothing", given.take("dpo_label_smoothing"), float)
    if name == "simpo":
        out.set("objective.gamma", given.take("simpo_gamma") or Said(0.5, "TRL's default of simpo_gamma"), float)
    if name == "kto":
        out.set("objective.desirable", given.take("kto_desirable_weight"), float)
        out.set("objective.undesirable", given.take("kto_undesirable_weight"), float)
    mixed = given.take("rpo_alpha")
    if mixed is not None and name == "dpo":
        out.choose("rpo", mixed.origin)
        out.entries = {"objective.inner": Said({"type": "dpo", "beta": float(beta.value)}, beta.origin)}
        out.set("objective.nll", mixed, float)
    return name


def _data(out: Translation, given: Given) -> None:
    data = given.take("datasets")
    if data is None:
        return
    parts = [{"path": d["path"], **({"split": d["split"]} if "split" in d else {})} for d in data.value]
    if len(parts) == 1:
        out.set("data", Said(parts[0]["path"], data.origin))
        out.set("split", Said(parts[0].get("split", "train"), data.origin))
    else:
        out.set("mixture", Said(parts, data.origin))
    types = {str(d["type"]) for d in data.value if "type" in d}
    if types:
        out.differs.append(f"datasets' type ({', '.join(sorted(types))}): rows are known by their columns here")


def _steps(out: Translation, given: Given, devices: int) -> None:
    out.set("max_length", given.take("sequence_len"), int)
    out.set("learning_rate", given.take("learning_rate"), float)
    batch.pairs(out, given, micro="micro_batch_size", accumulation="gradient_accumulation_steps", devices=devices)
    batch.epochs_or_steps(out, given, "num_epochs")
    batch.warmup(out, given, "warmup_ratio", "warmup_steps")
    batch.schedule(out, given.take("lr_scheduler"))
    out.set("bf16", given.take("bf16"), lambda v: v in (True, "true", "auto"))
    out.set("gradient_checkpointing", given.take("gradient_checkpointing"), bool)
    out.set("load_in_4bit", given.take("load_in_4bit"), bool)
    batch.optimiser(out, given.take("optimizer"))
    batch.precomputed(out, given.take("precompute_ref_log_probs"))
    for theirs in ("max_grad_norm", "weight_decay"):
        out.set(theirs, given.take(theirs), float)
    out.set("seed", given.take("seed"), int)
    out.set("eval_size", given.take("val_set_size"), float)


def _adapter(out: Translation, given: Given) -> None:
    adapter = given.take("adapter")
    if adapter is None:
        return
    named, every = given.take("lora_target_modules"), given.take("lora_target_linear")
    targets = Said("all-linear", "lora_target_linear: true") if every is not None and every.value else named
    batch.lora(out, given.take("lora_r"), given.take("lora_alpha"), targets)
    if adapter.value == "qlora":
        out.set("load_in_4bit", Said(True, adapter.origin))
