"""The direction of every shipped method, measured in the divergence world and kept as a file in the wheel.

    python -m modeseek.studies.worlds.directions [METHOD ...]

measures these methods, or all, and writes their numbers into configs/studies/measured_direction.json, beside those of
the others. `modeseek objectives` prints them beside what is claimed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from rich.progress import track

from modeseek import estimate
from modeseek.disk import write_bytes
from modeseek.studies.worlds.divergence import EXACT, Divergence

SEEDS = tuple(range(20_000, 20_008))
NOTE = (
    "Where training ends in the world `divergence`: 0 at the minimum of KL(target || policy), 1 at that of "
    "KL(policy || target). Student's t at 95% over the seeds. Written by modeseek.studies.worlds.directions."
)


def measure(method: str, seeds: Sequence[int] = SEEDS) -> dict[str, Any]:
    """A method's mean `seeking` at the end with its interval, and the direction that the interval allows to state."""
    rows = Divergence().run(method, seeds)
    last = max(row["step"] for row in rows)
    found = estimate.mean([row["seeking"] for row in rows if row["step"] == last], name="seeking")
    value = {"seeking": found.value, "low": found.low, "high": found.high}
    return {**{n: round(x, 3) for n, x in value.items()}, "seeds": found.n, "measured_kl": direction(found)}


def direction(seeking: estimate.Estimate) -> str:
    """Mode-seeking where the whole interval is nearer to 1 than to 0 or 2, mode-covering where it is nearer to 0,
    neither where it is further out (the policy has left the modes behind), else unclear."""
    if seeking.high < 0.5:
        return "mode-covering"
    if seeking.low > 1.5:
        return "neither"
    return "mode-seeking" if seeking.low > 0.5 and seeking.high < 1.5 else "unclear"


def measured() -> dict[str, dict[str, Any]]:
    """What has been found, by method."""
    return json.loads(_file().read_text())["methods"]


def write(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Put these methods' numbers into the file, beside those of the others."""
    path = _file()
    known = measured() if path.exists() else {}
    methods = dict(sorted({**known, **found}.items()))
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in methods.items())
    path.parent.mkdir(exist_ok=True)
    write_bytes(path, f'{{\n  "note": {json.dumps(NOTE)},\n  "methods": {{\n{lines}\n  }}\n}}\n'.encode())


def main(words: Sequence[str]) -> int:
    """Measure and write, one method at a time."""
    methods = words or [name for name in Divergence().methods() if name not in EXACT]
    for method in track(methods, description="measuring"):
        write({method: measure(method)})
    return 0


def _file() -> Path:
    return Path(str(resources.files("modeseek.configs"))) / "studies" / "measured_direction.json"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
