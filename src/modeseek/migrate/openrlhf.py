"""OpenRLHF: the command line of `openrlhf.cli.train_dpo` and its kin, from a shell script."""

from __future__ import annotations

import shlex

from modeseek.migrate import batch
from modeseek.migrate.translation import Given, Said, Translation

DEFAULTS = {
    "beta": 0.1,
    "max_len": 2048,
    "learning_rate": 1e-6,
    "max_epochs": 1,
    "micro_train_batch_size": 1,
    "train_batch_size": 128,
    "lr_scheduler": "cosine_with_min_lr",
    "lr_warmup_ratio": 0.03,
    "max_norm": 1.0,
    "seed": 42,
}
MODULES = {
    "train_dpo": "dpo",
    "train_rm": "reward_model",
    "train_kto": "kto",
    "train_sft": "pref_ft",
    "train_ppo_ray": "ppo_critic",
}
UNNEEDED = {
    "save_path": "say --output_dir when training",
    "ckpt_path": "checkpoints lie in the run's directory",
    "zero_stage": "see docs/distributed.md",
    "adam_offload": "see docs/distributed.md",
    "flash_attn": "the run card says which path attention takes",
    "attn_implementation": "the run card says which path attention takes",
    "packing_samples": "no padding reaches the model",
    "apply_chat_template": "the tokenizer's own is taken where it has one",
    "load_checkpoint": "say --resume when training",
    "logging_steps": "every step is logged",
    "use_wandb": "write report_to: [wandb]",
    "chosen_key": "write mixture: [{path, columns: {chosen: NAME}}] where it is not chosen",
    "rejected_key": "write mixture: [{path, columns: {rejected: NAME}}] where it is not rejected",
    "input_key": "write mixture: [{path, columns: {prompt: NAME}}] where it is not prompt",
}
ADVANTAGES = {
    "gae": "ppo_critic",
    "reinforce": "reinforce_pp",
    "reinforce_baseline": "reinforce",
    "rloo": "rloo",
    "group_norm": "grpo",
    "dr_grpo": "dr_grpo",
}


def words(text: str) -> dict[str, object]:
    """The flags of the command in a shell script, without the groups that newer versions put before the dot."""
    tokens = shlex.split(text.replace("\\\n", " "), comments=True)
    found: dict[str, object] = {}
    for i, token in enumerate(tokens):
        if any(token.endswith(f"cli.{name}") for name in MODULES):
            found["module"] = token.rpartition(".")[2]
        if not token.startswith("--") or token == "--module":
            continue
        name, equals, value = token[2:].partition("=")
        following = tokens[i + 1] if i + 1 < len(tokens) else "--"
        found[name.rpartition(".")[2].replace("-", "_")] = (
            value if equals else True if following.startswith("--") else following
        )
    return found


def translate(out: Translation, given: Given, trainer: str, devices: int) -> None:
    """Fill `out` from an OpenRLHF command line."""
    given.defaults = dict(DEFAULTS)
    module = given.take("module")
    if module is None:
        raise ValueError(
            f"{out.file}: no module in it, expected one of {', '.join(f'openrlhf.cli.{m}' for m in MODULES)}"
        )
    method, origin = MODULES[str(module.value)], module.origin
    if method == "dpo" and given.take("ipo"):
        method, origin = "ipo", "--ipo"
    estimator = given.take("advantage_estimator")
    if method == "ppo_critic" and estimator is not None:
        if estimator.value not in ADVANTAGES:
            raise ValueError(f"advantage_estimator: {estimator.value!r}, expected one of {', '.join(ADVANTAGES)}")
        method, origin = ADVANTAGES[str(estimator.value)], estimator.origin
    out.choose(method, origin)
    _objective(out, given, method)
    out.set("model", given.take("model_name_or_path", "pretrain"))
    out.set("data", given.take("dataset", "prompt_data"))
    out.set("split", given.take("dataset_split", "prompt_split"))
    out.set("learning_rate", given.take("learning_rate", "lr", "actor_learning_rate"), float)
    out.set("max_length", given.take("max_len"), int)
    whole, micro = given.number("train_batch_size", 128), given.number("micro_train_batch_size", 1)
    out.set("prompts_per_round", whole, int)
    if micro.value < whole.value:
        out.set("microbatch", micro, int)
    batch.epochs_or_steps(out, given, "max_epochs")
    batch.warmup(out, given, "lr_warmup_ratio", "warmup_steps")
    batch.schedule(out, given.take("lr_scheduler"))
    out.set("max_grad_norm", given.take("max_norm"), float)
    out.set("weight_decay", given.take("l2"), float)
    out.set("seed", given.take("seed"), int)
    out.set("bf16", given.take("bf16"), bool)
    out.set("gradient_checkpointing", given.take("gradient_checkpointing"), bool)
    out.set("load_in_4bit", given.take("load_in_4bit"), bool)
    for theirs in ("save_steps", "eval_steps"):
        said = given.take(theirs)
        if said is not None and int(said.value) > 0:
            out.set(theirs, said, int)
    rank = given.take("lora_rank")
    if rank is not None and int(rank.value):
        batch.lora(out, rank, given.take("lora_alpha"), given.take("target_modules"))
    reward = given.take("reward_pretrain", "remote_rm_url")
    if reward is not None:
        out.set("reward", Said({"type": "model", "path": str(reward.value)}, reward.origin))
    out.set("max_completion_length", given.take("generate_max_len", "max_new_tokens"), int)
    rows = given.take("max_samples")
    if rows is not None:
        out.lose(rows.origin, "all rows are used: cut the file")


def _objective(out: Translation, given: Given, method: str) -> None:
    beta, nll, smoothing = given.take("beta"), given.take("nll_loss_coef"), given.take("label_smoothing")
    if method == "dpo" and nll is not None and float(nll.value):
        out.choose("rpo", nll.origin)
        out.set(
            "objective.inner",
            Said({"type": "dpo", "beta": float((beta or Said(0.1, "")).value)}, beta.origin if beta else ""),
        )
        out.set("objective.nll", nll, float)
    elif method == "dpo":
        out.set("objective.beta", beta, float)
        out.set("objective.label_smoothing", smoothing, float)
    elif method == "ipo":
        out.set("objective.tau", beta, float)
        out.differs.append("OpenRLHF's ipo sums over tokens, as ours does")
    elif method == "kto":
        out.set("objective.beta", beta, float)
        out.set("objective.desirable", given.take("desirable_loss_weight"), float)
        out.set("objective.undesirable", given.take("undesirable_loss_weight"), float)
    k = given.take("n_samples_per_prompt")
    if method in ADVANTAGES.values() and k is not None:
        out.set("source.num_generations", k, int)
    kl = given.take("init_kl_coef")
    if kl is not None:
        stage = {
            "ppo_critic": "kl_per_token",
            "reinforce_pp": "kl_per_token",
            "reinforce": "kl_shaped",
            "rloo": "kl_shaped",
        }.get(method)
        if stage:
            out.set(f"stages.{stage}.beta", kl, float)
        else:
            out.set("objective.kl", kl, float)
