"""What does not go together, said before anything is loaded."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from modeseek.build.models import device_of
from modeseek.build.needs import asked_by_stages, corrects_itself, needs_critic, needs_reference, reuses, scores
from modeseek.config import Offline, OnPolicy, Run
from modeseek.objectives import SFT

# Stages that compare the responses to one prompt.
PAIRING = ("all_pairs", "best_random", "best_second", "best_sigma", "best_worst", "group_mean", "group_std")
PAIRING += ("leave_one_out", "ranked", "win_rate", "duel")


def refuse(run: Run) -> None:
    """What does not go together, said before anything is loaded. The first that is found is said."""
    for key, value in _numbers(run.objective, "objective"):
        if value < 0:
            raise ValueError(f"{key}: {value}, expected at least 0")
    for check in (_rewards, _corrections, _models, _control_words, _paths, _samplers, _own_samples, _lengths):
        check(run)


def _rewards(run: Run) -> None:
    reads_reward = "reward" in asked_by_stages(run)
    if scores(run) and (run.lora or not isinstance(run.source, Offline)):
        raise ValueError(
            "objective: a reward model is trained in full and on the data's pairs: no lora, source offline"
        )
    if reads_reward and run.reward is None:
        raise ValueError(f"reward: {_method(run)} scores responses; write --reward, such as --reward length")
    if run.gold_reward is not None and not run.eval_prompts:
        raise ValueError("gold_reward: given, but eval_prompts is 0, so nothing would read it; write --eval-prompts 32")
    if run.reward is not None and not reads_reward and not run.eval_prompts:
        raise ValueError("reward: given, but no stage scores and eval_prompts is 0, so nothing would read it")


def _corrections(run: Run) -> None:
    """Of samples that an older policy drew."""
    if run.correction != "none" and corrects_itself(run):
        other = "write objective.correction" if hasattr(run.objective, "correction") else "it reads old_logp"
        raise ValueError(f"correction: {type(run.objective).__name__} has its own ({other}); leave it out")
    named = getattr(run.objective, "correction", None) or (run.correction if run.correction != "none" else None)
    if named and not reuses(run):
        raise ValueError(f"correction: {named}, but no own sample is used twice: set passes or minibatch too")


def _models(run: Run) -> None:
    """Those beside the policy."""
    if run.critic and not needs_critic(run):
        raise ValueError(f"critic: given, but {_method(run)} reads no value; `modeseek train ppo_critic` does")
    if run.reference_cache and (isinstance(run.source, OnPolicy) or not needs_reference(run)):
        raise ValueError(f"reference_cache: {_method(run)} asks no reference about the data's responses; leave it out")


def _control_words(run: Run) -> None:
    if not run.control_good and not run.control_bad:
        return
    alone = isinstance(run.objective, SFT) and isinstance(run.source, Offline) and run.responses == "best_worst"
    if not (run.control_good and run.control_bad and alone and not run.stages):
        raise ValueError(
            "control_good, control_bad: both are needed, and they are for sft on the data's good and bad responses "
            "without stages: `modeseek train binary_feedme_control`"
        )
    if run.control_good == run.control_bad:
        raise ValueError(f"control_bad: {run.control_bad!r}, expected other words than control_good")


def _paths(run: Run) -> None:
    if run.unverified and (not run.fast or scores(run) or device_of(run.device) == "cpu"):
        raise ValueError(
            "unverified: packed rows are verified on a CPU, and `fast: false` and reward models take none; leave it out"
        )


def _samplers(run: Run) -> None:
    """A server that draws the samples."""
    if run.sampler and run.stop_strings:
        raise ValueError("stop_strings: a server draws the samples and would cut them off; leave them or sampler out")
    if run.sampler and isinstance(run.source, Offline):
        raise ValueError(f"sampler: {run.sampler}, but {_method(run)} draws no samples; leave it out")


def _own_samples(run: Run) -> None:
    """What the objective and the stages ask of the samples."""
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
        names = {spec.name for spec in run.stages}
        several = names & {*PAIRING}
        if several and not names & {"challenge", "challenge_mixture"} and run.source.num_generations < 2:
            raise ValueError(f"source.num_generations: {min(several)} needs at least 2 responses to a prompt")
    if getattr(run.objective, "kl_baseline", "") == "leave_one_out" and getattr(run.source, "num_generations", 2) < 2:
        raise ValueError(
            "source.num_generations: kl_baseline leave_one_out needs at least 2 fresh responses to a prompt"
        )


def _lengths(run: Run) -> None:
    if run.max_completion_length >= run.max_length:
        raise ValueError(
            f"max_completion_length: {run.max_completion_length}, expected less than max_length ({run.max_length}), "
            "which counts prompt and response together"
        )


def _method(run: Run) -> str:
    return run.method or "this method"


def _numbers(part: Any, where: str) -> Iterator[tuple[str, float]]:
    for name, value in vars(part).items():
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, f"{where}.{name}")
        elif isinstance(value, int | float):
            yield f"{where}.{name}", value
