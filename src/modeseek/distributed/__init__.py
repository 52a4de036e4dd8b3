"""Many processes as one: the same loop, the same numbers."""

from modeseek.distributed.served import Served
from modeseek.distributed.share import Shared, shared
from modeseek.distributed.team import ALONE, Team

__all__ = ["ALONE", "Served", "Shared", "Team", "shared"]
