"""The table of methods: read from the shipped configs and from the objectives, so that it cannot be out of date."""

import json
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from modeseek.batch import COLUMNS
from modeseek.config import from_dict, names, read_tree, snake
from modeseek.objectives import AnyObjective, may_read, reads

# What an objective reads beside the columns: what the model says, and parts of the batch.
GIVEN = {
    "logp": "[P, K, T] log pi(y_t) of the policy, in nats, with a gradient",
    "value": "[P, K, T] what the critic expects before each token, with a gradient",
    "score": "[P, K] what the reward model that is trained says of the response, with a gradient",
    "entropy": "[P, K, T] of the policy at each token, in nats, with a gradient",
    "kl": "[P, K, T] exact KL(pi, pi_ref) at each token, in nats, with a gradient",
    "mask": "[P, K, T] True where a response token counts",
    "present": "[P, K] True where the group has a response: `torch.ones(P, K, dtype=torch.bool)` where all are there",
    "fresh": "[P, K] True where the policy being trained wrote the response",
}


def rows() -> list[dict[str, Any]]:
    """One row a shipped method: where its responses come from, its stages, its objective and the objective's facts."""
    found, directions = [], measured()
    for name in names():
        run = from_dict(read_tree(name), where=name)
        objective = run.objective
        found.append(
            {
                "method": name,
                "source": snake(type(run.source)),
                "stages": [s.name for s in (*run.stages, *run.before)],
                "objective": type(objective).__name__,
                "equation": objective.equation,
                "paper": objective.source,
                "on_policy": objective.axes.on_policy,
                "negative_gradient": objective.axes.negative_gradient,
                "claimed_kl": objective.axes.claimed_kl,
                "measured_kl": directions.get(name),
                "reads": sorted(reads(objective) | may_read(objective)),
            }
        )
    return found


def measured() -> dict[str, Mapping[str, Any]]:
    """What the study `divergence` found of each method: 0 is where the forward KL ends, 1 where the reverse does."""
    text = resources.files("modeseek.configs").joinpath("studies/measured_direction.json").read_text()
    return json.loads(text)["methods"]


def direction(found: Mapping[str, Any] | None) -> str:
    """The measured direction with its interval, in one cell of a table."""
    if found is None:
        return "–"
    kind = found["measured_kl"].removeprefix("mode-")
    return f"{kind}, {found['seeking']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def objectives() -> list[dict[str, Any]]:
    """One row an objective, shipped as a method or not."""
    return [
        {
            "objective": cls.__name__,
            "type": snake(cls),
            "equation": cls.equation,
            "paper": cls.source,
            "on_policy": cls.axes.on_policy,
            "negative_gradient": cls.axes.negative_gradient,
            "claimed_kl": cls.axes.claimed_kl,
            "reads": sorted(reads(cls()) | may_read(cls())),
        }
        for cls in get_args(AnyObjective)
    ]


def read() -> dict[str, str]:
    """What the objectives read, by name."""
    every = {name for row in objectives() for name in row["reads"]}
    known = GIVEN | COLUMNS
    assert every <= known.keys()
    return {name: what for name, what in known.items() if name in every}


def text() -> str:
    """Methods and objectives for the terminal."""
    lines = ["methods: modeseek train METHOD --model M --data D", ""]
    known = rows()
    width = max(len(row["method"]) for row in known)
    for row in known:
        stages = " > ".join(row["stages"]) or "no stages"
        lines.append(f"  {row['method']:<{width}}  {row['source']} > {stages} > {row['objective']}")
    lines += ["", "objectives", ""]
    for row in objectives():
        samples = "own samples only" if row["on_policy"] else "any samples"
        lines += [
            f"  {row['objective']}: {row['equation']}",
            f"      {samples}; negative gradient {row['negative_gradient']}; claimed {row['claimed_kl']}",
            f"      reads {', '.join(row['reads'])}; {row['paper']}",
        ]
    return "\n".join(lines)


def markdown() -> str:
    """The methods for the documentation."""
    lines = [
        "| method | source | stages | objective | on policy | negative gradient | claimed KL | measured |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows():
        stages = ", ".join(row["stages"]) or "–"
        lines.append(
            f"| `{row['method']}` | {row['source']} | {stages} | [{row['objective']}]({row['paper']}) | "
            f"{'needed' if row['on_policy'] else '–'} | {row['negative_gradient']} | {row['claimed_kl']} | "
            f"{direction(row['measured_kl'])} |"
        )
    return "\n".join(lines) + "\n"


def facts() -> str:
    """The objectives for the documentation, shipped as a method or not."""
    lines = [
        "| objective | equation | own samples | negative gradient | claimed KL | reads | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in objectives():
        lines.append(
            f"| {row['objective']} | `{row['equation'].replace('|', '/')}` | "
            f"{'needed' if row['on_policy'] else '–'} | {row['negative_gradient']} | {row['claimed_kl']} | "
            f"{', '.join(row['reads'])} | {row['paper']} |"
        )
    return "\n".join(lines) + "\n"


def page() -> str:
    """docs/objectives.md."""
    return "\n".join(
        [
            "# Methods and objectives",
            "",
            "Generated by `make docs` from the code; a test keeps it so.",
            "",
            "## Methods",
            "",
            "A method is a source of responses, stages and an objective: a YAML file in `src/modeseek/configs/`.",
            "*Claimed* is what 2404.14367 says of the objective's KL; *measured* is where the method, source included,",
            "ends in a world of two modes: 0 at the minimum of the forward KL (covering), 1 at that of the reverse",
            "(seeking), with a 95% interval over eight seeds (`modeseek study divergence`).",
            "",
            markdown(),
            "## Objectives",
            "",
            "*Own samples* and *negative gradient* are facts, checked by the contract tests; the direction of the KL",
            "is what 2404.14367 claims of the objective.",
            "",
            facts(),
            "## What they read",
            "",
            "P prompts, K responses to each, T tokens in each. In a run the loop gives all of it; a call of one's own",
            "names it, as in `DPO(beta=0.1)(logp=logp, ref_logp=ref_logp, mask=mask)`. Objectives that average over a",
            "group's responses ask for `present` as well.",
            "",
            "| name | what it is |",
            "|---|---|",
            *[f"| `{name}` | {what} |" for name, what in read().items()],
            "",
            "## Left out",
            "",
            "- BCO's underlying distribution matching: its weight of a bad response is a density ratio of prompts,",
            "  which a classifier fits to all of the data before training, and a stage sees a batch. In pairs the",
            "  ratio is 1; for unpaired rows the data's `weight` carries it.",
            "",
        ]
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page())
