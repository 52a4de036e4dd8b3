"""What a run leaves: a model directory with its card."""

import contextlib
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from modeseek import checkpoint
from modeseek.build import Parts
from modeseek.diagnostics.states import told
from modeseek.distributed.shard import full_state, saved_as
from modeseek.policies.cache import Cached
from modeseek.record import Record
from modeseek.runs.watch import Watch


def export(parts: Parts, record: Record, folder: Path, watch: Watch) -> None:
    """The model directory: the best checkpoint's weights where one was asked for, else the last."""
    loop, team, model = parts.loop, parts.loop.team, parts.policy.model
    if watch.best_path is not None:
        checkpoint.load_weights(checkpoint.weights(watch.best_path, loop.trainable), loop.trainable)
    target = folder / "model"
    draft = folder / "model.draft"
    final = {name: value for name, value in watch.last.items() if name.startswith("eval/")}
    counts = _summed(team.hear(getattr(parts.reward, "counts", None)))
    state = full_state(model, team, trained_only=hasattr(model, "disable_adapter")) if team.sharded else None
    with team.busy("writing the model"):
        if team.leads:
            shutil.rmtree(draft, ignore_errors=True)
            with saved_as(model, state) if state is not None else contextlib.nullcontext():
                parts.policy.save(draft, parts.template.tokenizer)
            (draft / "README.md").write_text(model_card(parts, final))
            shutil.rmtree(target, ignore_errors=True)
            draft.rename(target)
    if counts:
        record.card(reward_counts=counts)
    if isinstance(parts.reference, Cached):
        record.card(reference_cache=parts.reference.describe() | {"rows": _summed(team.hear(parts.reference.counts))})
    if watch.seen.verdict is not None:
        record.card(state=told(watch.seen.verdict))
    record.card(final=final, steps=loop.step, model_directory=str(target.name))
    team.wait("the model is written")


def _summed(counts: Sequence[Mapping[str, int] | None]) -> dict[str, int]:
    every = Counter[str]()
    for some in counts:
        every.update(some or {})
    return dict(every)


def model_card(parts: Parts, final: Mapping[str, float]) -> str:
    """What a stranger who finds the model needs to know."""
    card, run = parts.card, parts.run
    facts = {
        "Method": f"{run.method or card['objective']['name']}: `{card['equation']}`",
        "Objective": ", ".join(f"{k} {v}" for k, v in card["objective"].items() if k != "name") or "no options",
        "Initial model and reference": run.model,
        "Data": f"{card['data']} ({card['rows']['train']['kept']} of {card['rows']['train']['rows']} rows kept)",
        "Source of responses": ", ".join(v if k == "name" else f"{k} {v}" for k, v in card["source"].items()),
        "Dials": ", ".join(f"{k} {v}" for k, v in card["dials"].items()),
        "Learning rate": f"{run.learning_rate}, {run.schedule}, {parts.loop.step} steps",
        "Seed": run.seed,
    }
    results = [f"| {name.removeprefix('eval/')} | {value:.4g} |" for name, value in final.items()]
    lines = [
        "---",
        "library_name: peft" if getattr(parts.policy, "has_adapter", False) else "library_name: transformers",
        "tags: [preference-fine-tuning, modeseek]",
        "---",
        "# " + Path(run.output_dir).name,
        "",
        *(f"- **{name}**: {value}" for name, value in facts.items()),
        "",
        f"Held-out results (KL in nats per response, to the initial model; {int(final.get('eval/n', 0))} prompts):",
        "",
        "| metric | value |",
        "|---|---|",
        *results,
        "",
    ]
    return "\n".join(lines)
