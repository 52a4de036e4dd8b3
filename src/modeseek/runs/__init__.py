"""Training runs: `train` is a config's whole way to a model directory and a record."""

from modeseek.runs.held_out import held_out
from modeseek.runs.run import train
from modeseek.runs.spread import refuse_sharded, spread

__all__ = ["held_out", "refuse_sharded", "spread", "train"]
