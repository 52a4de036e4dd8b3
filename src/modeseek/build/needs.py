"""What a run asks for, by its objective and its stages."""

import inspect

from modeseek.build.stages import stage_class
from modeseek.config import Offline, Run, StageSpec
from modeseek.objectives import max_age, reads


def scores(run: Run) -> bool:
    """Whether what is trained is a reward model, not a policy."""
    return "score" in reads(run.objective)


def samples(run: Run) -> bool:
    """Whether the run draws from the policy."""
    return not isinstance(run.source, Offline)


def reuses(run: Run) -> bool:
    """Whether an optimiser step may see own samples of an older policy."""
    steps = run.passes * -(-run.prompts_per_round // (run.minibatch or run.prompts_per_round))
    return samples(run) and steps > 1 and run.max_age != 0 and max_age(run.objective) != 0


def corrected(run: Run) -> tuple[StageSpec, ...]:
    """The stages before every optimiser step, with the correction of old samples in front where one is named."""
    if run.correction == "none":
        return run.before
    return (StageSpec(name="reweigh", options={"correction": run.correction}), *run.before)


def corrects_itself(run: Run) -> bool:
    """Whether the objective has a ratio to the policy that sampled."""
    return "old_logp" in reads(run.objective) or hasattr(run.objective, "correction")


def needs_critic(run: Run) -> bool:
    """Whether the objective or a stage asks what a state is worth."""
    return "value" in reads(run.objective) or has_stage(run, "recall_value")


def needs_reference(run: Run) -> bool:
    """Whether a stage of the run reads the reference."""
    return "reference" in asked_by_stages(run)


def has_stage(run: Run, stage: str) -> bool:
    return any(spec.name == stage for spec in (*run.stages, *run.before))


def asked_by_stages(run: Run) -> set[str]:
    return {n for spec in (*run.stages, *run.before) for n in inspect.signature(stage_class(spec.name)).parameters}
