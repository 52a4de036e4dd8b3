"""A plan carried out chunk by chunk: sample, choose, label, commit.

A chunk is a fixed run of prompts, and its chance comes from the plan and its number alone. It is stored whole, in one
transaction; one that was not is sampled again, or taken from its draft, and comes out the same, so that a kill at any
moment costs the chunk in hand and nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from modeseek.collect import choose
from modeseek.collect.alone import alone
from modeseek.collect.budget import bind, comparisons
from modeseek.collect.labels import Labeller, Sampled, check_tokens
from modeseek.collect.plan import Plan, identity, labeller, proxy
from modeseek.collect.rows import Group, Pair, Response, dump, restore, share
from modeseek.collect.store import Store
from modeseek.collect.writers import Writer, open_writer, reader
from modeseek.data.files import load
from modeseek.data.records import Record, text


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What a plan has put into its store: counts of prompts, responses, pairs, and of what was left out."""

    store: Path
    plan: str
    counts: dict[str, int]
    waiting: int  # labels that people have still to give


def collect(
    plan: Plan,
    prompts: str,
    *,
    names: Sequence[str] = (),
    console: Console | None = None,
    chunks: int | None = None,
    account: str = "",
) -> Collected:
    """Carry out what is left of a plan. `names` are what the store calls the policies; `chunks` at most are done.

    Judges draw on the store's `account`; unset: the plan's own. Raises ValueError before anything is sampled where the
    plan cannot be honoured.
    """
    if not plan.policies:
        raise ValueError("policies: none given; name a model to sample from")
    config, chooser = labeller(plan), proxy(plan)
    several = plan.num_generations > 1 or len(set(plan.policies)) > 1
    choose.check(plan.select, (config or chooser) is not None, several, plan.features)
    asked = wanted_prompts(plan, prompts)
    words = list(dict.fromkeys(plan.policies))
    writers = [open_writer(word, plan, name) for word, name in zip(words, names or [""] * len(words), strict=True)]
    told = hashlib.sha256(json.dumps([dump(r.prompt) for r in asked]).encode()).hexdigest()[:16]
    if plan.features == "model":
        reader(writers)
    with Store(plan.store) as store, alone(f"{store.path}.collecting", f"store: {store.path}"):
        name = store.begin(identity(plan, [writer.identity for writer in writers], told))
        work = Work(plan, name, store, writers, config and Labeller.open(config), chooser and Labeller.open(chooser))
        for scorer, part in ((work.labeller, ""), (work.proxy, " proxy")):
            if scorer is not None:
                bind(comparisons(scorer.reward), store, (account or name) + part)
        parts = [asked[i : i + plan.chunk] for i in range(0, len(asked), plan.chunk)]
        left = [i for i in range(len(parts)) if i not in store.done(name)]
        with _bar(left, len(parts), console or Console(stderr=True)) as advance:
            for i in left[:chunks]:
                work.do(i, parts[i])
                advance()
        far = store.progress()
        return Collected(store=store.path, plan=name, counts=store.counts(name), waiting=far.wanted - far.got)


def wanted_prompts(plan: Plan, prompts: str) -> list[Record]:
    """The different prompts of the file, in its order, from its start again where more are wanted than it has."""
    found = list({dump(record.prompt): record for record in reversed(load(prompts, split=plan.split))}.values())[::-1]
    n = plan.prompts or len(found)
    return [found[i % len(found)] for i in range(n)]


@dataclass(frozen=True)
class Work:
    """What a chunk needs to be done."""

    plan: Plan
    name: str  # the plan's hash
    store: Store
    writers: Sequence[Writer]
    labeller: Labeller | None
    proxy: Labeller | None

    def do(self, number: int, prompts: Sequence[Record]) -> None:
        """Sample, choose, label and commit one chunk."""
        groups, left_out = self._sampled(number, prompts)
        places, scores = self._chosen(number, groups)
        left_out["prompts without a pair"] = sum(not pairs for pairs in places)
        scorer = self.proxy or (self.labeller if scores else None)
        labels = self._labels(groups, places, scores if scorer is self.labeller else None)
        found = []
        for p, (record, (prompt, responses)) in enumerate(zip(prompts, groups, strict=True)):
            if scores and scorer:
                responses = [
                    dataclasses.replace(one, reward=scores[p][k], rewarded_by=scorer.name)
                    for k, one in enumerate(responses)
                ]
            pairs = [Pair(a=a, b=b, labels=labels[p, a, b], wanted=self._wanted(number, p, a, b)) for a, b in places[p]]
            found.append(Group(prompt=prompt, source=_source(record), responses=responses, pairs=pairs))
        self.store.commit(self.name, number, found, selected=self.plan.select, left_out=left_out)

    def _sampled(self, number: int, prompts: Sequence[Record]) -> tuple[list[Sampled], Counter[str]]:
        """Every writer's responses, kept as a draft before a label is asked for."""
        kept = self.store.draft(self.name, number)
        if kept is None:
            texts = [record.prompt for record in prompts]
            k = self.plan.num_generations
            by = [w.write(texts, k, chance(self.name, number, i)) for i, w in enumerate(self.writers)]
            # One prompt may stand in a chunk twice, and writers may share a seed: the draw names the place.
            groups = [
                [
                    dataclasses.replace(x, draw=f"{self.name}.{number}.{i}.{x.draw}")
                    for i, w in enumerate(by)
                    for x in w[p]
                ]
                for p in range(len(prompts))
            ]
            kept = json.dumps([[_plain(one) for one in group] for group in groups])
            self.store.keep_draft(self.name, number, kept)
        groups = [[_response(one) for one in group] for group in json.loads(kept)]
        lost = sum(self.plan.num_generations * len(self.writers) - len(group) for group in groups)
        return [(r.prompt, g) for r, g in zip(prompts, groups, strict=True)], Counter({"responses missing": lost})

    def _chosen(self, number: int, groups: Sequence[Sampled]) -> tuple[choose.Places, list[list[float]]]:
        """The pairs of each group, the earlier response first, and the rewards that chose them."""
        seed = chance(self.name, number, len(self.writers))
        if self.plan.select in choose.WITHOUT:
            points = None if self.plan.features == "words" else choose.projected(reader(self.writers).states(groups))
            return choose.without_reward(groups, self.plan.select, seed, points), []
        scorer = self.proxy or self.labeller
        assert scorer is not None  # choose.check has seen to it
        batch = self._scored(scorer, groups)
        said = [
            batch["reward"][p, : len(responses)].tolist() if responses else []
            for p, (_, responses) in enumerate(groups)
        ]
        places = choose.by_reward(batch, self.plan.select, seed)
        differ = lambda p, a, b: groups[p][1][a].text != groups[p][1][b].text
        return [[(min(pair), max(pair)) for pair in pairs if differ(p, *pair)] for p, pairs in enumerate(places)], said

    def _labels(
        self, groups: Sequence[Sampled], places: choose.Places, scores: Sequence[Sequence[float]] | None
    ) -> dict[tuple[int, int, int], list[Any]]:
        """What the machine says of each pair: from the rewards that chose it, or asked for it alone."""
        every = [(p, a, b) for p, pairs in enumerate(places) for a, b in pairs]
        if self.labeller is None or not every:
            return {at: [] for at in every}
        two = [(groups[p][0], [groups[p][1][a], groups[p][1][b]]) for p, a, b in every]
        if scores:
            said = [(scores[p][a], scores[p][b]) for p, a, b in every]
        else:
            said = [tuple(row[:2]) for row in self._scored(self.labeller, two)["reward"].tolist()]
        orders = self.labeller.orders(two)
        label = self.labeller.label
        return {at: [label(*rewards, told)] for at, rewards, told in zip(every, said, orders, strict=True)}

    def _scored(self, scorer: Labeller, groups: Sequence[Sampled]) -> Any:
        for config in (labeller(self.plan), proxy(self.plan)):
            if config is not None:
                check_tokens(config, groups)
        return scorer.scored(groups)

    def _wanted(self, number: int, p: int, a: int, b: int) -> int:
        if self.labeller is not None:
            return 0
        return self.plan.people if share(f"{self.name} {number} {p} {a} {b}") < self.plan.overlap else 1


def chance(plan: str, chunk: int, part: int) -> int:
    """The seed of a part of a chunk."""
    return int.from_bytes(hashlib.sha256(f"{plan} {chunk} {part}".encode()).digest()[:7])


def _source(record: Record) -> str:
    """Where a prompt came from, without the folder it happened to lie in."""
    return Path(record.source).name if Path(record.source).is_file() else record.source


def _plain(response: Response) -> dict[str, Any]:
    return {**dataclasses.asdict(response), "text": dump(response.text)}


def _response(stored: dict[str, Any]) -> Response:
    return Response(**{**stored, "text": text(restore(stored["text"]))})


@contextlib.contextmanager
def _bar(left: Sequence[int], every: int, console: Console) -> Iterator[Callable[[], None]]:
    columns = (TextColumn("collect"), BarColumn(), TextColumn("{task.completed}/{task.total} chunks"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("collect", total=every, completed=every - len(left))
        yield lambda: progress.advance(bar)
