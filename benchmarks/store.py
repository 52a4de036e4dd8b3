"""The preference store at size: append, label, the page's next pair, export; 100,000 pairs unless told otherwise.

    python benchmarks/store.py --pairs 100000 --json store.json

The next pair is asked for where it is hardest: a second person comes when the first has labelled half of the store, of
which a tenth overlaps, and then a third when everything is labelled once. Every query is one transaction on disk.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import numpy as np

from modeseek.collect.exports import export
from modeseek.collect.rows import Group, Label, Pair, Response
from modeseek.collect.store import Store

WORDS = ["the", "fox", "told", "a", "tale", "of", "soup", "to", "the", "old", "widow", "in", "the", "marsh"]


def chunk(number: int, size: int, wanted: int) -> list[Group]:
    """Prompts with two responses of about fifty words each."""
    draw = random.Random(number)
    text = lambda n: " ".join(draw.choices(WORDS, k=n))
    label = Label(annotator="rule:length", kind="rule", preferred="a")
    answer = lambda i, k: Response(text=text(50), writer="w", draw=f"{number}.{i}.{k}", logp=-1.0, reward=1.0 - k)
    return [
        Group(
            prompt=f"{number}.{i} {text(20)}",
            source="bench",
            responses=[answer(i, 0), answer(i, 1)],
            pairs=[Pair(a=0, b=1, labels=[label], wanted=wanted)],
        )
        for i in range(size)
    ]


def label_some(store: Store, who: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of each next-pair query and of each label."""
    asked, labelled = [], []
    for _ in range(n):
        start = time.perf_counter()
        pair = store.next_pair(who)
        store.progress(who)  # the page shows it with every pair
        asked.append(time.perf_counter() - start)
        if pair is None:
            break
        start = time.perf_counter()
        store.label(pair.pair_id, who, "a", 3.0, pair.order)
        labelled.append(time.perf_counter() - start)
    return np.array(asked), np.array(labelled)


def pretend(store: Store, who: str, below: int) -> None:
    """A person who has labelled every pair below this id, written at once."""
    columns = "pair, annotator, kind, preferred, shown, at"
    with store.writing() as db:
        select = "select id, ?, 'person', 'b', 'ab', 0 from pairs where id < ?"
        db.execute(f"insert into labels ({columns}) {select}", (who, below))
        db.execute("update pairs set got = got + 1 where id < ?", (below,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--json", default="")
    asked = parser.parse_args()
    found: dict[str, float] = {"pairs": asked.pairs}
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "store.sqlite") as store:
        plan, size, times = store.begin({"bench": 1}), 1000, []
        for number in range(asked.pairs // size):
            groups = chunk(number, size, 1)
            start = time.perf_counter()
            store.commit(plan, number, groups, selected="random")
            times.append(time.perf_counter() - start)
        found |= {"append, s": sum(times), "append, last chunk / first": times[-1] / times[0]}
        start = time.perf_counter()
        store.ask(overlap=0.1, times=2)
        found["ask, s"] = time.perf_counter() - start
        found["file, MB"] = store.path.stat().st_size / 1e6
        for who, done in (
            ("the first", 0),
            ("a second, half done", asked.pairs // 2),
            ("a third, all done", asked.pairs + 1),
        ):
            if done:
                pretend(store, f"before {who}", done)
            queries, labels = label_some(store, who.replace(",", ""), asked.queries)
            found[f"next pair for {who}: p99, ms"] = 1e3 * float(np.quantile(queries, 0.99))
            found[f"next pair for {who}: max, ms"] = 1e3 * float(queries.max())
            found[f"label by {who}: p99, ms"] = 1e3 * float(np.quantile(labels, 0.99)) if len(labels) else 0.0
        start = time.perf_counter()
        store.progress("the first")
        found["progress, ms"] = 1e3 * (time.perf_counter() - start)
        for name in ("pairs.jsonl", "pairs.parquet"):
            start = time.perf_counter()
            rows = export(store, Path(folder) / name)["rows"]
            found[f"export {name} of {rows} rows, s"] = time.perf_counter() - start
        start = time.perf_counter()
        store.digest()
        found["digest, s"] = time.perf_counter() - start
    for name, value in found.items():
        print(f"{name:<46} {value:10.3f}")
    if asked.json:
        Path(asked.json).write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
