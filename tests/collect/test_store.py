"""The store alone: chunks, people, and what a kill leaves."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeseek.collect.rows import Group, Label, Pair, Response, dump, restore
from modeseek.collect.store import Store
from modeseek.data.records import Message


def said(preferred, by="rule:length", kind="rule"):
    return Label(annotator=by, kind=kind, preferred=preferred)


def groups(n: int, wanted=lambda i: 0, labels=(), chunk=0) -> list[Group]:
    """n prompts with two responses and a pair each."""
    answer = lambda i, k: Response(text=f"{k} to {i}", writer="w", draw=f"{chunk}.{i}.{k}", logp=-1.5, reward=float(k))
    return [
        Group(
            prompt=f"q{chunk}.{i}",
            source="file",
            responses=[answer(i, 0), answer(i, 1)],
            pairs=[Pair(a=0, b=1, labels=labels, wanted=wanted(i))],
        )
        for i in range(n)
    ]


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "s.sqlite") as made:
        yield made


def fill(store: Store, n: int, wanted=lambda i: 1) -> Store:
    store.commit(store.begin({"a": 1}), 0, groups(n, wanted), selected="random")
    return store


def test_a_chunk_is_stored_once_and_found_again(store):
    plan = store.begin({"seed": 0})
    assert store.commit(plan, 0, groups(3, labels=[said("b")]), selected="random", left_out={"ties": 2})
    before = store.digest()
    assert not store.commit(plan, 0, groups(3), selected="random")
    assert store.begin({"seed": 0}) == plan and store.digest() == before
    assert store.done(plan) == {0}
    assert store.counts(plan) == {"prompts": 3, "responses": 6, "pairs": 3, "ties": 2}
    assert store.rows("select count(*) from labels") == [(3,)]


def test_a_chunk_that_fails_leaves_nothing(store):
    plan = store.begin({"seed": 0})
    broken = [*groups(2), Group(prompt="q", source="", responses=[], pairs=[Pair(a=0, b=1)])]
    with pytest.raises(IndexError):
        store.commit(plan, 0, broken, selected="random")
    assert store.done(plan) == set()
    assert store.rows("select count(*) from responses") == [(0,)]


def test_two_stores_with_the_same_content_say_the_same_and_others_do_not(tmp_path):
    one, other, third = (Store(tmp_path / name) for name in "abc")
    for made in (one, other, third):
        made.begin({"x": 1})
    plan = one.begin({"x": 1})
    for number in (0, 1):
        one.commit(plan, number, groups(2, chunk=number), selected="random")
    for number in (1, 0):
        other.commit(plan, number, groups(2, chunk=number), selected="random")
    third.commit(plan, 0, groups(2, labels=[said("a")]), selected="random")
    third.commit(plan, 1, groups(2, chunk=1), selected="random")
    assert one.digest() == other.digest() != third.digest()


@given(st.text(), st.text())
@settings(max_examples=50, deadline=None)
def test_any_text_comes_back_as_it_was(prompt, content):
    turns = (Message("user", prompt), Message("assistant", content))
    assert restore(dump(prompt)) == prompt
    assert restore(dump(turns)) == turns


def test_lone_surrogates_and_zero_bytes_are_kept(store):
    odd = "\ud800 \x00 ' \" </script>"
    group = Group(
        prompt=odd, source="f", responses=[Response(text=odd, draw="0"), Response(text="x", draw="1")], pairs=[]
    )
    store.commit(store.begin({}), 0, [group], selected="random")
    assert [restore(x) for (x,) in store.rows("select response from responses order by id")] == [odd, "x"]


def test_a_file_that_is_no_store_is_named(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to be looked at " * 40)
    with pytest.raises(ValueError, match="notes.txt: file is not a database"):
        Store(path)
    with pytest.raises(ValueError, match="no file"):
        Store(tmp_path / "absent.sqlite", must_exist=True)


def test_a_store_of_another_version_is_refused(tmp_path):
    with Store(tmp_path / "s") as made, made.writing() as db:
        db.execute("update facts set value = '99' where name = 'version'")
    with pytest.raises(ValueError, match="version 99"):
        Store(tmp_path / "s")


# People


def test_a_person_goes_through_every_pair_once(store):
    fill(store, 3)
    seen = []
    while (asked := store.next_pair("ann")) is not None:
        assert (asked.prompt, asked.a, asked.b) == tuple(
            text.format(asked.prompt[-1]) for text in ("q0.{}", "0 to {}", "1 to {}")
        )
        seen.append(asked.pair_id)
        store.label(asked.pair_id, "ann", "a", 2.5, asked.order, "a note")
    assert seen == [1, 2, 3]
    far = store.progress("ann")
    assert (far.pairs, far.wanted, far.got, far.done, far.skipped, far.by) == (3, 3, 3, 3, 0, {"ann": 3})
    assert store.rows("select distinct seconds, note, kind from labels") == [(2.5, "a note", "person")]


def test_a_pair_on_one_screen_is_not_shown_on_another_unless_it_overlaps(store):
    fill(store, 3, wanted=lambda i: 2 if i == 1 else 1)
    first = [store.next_pair(who).pair_id for who in ("ann", "bob", "cid", "dan")]
    assert first == [1, 2, 2, 3]  # the second pair wants two people
    assert store.next_pair("eve") is None  # everything is on a screen
    assert store.next_pair("ann").pair_id == 1  # a reload shows the same


def test_a_pair_that_was_left_on_a_screen_comes_back_after_a_while(store, monkeypatch):
    fill(store, 1)
    assert store.next_pair("ann") is not None
    assert store.next_pair("bob") is None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 601)
    assert store.next_pair("bob").pair_id == 1


def test_overlap_pairs_meet_a_second_person_and_the_others_do_not(store):
    fill(store, 4, wanted=lambda i: 2 if i % 2 else 1)
    for _ in range(4):
        asked = store.next_pair("ann")
        store.label(asked.pair_id, "ann", "tie")
    seen = []
    while (asked := store.next_pair("bob")) is not None:
        seen.append(asked.pair_id)
        store.label(asked.pair_id, "bob", "b")
    assert seen == [2, 4]
    assert store.progress().got == store.progress().wanted == 6


def test_a_skip_leaves_the_pair_to_others(store):
    fill(store, 1)
    store.label(store.next_pair("ann").pair_id, "ann", "skip")
    assert store.next_pair("ann") is None
    assert store.next_pair("bob").pair_id == 1
    far = store.progress()
    assert (far.got, far.done, far.skipped) == (0, 0, 1)


def test_undo_takes_the_last_label_back_and_shows_the_pair_again(store):
    fill(store, 3)
    for _ in range(2):
        asked = store.next_pair("ann")
        store.label(asked.pair_id, "ann", "a")
    assert store.undo("ann") == 2
    assert store.next_pair("ann").pair_id == 2
    assert store.undo("ann") == 1
    assert store.undo("ann") is None
    assert store.next_pair("ann").pair_id == 1
    assert store.progress().got == 0
    assert store.rows("select count(*) from labels where undone is not null") == [(2,)]  # nothing is forgotten


def test_the_same_click_counts_once_and_another_replaces_it(store):
    fill(store, 2)
    first = store.label(1, "ann", "a", client="c1")
    assert store.label(1, "ann", "a", client="c1") == first
    assert store.progress().got == 1
    second = store.label(1, "ann", "b", client="c2")
    assert second != first and store.progress().got == 1
    assert store.rows("select preferred from labels where undone is null") == [("b",)]
    assert store.label(1, "ann", "a", client="c1") == first  # a late repetition of the first click changes nothing
    assert store.rows("select preferred from labels where undone is null") == [("b",)]
    with pytest.raises(ValueError, match="another pair"):
        store.label(2, "ann", "a", client="c1")


def test_what_is_no_label_is_refused(store):
    fill(store, 1)
    with pytest.raises(ValueError, match="no pair 9"):
        store.label(9, "ann", "a")
    with pytest.raises(ValueError, match="without a colon"):
        store.label(1, "judge:x", "a")
    with pytest.raises(ValueError, match="expected a name"):
        store.next_pair(" ")


def test_asking_again_changes_nothing_and_a_share_overlaps(store):
    fill(store, 400, wanted=lambda i: 0)
    assert store.next_pair("ann") is None
    assert store.ask(overlap=0.25, times=3) == 400
    far = store.progress()
    more = (far.wanted - 400) / 2
    assert 70 < more < 130  # 100 of 400 expected, sd 8.7
    store.ask(overlap=0.25, times=3)
    assert store.progress().wanted == far.wanted


def test_the_order_is_balanced_and_stays_for_a_person(store):
    fill(store, 60)
    orders = []
    for _ in range(60):
        asked = store.next_pair("ann")
        assert store.next_pair("ann").order == asked.order
        orders.append(asked.order)
        store.label(asked.pair_id, "ann", "a", order=asked.order)
    assert 15 < orders.count("ab") < 45  # 30 expected, sd 3.9


@given(st.lists(st.tuples(st.sampled_from(["ann", "bob", "cid"]), st.sampled_from(["a", "b", "tie", "skip", "undo"]))))
@settings(max_examples=15, deadline=None)
def test_counts_follow_the_labels_whatever_people_do(tmp_path_factory, deeds):
    with Store(tmp_path_factory.mktemp("s") / "s.sqlite") as store:
        fill(store, 4, wanted=lambda i: 1 + i % 3)
        for who, deed in deeds:
            if deed == "undo":
                store.undo(who)
            elif (asked := store.next_pair(who)) is not None:
                store.label(asked.pair_id, who, deed)
        live = "select count(*) from labels where undone is null and preferred != 'skip' and pair = ?"
        for pair, wanted, got in store.rows("select id, wanted, got from pairs"):
            assert store.rows(live, pair) == [(got,)]
            assert got <= wanted
        twice = "select count(*) from labels where undone is null group by pair, annotator having count(*) > 1"
        assert store.rows(twice) == []


# Kills


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from test_store import groups, said
from modeseek.collect.store import Store
store = Store(sys.argv[1])
plan = store.begin({"seed": 0})
print("on", flush=True)
for number in range(40):
    if number not in store.done(plan):
        store.commit(plan, number, groups(25, chunk=number, labels=[said("a")]), selected="random")
"""


def test_a_kill_at_any_moment_leaves_whole_chunks_and_the_end_is_the_same(tmp_path):
    rng = random.Random(0)
    here = os.path.dirname(__file__)
    start = lambda: subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "s"), here], stdout=subprocess.PIPE, text=True
    )
    for _ in range(3):
        process = start()
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.06))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with Store(tmp_path / "s") as store:
            (chunks, pairs, labels) = (
                store.rows(f"select count(*) from {t}")[0][0] for t in ("chunks", "pairs", "labels")
            )
            assert pairs == labels == 25 * chunks
    process = start()
    process.communicate()
    assert process.returncode == 0
    with Store(tmp_path / "s") as store, Store(tmp_path / "once") as once:
        plan = once.begin({"seed": 0})
        for number in range(40):
            once.commit(plan, number, groups(25, chunk=number, labels=[said("a")]), selected="random")
        assert store.digest() == once.digest()


def test_counts_are_kept_as_labels_come_and_go_and_an_older_store_is_counted(store):
    def scanned():
        pairs = store.rows("select count(*), total(wanted), total(min(got, wanted)) from pairs where wanted > 0")
        people = "from labels where kind = 'person' and undone is null"
        kinds = [f"select count(*) {people} and preferred {sign} 'skip'" for sign in ("!=", "=")]
        return (*pairs[0], *(store.rows(query)[0][0] for query in kinds))

    fill(store, 24, wanted=lambda i: i % 3)
    rng = random.Random(0)
    for step in range(120):
        who = rng.choice(["ann", "bob"])
        if step % 7 == 6:
            store.undo(who)
        elif step % 31 == 30:
            store.ask(overlap=rng.random(), times=rng.choice([1, 2, 3]))
        elif pair := store.next_pair(who):
            store.label(pair.pair_id, who, rng.choice(["a", "b", "tie", "skip"]))
        far = store.progress()
        assert (far.pairs, far.wanted, far.got, far.done, far.skipped) == scanned()
    before = store.progress()
    with store.writing() as db:
        for name, kind in db.execute("select name, type from sqlite_master where type = 'trigger'").fetchall():
            db.execute(f"drop {kind} {name}")
        db.execute("drop table asked")
        db.execute("drop table said")
    with Store(store.path) as again:
        assert again.progress() == before and before.done
