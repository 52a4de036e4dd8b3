"""The table of methods: read from the shipped configs and from the objectives, so that it cannot be out of date."""

from typing import Any, get_args

from modeseek.config import from_dict, names, read_tree, snake
from modeseek.objectives import AnyObjective, may_read, reads


def rows() -> list[dict[str, Any]]:
    """One row a shipped method: where its responses come from, its stages, its objective and the objective's facts."""
    found = []
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
                "reads": sorted(reads(objective) | may_read(objective)),
            }
        )
    return found


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
        "| method | source | stages | objective | on policy | negative gradient | claimed KL |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows():
        stages = ", ".join(row["stages"]) or "–"
        lines.append(
            f"| `{row['method']}` | {row['source']} | {stages} | [{row['objective']}]({row['paper']}) | "
            f"{'needed' if row['on_policy'] else '–'} | {row['negative_gradient']} | {row['claimed_kl']} |"
        )
    return "\n".join(lines) + "\n"
