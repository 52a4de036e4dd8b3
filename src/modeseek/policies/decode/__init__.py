"""Fast rollouts of transformers models: a prompt is read once for all its responses, and each token once."""

from modeseek.policies.decode.beside import Beside
from modeseek.policies.decode.rollout import sample
from modeseek.policies.decode.trial import why_not

__all__ = ["Beside", "sample", "why_not"]
