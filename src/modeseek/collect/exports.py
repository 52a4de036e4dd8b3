"""The store as files that other tools read, and files as a store: JSONL and Parquet in TRL's shapes.

`pairs` has `prompt, chosen, rejected`, `rated` has `prompt, responses, rewards`; both a `source` column that says who
wrote the responses, and beside it where they come from. A tie has neither a chosen nor a rejected response: ties, skips
and pairs that nobody labelled are left out of `pairs`, and counted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from modeseek.collect.rows import Group, Label, Pair, Response
from modeseek.collect.store import Store
from modeseek.data.files import load
from modeseek.data.records import Record
from modeseek.disk import write_bytes

Shape = Literal["pairs", "rated"]
Kind = Literal["person", "judge", "model", "rule", "data"]
TRUST: tuple[Kind, ...] = ("person", "data", "judge", "model", "rule")  # whose labels count where several kinds did
PROVENANCE = ("writer", "policy_hash", "step", "temperature", "logp")  # columns of either side
CHUNK = 1000  # rows of a file that are stored at once


def export(
    store: Store, path: str | Path, *, shape: Shape = "pairs", by: Sequence[Kind] = TRUST, plans: Sequence[str] = ()
) -> Counter[str]:
    """Write the file, whole or not at all; how many rows it has and what was left out, and why.

    A pair's label is the majority of the labels of the first kind of `by` that it has. `plans` unset: all of them.
    """
    left_out = Counter[str]()
    found = _pairs(store, by, plans, left_out) if shape == "pairs" else _rated(store, plans, left_out)
    rows = list(found)
    target = Path(path)
    if target.suffix == ".jsonl":
        write_bytes(target, "".join(json.dumps(row) + "\n" for row in rows).encode())
    elif target.suffix == ".parquet":
        write_bytes(target, _parquet(rows))
    else:
        raise ValueError(f"export: {target.name}: expected a name that ends in .jsonl or .parquet")
    return Counter({"rows": len(rows), **left_out})


def bring_in(store: Store, path: str | Path) -> Counter[str]:
    """Store the pairs and rated lists of a file; again, and nothing is doubled. Its choice is a label of kind data."""
    records = load(str(path))
    content = hashlib.sha256()
    for record in records:
        content.update(repr((record.prompt, record.responses, record.rewards, record.tie)).encode("utf-8", "replace"))
    name = store.begin({"imported": content.hexdigest()[:16], "rows": len(records)})
    counts = Counter[str]()
    for number, start in enumerate(range(0, len(records), CHUNK)):
        groups, left_out = list[Group](), Counter[str]()
        for record in records[start : start + CHUNK]:
            if len(record.responses) < 2 or record.prompts_differ:
                left_out["rows without two responses"] += 1
            else:
                groups.append(_group(record))
        store.commit(name, number, groups, selected="imported", left_out=left_out)
    counts.update(store.counts(name))
    return counts


def _group(record: Record) -> Group:
    name = Path(record.source).name if Path(record.source).is_file() else record.source
    rewards = record.rewards or (None,) * len(record.responses)
    responses = [
        Response(text=one, draw=f"{record.row}.{k}", reward=reward, rewarded_by=None if reward is None else "data")
        for k, (one, reward) in enumerate(zip(record.responses, rewards, strict=True))
    ]
    if len(responses) == 2:  # what an export of ours says of either side
        sides = zip(("chosen_", "rejected_"), responses, strict=True)
        told = [
            {n: record.meta[side + n] for n in PROVENANCE if record.meta.get(side + n) is not None} for side, _ in sides
        ]
        responses = [dataclasses.replace(one, **known) for one, known in zip(responses, told, strict=True)]
    responses = [one if one.writer else dataclasses.replace(one, writer=name) for one in responses]
    last = len(responses) - 1
    label = Label(annotator="data:" + name, kind="data", preferred="tie" if record.tie else "a")
    return Group(prompt=record.prompt, source=name, responses=responses, pairs=[Pair(a=0, b=last, labels=[label])])


def _pairs(store: Store, by: Sequence[Kind], plans: Sequence[str], left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    labels = _labels(store)
    query = f"""select pairs.id, prompts.prompt, pairs.selected, pairs.plan,
        x.response, x.writer, x.policy_hash, x.step, x.temperature, x.logp, x.reward,
        y.response, y.writer, y.policy_hash, y.step, y.temperature, y.logp, y.reward
        from pairs, prompts, responses x, responses y
        where prompts.id = pairs.prompt and x.id = a and y.id = b {_of(plans, "pairs")} order by pairs.id"""
    for pair, prompt, selected, plan, *sides in store.rows(query, *plans):
        settled = settle(labels.get(pair, ()), by)
        if isinstance(settled, str):
            left_out[settled] += 1
            continue
        a, b = sides[:7], sides[7:]
        chosen, rejected = (a, b) if settled["preferred"] == "a" else (b, a)
        row: dict[str, Any] = {
            "prompt": json.loads(prompt),
            "chosen": _reply(chosen[0]),
            "rejected": _reply(rejected[0]),
            "source": chosen[1] if chosen[1] == rejected[1] else f"{chosen[1]} over {rejected[1]}",
        }
        rewards = [side[6] for side in (chosen, rejected)]
        if None not in rewards:
            row |= {"chosen_score": rewards[0], "rejected_score": rewards[1]}
        for side, values in (("chosen", chosen), ("rejected", rejected)):
            row |= {f"{side}_{name}": value for name, value in zip(PROVENANCE, values[1:6], strict=True)}
        told = {name: settled[name] for name in ("labelled_by", "agreement", "confidence")}
        yield row | told | {"selected_by": selected, "plan": plan, "pair": pair}


def _rated(store: Store, plans: Sequence[str], left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    """A row for each asking of a prompt, with every response that has a reward."""
    query = f"""select x.plan, chunk, place, prompts.prompt, response, writer, reward, rewarded_by
        from responses x, prompts where prompts.id = x.prompt {_of(plans, "x")} order by x.id"""
    groups: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for plan, chunk, place, prompt, *one in store.rows(query, *plans):
        groups.setdefault((plan, chunk, place, prompt), []).append(tuple(one))
    for (plan, _, _, prompt), group in groups.items():
        known = [one for one in group if one[2] is not None]
        left_out["responses without a reward"] += len(group) - len(known)
        if not known:
            left_out["prompts without a reward"] += 1
            continue
        yield {
            "prompt": json.loads(prompt),
            "responses": [_reply(one[0]) for one in known],
            "rewards": [one[2] for one in known],
            "source": ", ".join(dict.fromkeys(one[1] for one in known)),
            "labelled_by": known[0][3],
            "plan": plan,
        }


def settle(labels: Sequence[Mapping[str, Any]], by: Sequence[Kind]) -> dict[str, Any] | str:
    """What several labels of a pair come to, or why they come to nothing.

    The majority among the labels of the first kind that has any but skips; a tie label is half a vote for each side.
    """
    for kind in by:
        said = [one for one in labels if one["kind"] == kind and one["preferred"] != "skip"]
        if not said:
            continue
        votes = Counter(one["preferred"] for one in said)
        if votes["a"] == votes["b"]:
            return "ties" if len(said) == votes["tie"] else "disagreements without a majority"
        preferred = "a" if votes["a"] > votes["b"] else "b"
        sure = [one["confidence"] for one in said if one["preferred"] == preferred and one["confidence"] is not None]
        return {
            "preferred": preferred,
            "labelled_by": ", ".join(sorted({one["annotator"] for one in said})),
            "agreement": (votes[preferred] + votes["tie"] / 2) / len(said),
            "confidence": sum(sure) / len(sure) if sure else None,
        }
    return "skipped" if any(one["preferred"] == "skip" for one in labels) else "unlabelled"


def _labels(store: Store) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    names = ("annotator", "kind", "preferred", "confidence")
    query = f"select pair, {', '.join(names)} from labels where undone is null order by id"
    for pair, *values in store.rows(query):
        found.setdefault(pair, []).append(dict(zip(names, values, strict=True)))
    return found


def _of(plans: Sequence[str], table: str) -> str:
    return f"and {table}.plan in ({', '.join('?' * len(plans))})" if plans else ""


def _reply(stored: str) -> Any:
    return json.loads(stored)


def _parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    import io

    import pyarrow
    from pyarrow import parquet

    names = list(dict.fromkeys(name for row in rows for name in row))
    # A column that holds texts in some rows and messages in others is no column of Parquet: all become messages.
    table = {name: [row.get(name) for row in rows] for name in names}
    for name in ("prompt", "chosen", "rejected"):
        if name in table and any(isinstance(one, list) for one in table[name]):
            role = "user" if name == "prompt" else "assistant"
            turns = lambda one, role=role: one if isinstance(one, list) else [{"role": role, "content": one}]
            table[name] = [turns(one) for one in table[name]]
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(table), file)
    return file.getvalue()
