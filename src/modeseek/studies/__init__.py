"""Studies: grids of worlds, methods and seeds, claims about them, and their verdicts. `studies/base.py` has the words.

`SETS` names the claims that are shipped. A set's module is imported when it is asked for and has a `study()`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping

from modeseek.studies.base import Study

SETS: Mapping[str, str] = {
    "tajwar": "modeseek.studies.claims.tajwar",
    "song": "modeseek.studies.claims.song",
    "divergence": "modeseek.studies.claims.divergence",
}


def study_of(name: str, quick: bool = False) -> Study:
    """A shipped set of claims, by its name; in its short form where its `study` has one."""
    if name not in SETS:
        raise ValueError(f"sets: {name!r}, expected one of {', '.join(SETS)}, or a Python file that defines `study`")
    make = importlib.import_module(SETS[name]).study
    return make(quick=True) if quick and "quick" in inspect.signature(make).parameters else make()
