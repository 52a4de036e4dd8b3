"""The objectives that read the first two responses of a group as chosen and rejected, and no other."""

from modeseek.objectives.apo import APO
from modeseek.objectives.chipo import ChiPO
from modeseek.objectives.cpo import CPO
from modeseek.objectives.disco_pop import DiscoPOP
from modeseek.objectives.dpo import DPO
from modeseek.objectives.dpop import DPOP
from modeseek.objectives.exo import EXO
from modeseek.objectives.f_dpo import FDPO
from modeseek.objectives.hinge import Hinge
from modeseek.objectives.hybrid_dpo import HybridDPO
from modeseek.objectives.ipo import IPO
from modeseek.objectives.ld_dpo import LDDPO
from modeseek.objectives.length_dpo import LengthDPO
from modeseek.objectives.nca import NCA
from modeseek.objectives.offset_dpo import OffsetDPO
from modeseek.objectives.orpo import ORPO
from modeseek.objectives.robust_dpo import RobustDPO
from modeseek.objectives.simpo import SimPO
from modeseek.objectives.slic import SLiC
from modeseek.objectives.squared_po import SquaredPO

Contrastive = (
    DPO
    | IPO
    | APO
    | ChiPO
    | CPO
    | DiscoPOP
    | DPOP
    | EXO
    | FDPO
    | Hinge
    | HybridDPO
    | LDDPO
    | LengthDPO
    | NCA
    | OffsetDPO
    | ORPO
    | RobustDPO
    | SimPO
    | SLiC
    | SquaredPO
)
