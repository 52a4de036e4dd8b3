"""OpenRLHF: the command line of `openrlhf.cli.train_dpo` and its kin, from a shell script; defaults of 0.8 to 0.11."""

from __future__ import annotations

import re
import shlex
from typing import Any

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
    "adam_betas": ["0.9", "0.95"],
    "max_norm": 1.0,
    "seed": 42,
}
OWN_SAMPLES = {  # of train_ppo_ray, where they differ
    "rollout_batch_size": 1024,
    "micro_train_batch_size": 4,
    "n_samples_per_prompt": 1,
    "num_episodes": 1,
    "prompt_max_len": 1024,
    "generate_max_len": 1024,
    "eps_clip": 0.2,
    "init_kl_coef": 0.01,
    "lambd": 1.0,
    "value_clip": 0.5,
}
MODULES = {
    "train_dpo": "dpo",
    "train_rm": "reward_model",
    "train_kto": "kto",
    "train_sft": "pref_ft",
    "train_ppo_ray": "ppo_critic",
}
COLUMNS = {"chosen_key": "chosen", "rejected_key": "rejected", "prompt_key": "prompt", "input_key": "prompt"}
COLUMNS |= {"output_key": "completion", "label_key": "label"}
UNNEEDED = {
    "save_path": "say --output_dir when training",
    "ckpt_path": "checkpoints lie in the run's directory",
    "save_hf_ckpt": "the model is exported at the end",
    "save_value_network": "checkpoints hold the critic",
    "disable_ds_ckpt": "checkpoints hold all that a resume needs",
    "max_ckpt_num": "write save_total_limit",
    "load_checkpoint": "say --resume when training",
    "zero_stage": "see docs/distributed.md",
    "adam_offload": "see docs/distributed.md",
    "ref_offload": "the reference's weights are cut up with the policy's (docs/distributed.md)",
    "ref_reward_offload": "see docs/distributed.md",
    "flash_attn": "the run card says which path attention takes",
    "attn_implementation": "the run card says which path attention takes",
    "packing_samples": "no padding reaches the model",
    "gradient_checkpointing_use_reentrant": "non-reentrant in any case",
    "apply_chat_template": "the tokenizer's own is taken where it has one",
    "logging_steps": "every step is logged",
    "use_wandb": "write report_to: [wandb]",
    "use_tensorboard": "write report_to: [tensorboard]",
    "micro_rollout_batch_size": "changes memory only: write token_budget",
    "use_dynamic_batch": "changes memory only: write microbatch_tokens",
    "train_max_tokens_per_gpu": "changes memory only: write microbatch_tokens",
    "rollout_max_tokens_per_gpu": "changes memory only: write token_budget",
    "enable_vllm_is_correction": "who samples says what who trains says: the self-test proves it before the first step",
    "enforce_eager": "changes speed only",
    "perf": "changes speed only",
    "use_liger_kernel": "the output layer is fused and runs on responses only",
}
PLACES = re.compile(  # what runs where: none of our keys
    r"(ref|reward|critic|actor)_num_(nodes|gpus_per_node)|vllm_.+|ds_.+|deepspeed_.+|ring_.+|colocate_.+|wandb_.+|"
    r"async_.+"
)
LOST = {
    "ref_pretrain": "the reference is the initial policy; there is no other",
    "ref_model_name_or_path": "the reference is the initial policy; there is no other",
    "critic_learning_rate": "the critic learns at the policy's rate; objective.value_weight says how much",
    "normalize_reward": "rewards are taken as they are",
    "freezing_actor_steps": "policy and critic learn from the first step on; begin with --critic FOLDER",
    "temperature": "an on-policy gradient needs samples of the whole distribution; left at 1",
    "top_p": "an on-policy gradient needs samples of the whole distribution; left at 1",
    "lora_dropout": "dropout is off, so that policy and reference agree",
    "max_samples": "all rows are used: cut the file",
    "dynamic_filtering": "a group whose rewards tie is left out by the stages of `modeseek train dapo`",
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
    """The flags behind the module in a shell script, a here-document too; the groups that newer versions put before
    the dot are left out where the name alone says what it is."""
    names = "|".join(MODULES)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if not line.lstrip().startswith("#")]
    command = next((line for line in lines if re.search(rf"cli\.({names})\b", line)), "")
    tokens = shlex.split(command, comments=True)
    at = next((i for i, token in enumerate(tokens) if re.search(rf"cli\.({names})$", token)), None)
    if at is None:
        return {}
    found: dict[str, object] = {"module": tokens[at].rpartition(".")[2]}
    name = ""
    for token in tokens[at + 1 :]:
        if token.startswith("--"):
            told, equals, value = token[2:].partition("=")
            group, _, name = told.rpartition(".")
            name = (f"{group}_{name}" if group in ("ref", "reward", "critic") else name).replace("-", "_")
            found[name] = value if equals else True
        elif name:
            before = found[name]
            found[name] = token if before is True else [*(before if isinstance(before, list) else [before]), token]
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
    own = method == "ppo_critic"
    given.defaults |= OWN_SAMPLES if own else {}
    if method == "dpo" and given.take("ipo"):
        method, origin = "ipo", "--ipo"
    estimator = given.take("advantage_estimator")
    if own and estimator is not None:
        if estimator.value not in ADVANTAGES:
            raise ValueError(f"advantage_estimator: {estimator.value!r}, expected one of {', '.join(ADVANTAGES)}")
        method, origin = ADVANTAGES[str(estimator.value)], estimator.origin
    out.choose(method, origin)
    out.set("model", given.take("model_name_or_path", "pretrain", "actor_model_name_or_path"))
    _data(out, given)
    _own_samples(out, given, method) if own else _pairs(out, given, method)
    out.set("learning_rate", given.take("actor_learning_rate", "lr", "learning_rate"), float)
    batch.warmup(out, given, "lr_warmup_ratio", "warmup_steps")
    batch.schedule(out, given.take("lr_scheduler"))
    betas = given.take("adam_betas")
    if betas is not None and isinstance(betas.value, list):
        out.set("adam_beta1", Said(float(betas.value[0]), betas.origin))
        out.set("adam_beta2", Said(float(betas.value[1]), betas.origin))
    out.set("max_grad_norm", given.take("max_norm"), float)
    out.set("weight_decay", given.take("l2"), float)
    out.set("seed", given.take("seed"), int)
    out.set("bf16", given.take("param_dtype"), lambda value: value == "bf16")
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
    for name in [name for name in given.left() if PLACES.fullmatch(name)]:
        given.take(name)
        out.unneeded.append(f"{name}: see docs/distributed.md and docs/vllm.md")


def _data(out: Translation, given: Given) -> None:
    """`data`, or a mixture of one where columns have other names than ours."""
    path, split = given.take("dataset", "prompt_data"), given.take("dataset_split", "prompt_split")
    named = {key: given.take(key) for key in COLUMNS}
    columns = {COLUMNS[k]: str(x.value) for k, x in named.items() if x is not None and str(x.value) != COLUMNS[k]}
    if path is None:
        return
    if not columns:
        out.set("data", path)
        out.set("split", split)
        return
    part: dict[str, Any] = {"path": str(path.value), "columns": columns}
    origins = [path.origin, *(x.origin for x in named.values() if x is not None)]
    out.set("mixture", Said([part | ({"split": split.value} if split else {})], "; ".join(origins)))


def _pairs(out: Translation, given: Given, method: str) -> None:
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
    out.set("max_length", given.take("max_len"), int)
    out.differs.append("rows longer than max_len are dropped by both; here they are counted")
    whole, micro = given.number("train_batch_size", 128), given.number("micro_train_batch_size", 1)
    out.set("prompts_per_round", whole, int)
    if micro.value < whole.value:
        out.set("microbatch", micro, int)
    batch.epochs_or_steps(out, given, "max_epochs")


def _own_samples(out: Translation, given: Given, method: str) -> None:
    """A rollout is a round; its batch and epochs are the dials of reuse. Every estimator has the clipped ratio."""
    clip, k = given.number("eps_clip", 0.2), given.number("n_samples_per_prompt", 1)
    if method != "ppo_critic":
        why = f"{clip.origin}: OpenRLHF clips the ratio for every estimator"
        out.set("objective", Said({"type": "ppo", "clip": clip.value}, why))
    low_high = given.take("eps_clip_low_high")
    if low_high is not None and isinstance(low_high.value, list):
        clip = Said(float(low_high.value[0]), low_high.origin)
        out.set("objective.clip_high", Said(float(low_high.value[1]), low_high.origin))
    out.set("objective.clip", clip)
    out.set("objective.logp_reduction", Said("minibatch_mean", "OpenRLHF averages over the batch's tokens"))
    out.set("before", Said(["share_tokens"], "OpenRLHF averages over the batch's tokens"))
    if method == "ppo_critic":
        out.set("stages.gae.lam", given.take("lambd"), float)
        out.set("objective.value_clip", given.take("value_clip"), float)
        out.set("critic", given.take("critic_pretrain", "critic_model_name_or_path", "reward_pretrain"), str)
    _kl(out, given, method)
    out.set("source.num_generations", k, int)
    prompts, samples = given.number("rollout_batch_size", 1024), given.number("train_batch_size", 128)
    micro = given.number("micro_train_batch_size", 4)
    per_step = max(1, int(samples.value // k.value))
    out.set("prompts_per_round", prompts, int)
    if per_step < prompts.value:
        out.set("minibatch", Said(per_step, f"{samples.origin} samples / {k.origin}"))
    out.set("microbatch", Said(max(1, int(micro.value // k.value)), f"{micro.origin} samples / {k.origin}"))
    out.set("passes", given.take("max_epochs"), int)
    batch.epochs_or_steps(out, given, "num_episodes")
    longest, prompt = given.take("generate_max_len", "max_new_tokens"), given.take("prompt_max_len")
    assert longest is not None and prompt is not None
    out.set("max_completion_length", longest, int)
    whole = int(longest.value) + int(prompt.value)
    out.set("max_length", given.take("max_len") if "max_len" in given.keys else Said(whole, prompt.origin), int)
    reward, remote = given.take("reward_pretrain", "reward_model_name_or_path"), given.take("remote_rm_url")
    if remote is not None:
        out.lose(remote.origin, "no reward is asked over HTTP but a judge; write --reward when training")
    elif reward is None:
        out.lose("reward", "none named in the file; say --reward when training")
    else:
        out.set("reward", Said({"type": "model", "path": str(reward.value)}, reward.origin))
    out.differs.append("rewards are clipped to [-10, 10] there (reward_clip_range), and taken as they are here")


def _kl(out: Translation, given: Given, method: str) -> None:
    """In the loss where it is asked for, else charged to each token's reward."""
    price, in_loss = given.number("init_kl_coef", 0.01), given.take("use_kl_loss")
    estimator = given.take("kl_estimator")
    if in_loss is not None and method != "ppo_critic":
        out.set("objective.kl", Said(price.value, f"{price.origin}; use_kl_loss"))
        if estimator is not None and estimator.value != "k3":
            out.lose(estimator.origin, "the KL in the loss is k3 here")
        return
    if in_loss is not None:
        out.lose(in_loss.origin, "with a critic the KL is charged to the reward here")
    stage = {"ppo_critic": "kl_per_token", "reinforce_pp": "kl_per_token"}.get(method, "kl_shaped")
    if stage == "kl_per_token":
        out.set(f"stages.{stage}.beta", price)
    elif method in ("reinforce", "rloo"):
        out.set(f"stages.{stage}.beta", price)
        out.differs.append("the KL is charged before the group's baseline is taken off here, and after it there")
    elif price.value:
        out.set("objective.kl", price)
        out.differs.append(
            "the KL of GRPO is in the loss here (objective.kl); without use_kl_loss it is in the reward there"
        )
