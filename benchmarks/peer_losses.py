"""Our losses and gradients against TRL 1.16's own trainers, through `import-config trl`.

    make peer-losses                                        # or, in TRL's environment:
    .venv-peers/bin/python benchmarks/peer_losses.py --markdown peer_losses.md
    .venv-peers/bin/python benchmarks/peer_losses.py --only kto --only hinge

For every case of peer_loss_cases.py TRL's `compute_loss` and a step of our loop say the loss of the same tokens under
the same weights. The gradient is that of every parameter; `apart` is the length of what remains between the two after
the constant that the case declares, over the length of TRL's. The status is 1 where more than 1e-5 remains, and where
a case that declares no constant turns out to have one. TRL's defaults are compared with the importer's as well.
"""

import argparse
import dataclasses
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from peer_loss_cases import CASES, NONE_HERE, NONE_THERE, Case
from peer_loss_ways import Found, both

NEAR = 1e-5


@dataclasses.dataclass(frozen=True)
class Row:
    """What was found of a case."""

    case: Case
    method: str  # ours
    theirs: float
    ours: float
    value_apart: float | None
    gradient_apart: float
    factor: float  # the constant by which the gradients are nearest
    lost: list[str]

    @property
    def holds(self) -> bool:
        if self.case.gradient is None:
            return self.gradient_apart > NEAR
        return self.gradient_apart <= NEAR and (self.value_apart or 0.0) <= NEAR


def row_of(case: Case) -> Row:
    """Compute both sides."""
    theirs, ours, said = both(case)
    apart, factor = _gradients(theirs, ours, case.gradient)
    value = None if case.value is None else abs(theirs[0] - case.value * ours[0]) / abs(theirs[0])
    lost = [line for line in said.lost if not line.startswith("reward")]
    kind = said.tree()["objective"]["type"]
    method = said.method if kind.startswith(said.method) else f"{said.method} ({kind})"
    return Row(case, method, theirs[0], ours[0], value, apart, factor, lost)


def _gradients(theirs: Found, ours: Found, declared: float | None) -> tuple[float, float]:
    """How much remains, and the nearest constant."""
    names = sorted(theirs[1].keys() | ours[1].keys())
    a, b = (torch.cat([x[n].flatten() for n in names]) for x in (theirs[1], ours[1]))
    factor = float(a @ b / (b @ b))
    rest = a - (factor if declared is None else declared) * b
    return float(rest.norm() / a.norm()), factor


def table(rows: list[Row]) -> str:
    """In Markdown."""
    lines = ["| TRL | here | TRL's loss | ours | value apart | gradient apart | TRL's gradient over ours | why |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for x in rows:
        value = "" if x.value_apart is None else f"{x.value_apart:.0e}"
        factor = f"{x.case.gradient:g}" if x.case.gradient is not None else f"no constant; nearest {x.factor:.3f}"
        mark = "" if x.holds else " **no**"
        lines.append(
            f"| {x.case.name} | {x.method} | {x.theirs:.6f} | {x.ours:.6f} | {value} | {x.gradient_apart:.0e}{mark} |"
            f" {factor} | {x.case.why} |"
        )
    return "\n".join(lines) + "\n"


def defaults() -> list[str]:
    """Where the importer's idea of a default of TRL's is not TRL's."""
    import trl
    from trl.experimental import cpo, online_dpo, orpo

    from modeseek.migrate.trl import DEFAULTS, TRAINER

    kinds: dict[str, Any] = {"dpo": trl.DPOConfig, "kto": trl.KTOConfig, "sft": trl.SFTConfig, "grpo": trl.GRPOConfig}
    kinds |= {"reward": trl.RewardConfig, "rloo": trl.RLOOConfig, "cpo": cpo.CPOConfig, "orpo": orpo.ORPOConfig}
    kinds |= {"online_dpo": online_dpo.OnlineDPOConfig}
    wrong = []
    for name, config in kinds.items():
        made = config(output_dir="unused", use_cpu=True, bf16=False)
        for key, ours in {**TRAINER, **DEFAULTS[name]}.items():
            theirs = getattr(made, key)
            theirs = theirs[0] if isinstance(theirs, list) and len(theirs) == 1 else theirs
            if key != "bf16" and str(getattr(theirs, "value", theirs)) != str(ours) and theirs != ours:
                wrong.append(f"{name}: {key} is {theirs} in TRL, {ours} to the importer")
    return wrong


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--only", action="append", help="cases whose name has this word; several: give it several times")
    ask.add_argument("--markdown", type=Path, help="write the table here")
    args = ask.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows: list[Row] = []
    for case in CASES:
        if args.only and not any(word in case.name for word in args.only):
            continue
        rows.append(row_of(case))
        print(table(rows[-1:]).splitlines()[-1], *(f"    lost: {x}" for x in rows[-1].lost), sep="\n", flush=True)
    wrong = defaults()
    bad = [x for x in rows if not x.holds]
    text = table(rows) + "".join(f"\n- Not compared: `{k}`: {why}." for k, why in NONE_HERE.items())
    text += f"\n- Without a trainer in TRL 1.16: {NONE_THERE}.\n" + "".join(f"- Default: {x}.\n" for x in wrong)
    text += f"\n{len(rows) - len(bad)} of {len(rows)} hold.\n"
    print(text)
    if args.markdown:
        args.markdown.write_text(text)
    return int(bool(bad or wrong))


if __name__ == "__main__":
    sys.exit(main())
