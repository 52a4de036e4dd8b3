"""Training: draw, prepare, step, watch. It knows neither policies nor rewards nor methods. Read `loop` first."""

from modeseek.train.finite import NotFinite
from modeseek.train.loop import Loop, NothingToLearn, Watch, fit, run
from modeseek.train.round import Round, describe
from modeseek.train.seam import LIVE, evaluate
from modeseek.train.steps import Steps

__all__ = [
    "LIVE",
    "Loop",
    "NotFinite",
    "NothingToLearn",
    "Round",
    "Steps",
    "Watch",
    "describe",
    "evaluate",
    "fit",
    "run",
]
