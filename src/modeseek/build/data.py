"""Training and held-out groups from the run's files."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from modeseek.config import Hybrid, Offline, OnPolicy, Run
from modeseek.data.control import by_label
from modeseek.data.files import read, split_holdout
from modeseek.data.groups import Groups
from modeseek.data.records import DataError, Record
from modeseek.data.template import Template
from modeseek.data.tokenise import Responses, tokenise
from modeseek.objectives import SFT
from modeseek.rewards import Prompts, by_tokens


def load_data(run: Run, template: Template, context: int | None) -> tuple[Groups, Groups | None, dict[str, Any]]:
    """Training and held-out groups, and what became of the rows."""
    data: Any = [vars(part) for part in run.mixture] if run.mixture else run.data
    aside = Path(run.output_dir) / "bad_rows.jsonl" if run.skip_bad_rows else None
    reading = read(data, split=run.split, columns=run.columns, skip_bad_rows=aside)
    held: Sequence[Record] = []
    records: Sequence[Record] = reading.records
    if run.eval_data:
        held = read(run.eval_data, split=run.split, columns=run.columns).records
    elif run.eval_size:
        records, held = split_holdout(records, run.eval_size, run.seed)
    held = Random(run.seed).sample(held, len(held))  # evaluation takes the first of them, and files are often sorted
    limit = min(run.max_length, context or run.max_length)
    match run.source:
        case OnPolicy():
            responses: Responses = "none"
        case Hybrid():
            responses = "best_worst"
        case Offline():
            told = isinstance(run.objective, SFT) and all(len(r.responses) == 1 for r in records)  # demonstrations
            responses = "keep" if run.control_good or told or unpaired(records) else run.responses
    options: dict[str, Any] = {"max_length": limit, "max_completion_length": run.max_completion_length}
    options["truncate_responses"] = run.truncate_responses
    if run.control_good:  # the words are in each prompt, by the label of its response
        if template.prompt_ids("") == template.steered(run.control_bad).prompt_ids(""):
            raise ValueError("control_good, control_bad: the tokenizer writes both as the same tokens; choose others")
        labelled = by_label(records, run.control_good, run.control_bad)
        train = tokenise(labelled, template.steered(""), responses="keep", **options)
    else:
        train = tokenise(records, template, responses=responses, **options)
    has_pairs = any(len(r.responses) > 1 for r in held)
    try:
        kept = tokenise(held, template, responses="best_worst" if has_pairs else "none", **options) if held else None
    except DataError as error:
        raise DataError(f"held out: {error}; hold out more rows (eval_size), or none with eval_size: 0") from error
    counts = {"train": train.counts, "held_out": kept.counts if kept else {}, "bad_rows": len(reading.bad)}
    return train, kept, counts


def unpaired(records: Sequence[Record]) -> bool:
    """Whether the rows are single responses, each with a label. Other rows among them would be taken for good ones."""
    labelled = [record.labels is not None for record in records]
    if any(labelled) and not all(labelled):
        odd = records[labelled.index(False)]
        raise ValueError(
            f"data: {odd.source}, row {odd.row}: found no label, expected one, since {sum(labelled)} of {len(records)} "
            "rows have one; train on one kind of rows, pairs or labelled responses"
        )
    return any(labelled)


def raw_prompts(*groups: Groups | None) -> Prompts:
    """Prompts as they stood in the data, for rewards that read text."""
    found = [g for g in groups if g is not None]
    return by_tokens((g.prompt[i], g.records[i].prompt) for g in found for i in range(len(g)))


def settled(run: Run, prompts: int) -> Run:
    """The run with `num_train_epochs` turned into optimiser steps."""
    if run.num_train_epochs is None:
        return run
    rounds = [run.prompts_per_round] * (prompts // run.prompts_per_round)
    if prompts % run.prompts_per_round:
        rounds.append(prompts % run.prompts_per_round)
    steps = sum(-(-size // (run.minibatch or size)) for size in rounds) * run.passes
    return replace(run, max_steps=steps * run.num_train_epochs, num_train_epochs=None)
