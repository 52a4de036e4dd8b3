"""From a Run to its parts: the one place where names become objects."""

from modeseek.build.card import describe
from modeseek.build.data import load_data, raw_prompts, settled, unpaired
from modeseek.build.models import context_of, critic, device_of, load_policy, optimiser_of, trained
from modeseek.build.needs import corrected, corrects_itself, needs_critic, needs_reference, reuses, samples, scores
from modeseek.build.parts import Parts, build, sampled_by, source_of
from modeseek.build.refuse import refuse
from modeseek.build.stages import stage_names, stage_of

__all__ = [
    "Parts",
    "build",
    "context_of",
    "corrected",
    "corrects_itself",
    "critic",
    "describe",
    "device_of",
    "load_data",
    "load_policy",
    "needs_critic",
    "needs_reference",
    "optimiser_of",
    "raw_prompts",
    "refuse",
    "reuses",
    "sampled_by",
    "samples",
    "scores",
    "settled",
    "source_of",
    "stage_names",
    "stage_of",
    "trained",
    "unpaired",
]
