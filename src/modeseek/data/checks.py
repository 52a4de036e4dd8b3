"""What is wrong with preference data before anyone trains on it, and how it will be read."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text as Words
from scipy.stats import norm, rankdata

from modeseek.data.groups import Groups
from modeseek.data.records import Record, normalise, text

EXAMPLES = 5  # rows named for each finding
BOUNDARIES = 200  # rows whose joined tokens are compared


def check(
    records: Sequence[Record], groups: Groups | None = None, held_out: Sequence[Record] | None = None
) -> dict[str, Any]:
    """The report on `records` as plain values: what `modeseek check` prints, and its `--json`.

    `groups` are the same records as a model's tokens; `held_out` are those that must share no prompt with them.
    A finding is `rows` (how many), `share` of all rows and `examples` ("file:row").
    """
    prompts = [normalise(record.prompt) for record in records]
    sides = [tuple(text(response) for response in record.responses) for record in records]
    pairs = [i for i, record in enumerate(records) if len(record.responses) > 1 and record.labels is None]
    report: dict[str, Any] = {
        "rows": len(records),
        "kinds": dict(Counter(map(_kind, records)).most_common()),
        "prompts": len(set(prompts)),
        "sources": dict(Counter(record.source for record in records).most_common(20)),
        "lengths": _lengths(records, prompts, sides, groups),
        "findings": {name: _finding(records, rows) for name, rows in _findings(records, prompts, sides, pairs).items()},
        "labels": _labels(records),
        "length_predicts": _length_predicts(records, prompts, sides, pairs),
        "columns_not_read": sorted({name for record in records for name in record.meta}),
    }
    if held_out is not None:
        report["held_out"] = _overlap(records, prompts, held_out)
    if groups is not None:
        report["tokens"] = groups.counts
        short = min(range(min(len(groups), 32)), key=lambda i: len(groups.prompt[i]))
        report["template"] = groups.template.describe() | {
            "spans": groups.spans(short),
            "boundary": _boundary(groups),
        }
    return report


def _kind(record: Record) -> str:
    if record.labels is not None:
        return "labelled responses"
    if not record.responses:
        return "prompts alone"
    if len(record.responses) == 1:
        return "demonstrations"
    return "pairs" if len(record.responses) == 2 else "rated lists"


def _finding(records: Sequence[Record], rows: Sequence[int]) -> dict[str, Any]:
    return {
        "rows": len(rows),
        "share": len(rows) / max(len(records), 1),
        "examples": [f"{records[i].source}:{records[i].row}" for i in rows[:EXAMPLES]],
    }


def _findings(
    records: Sequence[Record], prompts: Sequence[str], sides: Sequence[tuple[str, ...]], pairs: Sequence[int]
) -> dict[str, list[int]]:
    seen, duplicates = set[Any](), list[int]()
    orders = defaultdict[Any, set[Any]](set)
    squeezed = [tuple(" ".join(side.split()) for side in group) for group in sides]
    for i, record in enumerate(records):
        key = (prompts[i], sides[i], record.labels)
        if key in seen:
            duplicates.append(i)
        seen.add(key)
    judged = [(i, squeezed[i][0], squeezed[i][-1]) for i in pairs if not records[i].tie]
    for i, best, worst in judged:
        orders[(prompts[i], frozenset((best, worst)))].add((best, worst))
    for i, record in enumerate(records):
        if record.labels is not None:
            orders[(prompts[i], squeezed[i])].add(record.labels)
    contradicted = {i for i, best, worst in judged if len(orders[(prompts[i], frozenset((best, worst)))]) > 1}
    contradicted |= {
        i for i, r in enumerate(records) if r.labels is not None and len(orders[(prompts[i], squeezed[i])]) > 1
    }
    opening = [text(record.prompt).strip() for record in records]
    two, paired = [i for i in pairs if len(sides[i]) == 2], set(pairs)
    return {
        "duplicate": duplicates,
        "identical responses": [i for i in two if sides[i][0] == sides[i][1]],
        "identical but for spacing": [i for i in two if sides[i][0] != sides[i][1] and len(set(squeezed[i])) == 1],
        "contradicted": sorted(contradicted),
        "tie": [i for i, record in enumerate(records) if record.tie],
        "prompts differ": [i for i, record in enumerate(records) if record.prompts_differ],
        "empty prompt": [i for i, prompt in enumerate(prompts) if not prompt],
        "empty chosen": [i for i in pairs if not squeezed[i][0]],
        "empty rejected": [i for i in pairs if not squeezed[i][-1]],
        "empty response": [i for i, group in enumerate(squeezed) if i not in paired and not all(group)],
        "prompt repeated in every response": [
            i
            for i, group in enumerate(sides)
            if group and len(opening[i]) > 20 and all(side.lstrip().startswith(opening[i]) for side in group)
        ],
        "scores against the order": [i for i in two if (r := records[i].rewards) is not None and r[0] < r[1]],
    }


def _labels(records: Sequence[Record]) -> dict[str, Any] | None:
    labels = [label for record in records if record.labels is not None for label in record.labels]
    return {"good": sum(labels), "bad": len(labels) - sum(labels)} if labels else None


# Lengths


def _lengths(
    records: Sequence[Record],
    prompts: Sequence[str],
    sides: Sequence[tuple[str, ...]],
    groups: Groups | None,
) -> dict[str, Any]:
    named = defaultdict[str, list[str]](list)
    named["prompt"] = [text(record.prompt) for record in records]
    for record, group in zip(records, sides, strict=True):
        for k, side in enumerate(group):
            named[_side(record, k)].append(side)
    lengths: dict[str, Any] = {
        name: {
            "characters": _summary([len(one) for one in texts]),
            "words": _summary([len(one.split()) for one in texts]),
        }
        for name, texts in named.items()
    }
    if groups is not None:
        tokens = defaultdict[str, list[int]](list)
        tokens["prompt"] = groups.prompt.lengths.tolist()
        of_response = groups.response.lengths.tolist()
        for i, record in enumerate(groups.records):
            for k in range(len(record.responses)):
                tokens[_side(record, k)].append(of_response[int(groups.first[i]) + k])
        for name, values in tokens.items():
            lengths.setdefault(name, {})["tokens"] = _summary(values)
    return lengths


def _side(record: Record, k: int) -> str:
    if record.labels is not None:
        return "good" if record.labels[k] else "bad"
    if len(record.responses) == 1:
        return "response"
    return "chosen" if k == 0 else "rejected"


def _summary(values: Sequence[int]) -> dict[str, float]:
    if not values:
        return {}
    mean, median, high = np.mean(values), np.median(values), np.quantile(values, 0.9)
    return {"mean": float(mean), "median": float(median), "p90": float(high), "max": float(max(values))}


def _length_predicts(
    records: Sequence[Record], prompts: Sequence[str], sides: Sequence[tuple[str, ...]], pairs: Sequence[int]
) -> dict[str, Any] | None:
    """How well the number of characters alone tells the better response (the best from the worst of a list).

    Accuracy: how often the longer of two is the chosen one, ties of length counted half. AUC: how often any good
    response is longer than any bad one. Both with 95% intervals over prompts, since rows of one prompt hang
    together.
    """
    decided = [i for i in pairs if not records[i].tie and not records[i].prompts_differ]
    good = [(prompts[i], len(sides[i][0])) for i in decided]
    bad = [(prompts[i], len(sides[i][-1])) for i in decided]
    wins = [(good[n][0], (good[n][1] > bad[n][1]) + 0.5 * (good[n][1] == bad[n][1])) for n in range(len(decided))]
    for i, record in enumerate(records):
        for label, side in zip(record.labels or (), sides[i], strict=False):
            (good if label else bad).append((prompts[i], len(side)))
    if not good or not bad:
        return None
    return {"accuracy": _mean_over_prompts(wins) if wins else None, "auc": _auc_over_prompts(good, bad)}


def _mean_over_prompts(values: Sequence[tuple[str, float]]) -> dict[str, float]:
    mean = float(np.mean([value for _, value in values]))
    return _interval(mean, [(prompt, (value - mean) / len(values)) for prompt, value in values])


def _auc_over_prompts(good: Sequence[tuple[str, int]], bad: Sequence[tuple[str, int]]) -> dict[str, float]:
    """Mann-Whitney, with the variance of its influence summed within prompts (Obuchowski 1997)."""
    a, b = np.array([n for _, n in good]), np.array([n for _, n in bad])
    ranks = rankdata(np.concatenate([a, b]))
    above = (ranks[: len(a)] - rankdata(a)) / len(b)  # of each good one: the share of bad ones below it
    below = 1 - (ranks[len(a) :] - rankdata(b)) / len(a)
    auc = float(above.mean())
    influence = [(prompt, (v - auc) / len(a)) for (prompt, _), v in zip(good, above, strict=True)]
    influence += [(prompt, (v - auc) / len(b)) for (prompt, _), v in zip(bad, below, strict=True)]
    return _interval(auc, influence)


def _interval(value: float, influence: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Wilson's interval at the number of independent prompts that would have this variance."""
    of_prompt = defaultdict[str, float](float)
    for prompt, x in influence:
        of_prompt[prompt] += x
    C = len(of_prompt)
    variance = C / max(C - 1, 1) * sum(x * x for x in of_prompt.values())
    n = value * (1 - value) / variance if C > 1 and variance > 0 else C
    z = float(norm.ppf(0.975))
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    low, high = max(centre - half, 0.0), min(centre + half, 1.0)
    return {"value": value, "low": float(low), "high": float(high), "prompts": C}


# Against other data and the model


def _overlap(records: Sequence[Record], prompts: Sequence[str], held_out: Sequence[Record]) -> dict[str, Any]:
    known = set(prompts)
    shared = [i for i, record in enumerate(held_out) if normalise(record.prompt) in known]
    return {"rows": len(held_out), "prompt also in training": _finding(held_out, shared)}


def _boundary(groups: Groups) -> dict[str, float]:
    """How often prompt and response, joined as text, would be other tokens: a habit of the tokenizer, not a fault."""
    some = [record for record in groups.records[:BOUNDARIES] if record.responses]
    merged = sum(groups.template.merges_boundary(record.prompt, record.responses[0]) for record in some)
    return {"rows": len(some), "other tokens if joined": merged / max(len(some), 1)}


# For the terminal


def render(report: dict[str, Any]) -> RenderableType:
    """The report as tables."""
    parts: list[RenderableType] = [_overview(report), _length_table(report), _finding_table(report)]
    if report.get("tokens") is not None:
        parts += [_token_table(report["tokens"]), *_spans(report["template"])]
    return Group(*parts)


def _overview(report: dict[str, Any]) -> Table:
    table = _table("Data", "", "")
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in report["kinds"].items())
    _add(table, "rows", f"{report['rows']:,} ({kinds}) on {report['prompts']:,} prompts")
    _add(table, "sources", ", ".join(f"{_short(name)} {n:,}" for name, n in list(report["sources"].items())[:6]))
    if report["labels"]:
        _add(table, "labels", f"{report['labels']['good']:,} good, {report['labels']['bad']:,} bad")
    if report["length_predicts"]:
        for name, meaning in (("accuracy", "longer is chosen"), ("auc", "length alone, AUC")):
            said = report["length_predicts"][name]
            if said:
                _add(table, meaning, f"{said['value']:.3f} [{said['low']:.3f}, {said['high']:.3f}]")
    if "held_out" in report:
        shared = report["held_out"]["prompt also in training"]
        _add(table, "held out", f"{report['held_out']['rows']:,} rows, {shared['rows']:,} on prompts in training")
    if report["columns_not_read"]:
        _add(table, "columns not read", ", ".join(report["columns_not_read"]))
    return table


def _length_table(report: dict[str, Any]) -> Table:
    table = _table("Lengths", "", "unit", "mean", "median", "p90", "max")
    for name, units in report["lengths"].items():
        for unit, summary in units.items():
            if summary:
                _add(table, name, unit, *(f"{summary[key]:,.0f}" for key in ("mean", "median", "p90", "max")))
    return table


def _finding_table(report: dict[str, Any]) -> RenderableType:
    found = {name: finding for name, finding in report["findings"].items() if finding["rows"]}
    if not found:
        return Words(f"Nothing found of: {', '.join(report['findings'])}.")
    table = _table("Found", "", "rows", "share", "for instance")
    for name, finding in found.items():
        _add(
            table, name, f"{finding['rows']:,}", f"{finding['share']:.1%}", ", ".join(map(_short, finding["examples"]))
        )
    return table


def _token_table(counts: dict[str, Any]) -> Table:
    table = _table("As tokens", "", "")
    _add(table, "kept", f"{counts['kept']:,} of {counts['rows']:,} rows within {counts['max_length']:,} tokens")
    for reason, n in counts["dropped"].items():
        _add(table, f"dropped: {reason}", f"{n:,}")
    for name, n in counts.items():
        if name not in ("rows", "kept", "dropped", "max_length", "max_completion_length") and n:
            _add(table, name.replace("_", " "), f"{n:,}")
    return table


def _spans(template: dict[str, Any]) -> list[RenderableType]:
    title = Words(f"What the model reads ({template['rendering']}); the loss counts what is reversed", style="bold")
    shown = Words()
    for span in template["spans"]:
        said = span["text"] if len(span["text"]) < 1200 else f"{span['text'][:600]} ... {span['text'][-600:]}"
        shown.append(said, style="reverse" if span["in_loss"] else "dim")
    return [title, shown]


def _short(source: str) -> str:
    return source.rpartition("/")[2]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=any(columns), box=None, pad_edge=False)
    for i, name in enumerate(columns):
        table.add_column(name, overflow="fold", no_wrap=i == 0)
    return table


def _add(table: Table, *cells: str) -> None:
    """Cells as they are: data may hold what looks like markup."""
    table.add_row(*(Words(cell) for cell in cells))
