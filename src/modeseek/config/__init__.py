"""A run, from a YAML file and the command line: the file picks the parts, the flags turn the knobs.

One YAML whose keys are the flags. An unknown key or value is an error that names the nearest one.
"""

from modeseek.config.files import names, over, read_tree, recipes
from modeseek.config.flags import load
from modeseek.config.foreign import OTHERS
from modeseek.config.run import AnySource, Hybrid, Mixture, Offline, OnPolicy, Run, StageSpec
from modeseek.config.trees import check, converter, from_dict, parse_reward, reasons, reward_tree, snake, to_dict

__all__ = [
    "OTHERS",
    "AnySource",
    "Hybrid",
    "Mixture",
    "Offline",
    "OnPolicy",
    "Run",
    "StageSpec",
    "check",
    "converter",
    "from_dict",
    "load",
    "names",
    "over",
    "parse_reward",
    "read_tree",
    "reasons",
    "recipes",
    "reward_tree",
    "snake",
    "to_dict",
]
