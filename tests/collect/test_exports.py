"""The store as files, and files as a store."""

import json

import pytest

from modeseek.collect.exports import bring_in, export, settle
from modeseek.collect.rows import Group, Label, Pair, Response
from modeseek.collect.store import Store
from modeseek.commands.collect import main
from modeseek.data.files import load
from modeseek.data.records import Message


def one(preferred, by="rule:x", kind="rule", confidence=None):
    return {"annotator": by, "kind": kind, "preferred": preferred, "confidence": confidence}


def label(preferred, by="rule:x", kind="rule"):
    return Label(annotator=by, kind=kind, preferred=preferred)


def answer(text, writer="w", reward=None, **more):
    return Response(text=text, writer=writer, draw=f"{text}", policy_hash="h", reward=reward, **more)


def store_of(tmp_path, *groups, name="s") -> Store:
    made = Store(tmp_path / name)
    made.commit(made.begin({"n": name}), 0, groups, selected="random")
    return made


def group(prompt, a, b, *labels):
    return Group(prompt=prompt, source="f", responses=[a, b], pairs=[Pair(a=0, b=1, labels=labels)])


TRUST = ("person", "data", "judge", "model", "rule")


def test_the_first_kind_that_spoke_decides_and_the_majority_within_it():
    labels = [one("a"), one("b", "ann", "person"), one("b", "bob", "person"), one("a", "cid", "person")]
    settled = settle(labels, TRUST)
    assert settled["preferred"] == "b" and settled["labelled_by"] == "ann, bob, cid"
    assert settled["agreement"] == pytest.approx(2 / 3)
    assert settle(labels, ("rule",))["preferred"] == "a"
    assert settle([one("a"), one("skip", "ann", "person")], TRUST)["labelled_by"] == "rule:x"


def test_a_tie_is_half_a_vote_and_evenness_is_no_winner():
    labels = [one("a", "x", "person"), one("tie", "y", "person"), one("tie", "z", "person")]
    settled = settle(labels, TRUST)
    assert settled["preferred"] == "a" and settled["agreement"] == pytest.approx((1 + 2 / 2) / 3)
    assert settle([one("tie")], TRUST) == "ties"
    assert settle([one("a", "x"), one("b", "y")], TRUST) == "disagreements without a majority"
    assert settle([one("skip", "ann", "person")], TRUST) == "skipped"
    assert settle([], TRUST) == "unlabelled"


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_an_export_is_what_a_run_reads(tmp_path, suffix):
    turns = (Message("system", "be kind"), Message("user", "hi"))
    store = store_of(
        tmp_path,
        group("q", answer("good", "one", 2.0, step=7, logp=-3.25), answer("bad", "two", 0.5), label("a")),
        group(turns, answer("x", reward=1.0), answer("y", reward=1.5), label("b")),
        group("q2", answer("s"), answer("t"), label("tie")),
        group("q3", answer("u"), answer("v")),
    )
    path = tmp_path / f"pairs.{suffix}"
    counts = export(store, path)
    assert dict(counts) == {"rows": 2, "ties": 1, "unlabelled": 1}
    first, second = load(path)
    assert (first.responses, first.rewards, first.margin) == (("good", "bad"), (2.0, 0.5), 1.5)
    assert (first.source, first.meta["chosen_step"], first.meta["chosen_logp"]) == ("one over two", 7, -3.25)
    assert (second.prompt, second.responses, second.source) == (turns, ("y", "x"), "w")


def test_rated_lists_hold_every_response_with_a_reward(tmp_path):
    many = [answer("a", reward=1.0), answer("b", reward=3.0), answer("c")]
    store = store_of(tmp_path, Group(prompt="q", source="f", responses=many, pairs=[]))
    counts = export(store, tmp_path / "rated.jsonl", shape="rated")
    assert dict(counts) == {"rows": 1, "responses without a reward": 1}
    (record,) = load(tmp_path / "rated.jsonl")
    assert (record.responses, record.rewards) == (("b", "a"), (3.0, 1.0))


def test_only_the_plans_named_are_exported(tmp_path):
    with Store(tmp_path / "s") as store:
        plans = [store.begin({"n": n}) for n in range(3)]
        for n, plan in enumerate(plans):
            store.commit(plan, 0, [group(f"q{n}", answer(f"a{n}"), answer(f"b{n}"), label("a"))], selected="random")
        export(store, tmp_path / "p.jsonl", plans=plans[1:])
        assert [record.prompt for record in load(tmp_path / "p.jsonl")] == ["q1", "q2"]


def test_what_was_exported_comes_back_and_twice_is_once(tmp_path):
    sides = answer("good", "one", 2.0, step=7, logp=-3.25, temperature=0.5), answer("bad", "two", 0.5)
    store = store_of(tmp_path, group("q", *sides, label("a")), group("r", answer("x"), answer("y"), label("b")))
    export(store, tmp_path / "one.jsonl")
    with Store(tmp_path / "again") as again:
        assert dict(bring_in(again, tmp_path / "one.jsonl")) == {"prompts": 2, "responses": 4, "pairs": 2}
        before = again.digest()
        bring_in(again, tmp_path / "one.jsonl")
        assert again.digest() == before
        export(again, tmp_path / "two.jsonl")
        provenance = "select writer, policy_hash, step, temperature, logp, reward from responses where step is not null"
        assert again.rows(provenance) == [("one", "h", 7, 0.5, -3.25, 2.0)]
    kept = ("prompt", "chosen", "rejected", "chosen_score", "chosen_step", "rejected_writer")
    lines = [(tmp_path / name).read_text().splitlines() for name in ("one.jsonl", "two.jsonl")]
    one, two = ([{k: json.loads(x).get(k) for k in kept} for x in side] for side in lines)
    assert one == two


def test_ties_and_rows_of_one_response_are_brought_in_or_counted(tmp_path):
    rows = [
        {"prompt": "q", "response_a": "x", "response_b": "y", "winner": "tie"},
        {"prompt": "q", "response_a": "x", "response_b": "z", "winner": "b"},
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with Store(tmp_path / "s") as store:
        bring_in(store, path)
        assert store.rows("select preferred, kind, annotator from labels order by id") == [
            ("tie", "data", "data:in.jsonl"),
            ("a", "data", "data:in.jsonl"),
        ]
        path.write_text('{"prompt": "q", "completion": "alone"}\n')
        assert bring_in(store, path)["rows without two responses"] == 1


def test_a_name_of_another_kind_is_refused(tmp_path):
    with Store(tmp_path / "s") as store, pytest.raises(ValueError, match="ends in .jsonl or .parquet"):
        export(store, tmp_path / "pairs.csv")


# The command


def test_the_command_exports_imports_and_says_what_is_there(tmp_path, capsys):
    store_of(tmp_path, group("q", answer("x"), answer("y"), label("a")), group("r", answer("u"), answer("v"))).close()
    out, again = str(tmp_path / "out.jsonl"), str(tmp_path / "again.sqlite")
    assert main(["export", str(tmp_path / "s"), out]) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}: 1 rows\n" and said.err == "left out: 1 unlabelled\n"
    assert main(["import", again, out]) == 0
    assert main(["status", again]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:]]
    assert ["2", "responses"] in lines and ["1", "labels by data:w"] in lines
    assert main(["export", str(tmp_path / "s"), out, "--by", "person"]) == 1  # nobody labelled
    with pytest.raises(ValueError, match="no file"):
        main(["status", str(tmp_path / "absent")])
    with pytest.raises(ValueError, match="which model and which prompts"):
        main(["--label", "length"])
