"""Every objective. The union is the registry: the config, the CLI and the contract tests read it."""

from modeseek.objectives.base import Axes, Loss, Objective, call, max_age, may_read, pair_metrics, reads
from modeseek.objectives.bradley_terry import BradleyTerry
from modeseek.objectives.dpo import DPO
from modeseek.objectives.hypo import HyPO
from modeseek.objectives.ipo import IPO
from modeseek.objectives.policy_gradient import PolicyGradient
from modeseek.objectives.ppo import PPO
from modeseek.objectives.rwr import RWR
from modeseek.objectives.sft import SFT

AnyObjective = SFT | RWR | DPO | IPO | HyPO | PolicyGradient | PPO | BradleyTerry

__all__ = [
    "DPO",
    "IPO",
    "PPO",
    "RWR",
    "SFT",
    "AnyObjective",
    "Axes",
    "BradleyTerry",
    "HyPO",
    "Loss",
    "Objective",
    "PolicyGradient",
    "call",
    "max_age",
    "may_read",
    "pair_metrics",
    "reads",
]
