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
}


def translate(out: Translation, given: Given, trainer: str, devices: int) -> None:
    """Fill `out` from an Axolotl config."""
    given.defaults = dict(DEFAULTS)
    kind = given.take("rl")
    name = "" if kind is None else str(kind.value)
    if name not in METHODS:
        raise ValueError(
            f"rl: {name or 'not set'}, expected one of {', '.join(METHODS)}: only preference training is translated"
        )
    assert kind is not None
    out.choose(METHODS[name], kind.origin)
    beta = given.take("rl_beta", "dpo_beta", "orpo_alpha") or Said(0.1, "TRL's default of beta")
    if name == "ipo":
        out.set("objective.tau", beta, float)
        out.set("objective.logp_reduction", Said("mean", "TRL's ipo averages over tokens"))
    else:
        out.set("objective.kl" if name == "grpo" else "objective.beta", beta, float)
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
    out.set("model", given.take("base_model"))
    data = given.take("datasets")
    if data is not None:
        parts = [{"path": d["path"], **({"split": d["split"]} if "split" in d else {})} for d in data.value]
        if len(parts) == 1:
            out.set("data", Said(parts[0]["path"], data.origin))
            out.set("split", Said(parts[0].get("split", "train"), data.origin))
        else:
            out.set("mixture", Said(parts, data.origin))
        types = {str(d["type"]) for d in data.value if "type" in d}
        if types:
            out.differs.append(f"datasets' type ({', '.join(sorted(types))}): rows are known by their columns here")
    out.set("max_length", given.take("sequence_len"), int)
    out.set("learning_rate", given.take("learning_rate"), float)
    batch.pairs(out, given, micro="micro_batch_size", accumulation="gradient_accumulation_steps", devices=devices)
    batch.epochs_or_steps(out, given, "num_epochs")
    batch.warmup(out, given, "warmup_ratio", "warmup_steps")
    batch.schedule(out, given.take("lr_scheduler"))
    bf16 = given.take("bf16")
    out.set("bf16", bf16, lambda v: v in (True, "true", "auto"))
    out.set("gradient_checkpointing", given.take("gradient_checkpointing"), bool)
    out.set("load_in_4bit", given.take("load_in_4bit"), bool)
    optimiser = given.take("optimizer")
    if optimiser is not None:
        out.set("optim", Said("adamw_8bit" if "8bit" in str(optimiser.value) else "adamw", optimiser.origin))
        if not str(optimiser.value).startswith(("adamw", "paged_adamw")):
            out.lose(optimiser.origin, "AdamW is the optimiser here")
    for theirs in ("max_grad_norm", "weight_decay"):
        out.set(theirs, given.take(theirs), float)
    out.set("seed", given.take("seed"), int)
    out.set("eval_size", given.take("val_set_size"), float)
    adapter = given.take("adapter")
    if adapter is not None:
        targets = Said("all-linear", "lora_target_linear: true") if given.take("lora_target_linear") else None
        batch.lora(out, given.take("lora_r"), given.take("lora_alpha"), targets or given.take("lora_target_modules"))
        if adapter.value == "qlora":
            out.set("load_in_4bit", Said(True, adapter.origin))
    dropout = given.take("lora_dropout")
    if dropout is not None and float(dropout.value):
        out.lose(dropout.origin, "dropout is off, so that policy and reference agree")
    for theirs in ("saves_per_epoch", "evals_per_epoch"):
        often = given.take(theirs)
        if often is not None:
            out.unneeded.append(f"{often.origin}: write save_steps and eval_steps")
    if name == "grpo":
        out.lose("trl", "GRPO's own settings: import them with `import-config trl --trainer grpo`") if given.take(
            "trl"
        ) else None
