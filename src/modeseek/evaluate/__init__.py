"""Did it work? Two policies on the same prompts, with intervals."""

from modeseek.estimate import Estimate, kl, mean, mean_difference, share, win_rate
from modeseek.evaluate.compare import Evaluation, answer, compare, evaluate

__all__ = [
    "Estimate",
    "Evaluation",
    "answer",
    "compare",
    "evaluate",
    "kl",
    "mean",
    "mean_difference",
    "share",
    "win_rate",
]
