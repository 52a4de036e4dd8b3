"""LLaMA-Factory: `llamafactory-cli train x.yaml` with `stage: dpo`, `kto`, `rm`, `sft` or `ppo`."""

from __future__ import annotations

from modeseek.migrate import batch
from modeseek.migrate.translation import Given, Said, Translation

DEFAULTS = {
    "stage": "sft",
    "pref_beta": 0.1,
    "pref_loss": "sigmoid",
    "cutoff_len": 2048,
    "learning_rate": 5e-5,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 3,
    "lr_scheduler_type": "linear",
    "max_grad_norm": 1.0,
    "seed": 42,
}
LOSSES = {
    "sigmoid": "dpo",
    "hinge": "hinge",
    "ipo": "ipo",
    "orpo": "orpo",
    "simpo": "simpo",
    "kto_pair": "kto",
    "bco_pair": "bco",
}
UNNEEDED = {
    "do_train": "`modeseek train` trains",
    "finetuning_type": "lora stands for it",
    "overwrite_cache": "nothing is cached",
    "preprocessing_num_workers": "changes speed only",
    "dataloader_num_workers": "the data are in memory",
    "output_dir": "say --output_dir when training",
    "overwrite_output_dir": "a run is never overwritten",
    "plot_loss": "`modeseek report` draws it",
    "dataset_dir": "data name a file or a hub data set",
    "ddp_timeout": "see docs/distributed.md",
    "deepspeed": "see docs/distributed.md",
    "flash_attn": "the run card says which path attention takes",
    "eval_strategy": "by steps",
    "save_strategy": "by steps",
    "per_device_eval_batch_size": "changes speed only",
    "resume_from_checkpoint": "say --resume when training",
    "save_only_model": "checkpoints hold all that a resume needs",
    "enable_liger_kernel": "the output layer is fused and runs on responses only",
    "ref_model_quantization_bit": "the reference is the base with adapters off, or a frozen copy",
    "eval_dataset": "write eval_data with a file's path",
    "do_eval": "held-out rows are always evaluated",
    "disable_gradient_checkpointing": "gradient_checkpointing is off unless it is written",
    "upcast_layernorm": "norms compute in float32 in any case",
    "use_unsloth": "changes speed only",
    "logging_dir": "report_to: [tensorboard] writes beside the run",
    "run_name": "the output directory names the run",
    "include_num_input_tokens_seen": "rows.jsonl has the tokens",
}
_REFERENCE = "the reference is the initial policy; there is no other"
LOST = {
    "ref_model": _REFERENCE,
    "ref_model_adapters": _REFERENCE,
    "adapter_name_or_path": "name the adapter's folder as the model: it is loaded onto its base",
    "lora_dropout": "dropout is off, so that policy and reference agree",
    "use_dora": "adapters are plain LoRA here",
    "use_rslora": "adapters are scaled by alpha / r here",
    "pissa_init": "adapters begin at zero here",
    "mask_history": "only the last turn is a response here",
    "packing": "prompts share no row here, so nothing leaks between them",
    "neat_packing": "prompts share no row here, so nothing leaks between them",
    "neftune_noise_alpha": "no noise is added to embeddings",
    "freeze_trainable_layers": "all weights are trained, or adapters",
    "use_galore": "AdamW is the optimiser here",
    "use_badam": "AdamW is the optimiser here",
    "rope_scaling": "write it into the model's config",
    "streaming": "the data are in memory",
    "top_p": "an on-policy gradient needs samples of the whole distribution; left at 1",
    "temperature": "an on-policy gradient needs samples of the whole distribution; left at 1",
}


def translate(out: Translation, given: Given, trainer: str, devices: int) -> None:
    """Fill `out` from a LLaMA-Factory config."""
    given.defaults = dict(DEFAULTS)
    stage = given.take("stage")
    assert stage is not None
    _method(out, given, str(stage.value), stage.origin)
    out.set("model", given.take("model_name_or_path"))
    _data(out, given)
    _steps(out, given, devices)
    _weights(out, given)
    rows = given.take("max_samples")
    if rows is not None:
        out.lose(rows.origin, "all rows are used: cut the file")
    out.set("report_to", given.take("report_to"), lambda v: [] if v == "none" else [v])


def _data(out: Translation, given: Given) -> None:
    data = given.take("dataset")
    if data is not None:
        names = [name.strip() for name in str(data.value).split(",")]
        if len(names) > 1:
            out.set("mixture", Said([{"path": name} for name in names], data.origin))
        else:
            out.set("data", data)
        out.differs.append(
            "dataset names an entry of dataset_info.json; here it is a file or a hub data set: write its path"
        )
    template = given.take("template")
    if template is not None:
        out.differs.append(f"{template.origin}: prompts are rendered by the tokenizer's own chat template here")


def _steps(out: Translation, given: Given, devices: int) -> None:
    out.set("max_length", given.take("cutoff_len"), int)
    out.set("learning_rate", given.take("learning_rate"), float)
    batch.pairs(
        out, given, micro="per_device_train_batch_size", accumulation="gradient_accumulation_steps", devices=devices
    )
    batch.epochs_or_steps(out, given, "num_train_epochs")
    batch.warmup(out, given, "warmup_ratio", "warmup_steps")
    batch.schedule(out, given.take("lr_scheduler_type"))
    out.set("bf16", given.take("bf16"), bool)
    for theirs in ("max_grad_norm", "weight_decay"):
        out.set(theirs, given.take(theirs), float)
    out.set("seed", given.take("seed"), int)
    for theirs in ("eval_steps", "save_steps", "logging_steps"):
        batch.often(out, theirs, given.take(theirs))
    out.set("trust_remote_code", given.take("trust_remote_code"), bool)
    out.set("max_completion_length", given.take("max_new_tokens"), int)
    batch.optimiser(out, given.take("optim"))
    out.set("eval_size", given.take("val_size"), float)


def _weights(out: Translation, given: Given) -> None:
    """Which are trained, and in how many bits the others stand."""
    if given.keys.get("finetuning_type", "lora") == "lora":
        rank = given.take("lora_rank") or Said(8, "LLaMA-Factory's default of lora_rank")
        alpha = given.take("lora_alpha") or Said(2 * int(rank.value), "LLaMA-Factory's default: twice the rank")
        batch.lora(out, rank, alpha, given.take("lora_target"))
    bits = given.take("quantization_bit")
    if bits is not None and int(bits.value) == 4:
        out.set("load_in_4bit", Said(True, bits.origin))
    elif bits is not None:
        out.lose(bits.origin, "only a 4-bit base is known here")


def _method(out: Translation, given: Given, stage: str, origin: str) -> None:
    beta, loss, ftx = given.take("pref_beta"), given.take("pref_loss"), given.take("pref_ftx")
    assert beta is not None and loss is not None
    if stage in ("sft", "rm", "kto", "ppo"):
        out.choose({"sft": "pref_ft", "rm": "reward_model", "kto": "kto", "ppo": "ppo_critic"}[stage], origin)
        if stage == "kto":
            out.set("objective.beta", beta, float)
            out.set("objective.desirable", given.take("kto_chosen_weight"), float)
            out.set("objective.undesirable", given.take("kto_rejected_weight"), float)
        if stage == "ppo":
            reward = given.take("reward_model")
            out.set("reward", reward, lambda path: {"type": "model", "path": path})
            if reward is None:
                out.lose("reward_model", "none named; say --reward when training")
        return
    if stage != "dpo":
        raise ValueError(f"stage: {stage!r}, expected dpo, kto, ppo, rm or sft")
    if loss.value not in LOSSES:
        raise ValueError(f"pref_loss: {loss.value!r} is none that this knows: {', '.join(LOSSES)}")
    method = LOSSES[str(loss.value)]
    smoothing = given.take("dpo_label_smoothing")
    if ftx is not None and float(ftx.value):
        out.choose("rpo", ftx.origin)
        out.set("objective.inner", Said({"type": "dpo", "beta": float(beta.value)}, beta.origin))
        out.set("objective.nll", ftx, float)
        out.set("objective.nll_reduction", Said("mean", "LLaMA-Factory averages the likelihood over tokens"))
        if method != "dpo":
            out.lose(loss.origin, "pref_ftx is combined with the sigmoid loss here; write another inner objective")
        return
    out.choose(method, loss.origin)
    if method == "ipo":
        out.set("objective.tau", beta, float)
        out.set("objective.logp_reduction", Said("mean", "LLaMA-Factory's ipo averages over tokens"))
    else:
        out.set("objective.beta", beta, float)
    if method == "simpo":
        gamma = given.take("simpo_gamma") or Said(0.5, "LLaMA-Factory's default of simpo_gamma")
        out.set("objective.gamma", gamma, float)
    if method == "dpo":
        out.set("objective.label_smoothing", smoothing, float)
