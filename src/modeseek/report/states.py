"""What each run was doing, for the page: its state, what showed it, and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modeseek.diagnostics.detector import name_state
from modeseek.diagnostics.states import SICK, told
from modeseek.record import RunData


def states(runs: Sequence[tuple[str, RunData]]) -> list[dict[str, Any]]:
    """A row for each named run that shows anything; what was sick on the way is said beside how it ended."""
    rows = []
    for name, run in runs:
        found = run.card.get("state") or told(name_state(run.rows))
        if found["state"] == "too early":
            continue
        before = [change for change in run.card.get("states", []) if change["state"] in SICK]
        first = before[0] if before and before[0]["state"] != found["state"] else None
        rows.append({**found, "name": name, "sick": found["state"] in SICK, "first": first})
    return rows
