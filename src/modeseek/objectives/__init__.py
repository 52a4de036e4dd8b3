"""Every objective. The union is the registry: the config, the CLI and the contract tests read it."""

from modeseek.objectives.actor_critic_ppo import ActorCriticPPO
from modeseek.objectives.aot import AOT
from modeseek.objectives.apo import APO
from modeseek.objectives.base import Axes, Loss, Objective, call, max_age, may_read, pair_metrics, reads
from modeseek.objectives.bco import BCO
from modeseek.objectives.bradley_terry import BradleyTerry
from modeseek.objectives.chipo import ChiPO
from modeseek.objectives.cispo import CISPO
from modeseek.objectives.contrastive import Contrastive
from modeseek.objectives.cpo import CPO
from modeseek.objectives.disco_pop import DiscoPOP
from modeseek.objectives.dpo import DPO
from modeseek.objectives.dpop import DPOP
from modeseek.objectives.exo import EXO
from modeseek.objectives.f_dpo import FDPO
from modeseek.objectives.gspo import GSPO
from modeseek.objectives.hinge import Hinge
from modeseek.objectives.hybrid_dpo import HybridDPO
from modeseek.objectives.hypo import HyPO
from modeseek.objectives.ipo import IPO
from modeseek.objectives.kto import KTO
from modeseek.objectives.ld_dpo import LDDPO
from modeseek.objectives.length_dpo import LengthDPO
from modeseek.objectives.nca import NCA
from modeseek.objectives.negative_bon import NegativeBoN
from modeseek.objectives.offset_dpo import OffsetDPO
from modeseek.objectives.orpo import ORPO
from modeseek.objectives.plackett_luce import PlackettLuce
from modeseek.objectives.policy_gradient import PolicyGradient
from modeseek.objectives.ppo import PPO
from modeseek.objectives.rebel import REBEL
from modeseek.objectives.robust_dpo import RobustDPO
from modeseek.objectives.rwr import RWR
from modeseek.objectives.sft import SFT
from modeseek.objectives.simpo import SimPO
from modeseek.objectives.slic import SLiC
from modeseek.objectives.sppo import SPPO
from modeseek.objectives.squared_po import SquaredPO
from modeseek.objectives.unpaired_aot import UnpairedAOT
from modeseek.objectives.with_kl import WithKL
from modeseek.objectives.with_sft import WithSFT
from modeseek.objectives.xpo import XPO

AnyObjective = (
    SFT
    | RWR
    | NegativeBoN
    | DPO
    | RobustDPO
    | IPO
    | Hinge
    | SLiC
    | SimPO
    | ORPO
    | CPO
    | DPOP
    | LDDPO
    | LengthDPO
    | OffsetDPO
    | HybridDPO
    | EXO
    | NCA
    | APO
    | AOT
    | UnpairedAOT
    | SPPO
    | DiscoPOP
    | SquaredPO
    | ChiPO
    | FDPO
    | REBEL
    | PlackettLuce
    | KTO
    | BCO
    | XPO
    | WithSFT
    | HyPO
    | WithKL
    | PolicyGradient
    | PPO
    | ActorCriticPPO
    | GSPO
    | CISPO
    | BradleyTerry
)

__all__ = [
    "AOT",
    "APO",
    "ActorCriticPPO",
    "AnyObjective",
    "Axes",
    "BCO",
    "BradleyTerry",
    "CISPO",
    "CPO",
    "ChiPO",
    "Contrastive",
    "DPO",
    "DPOP",
    "DiscoPOP",
    "EXO",
    "FDPO",
    "GSPO",
    "Hinge",
    "HyPO",
    "HybridDPO",
    "IPO",
    "KTO",
    "LDDPO",
    "LengthDPO",
    "Loss",
    "NCA",
    "NegativeBoN",
    "ORPO",
    "Objective",
    "OffsetDPO",
    "PPO",
    "PlackettLuce",
    "PolicyGradient",
    "REBEL",
    "RWR",
    "RobustDPO",
    "SFT",
    "SLiC",
    "SPPO",
    "SimPO",
    "SquaredPO",
    "UnpairedAOT",
    "WithKL",
    "WithSFT",
    "XPO",
    "call",
    "max_age",
    "may_read",
    "pair_metrics",
    "reads",
]
