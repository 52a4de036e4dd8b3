"""The policy, the critic, their optimiser and their device."""

import importlib.util
from functools import partial
from typing import Any

import torch

from modeseek.build.needs import needs_critic, scores
from modeseek.config import Run
from modeseek.data.template import Template, prefix_of
from modeseek.policies.hf import HFPolicy
from modeseek.policies.load import end_tokens, load_model
from modeseek.policies.stop import Stop
from modeseek.rewards.model import RewardModel


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
