import csv
import gzip
import json

import pyarrow as arrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from conftest import shared
from modeseek.data import files
from modeseek.data.files import load, read, split_holdout
from modeseek.data.records import DataError, Record, normalise

ROWS = [
    {"prompt": "a, b\u2028c", "chosen": 'say "x"\x85\n', "rejected": "12"},
    {"prompt": "d\x0ce\x1cf", "chosen": "天空", "rejected": ""},
]


def lines(rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write(path, rows):
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        parquet.write_table(arrow.Table.from_pylist(rows), path)
        return path
    if kind == "csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        content = path.read_bytes()
    else:
        content = lines(rows) if kind == "jsonl" else json.dumps(rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.csv", "r.parquet", "r.jsonl.gz", "r.json.gz", "r.csv.gz"])
def test_every_format_holds_the_same_rows(tmp_path, name):
    records = load(write(tmp_path / name, ROWS))
    assert [(r.prompt, *r.responses) for r in records] == [tuple(row.values()) for row in ROWS]
    assert [r.row for r in records] == [1, 2]


@given(
    st.lists(st.tuples(*[st.text(st.characters(exclude_categories=["Cs"]), min_size=1)] * 3), min_size=1, max_size=4)
)
@settings(max_examples=50, deadline=None)
def test_any_text_survives_jsonl(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("any") / "r.jsonl"
    path.write_bytes(
        lines({"messages": [{"role": "user", "content": p}], "chosen": a, "rejected": b} for p, a, b in texts)
    )
    assert [(r.prompt[0].content, *r.responses) for r in load(path)] == texts


def test_json_lines_in_a_json_file_and_splits_of_an_object_are_read(tmp_path):
    path = tmp_path / "r.json"
    path.write_bytes(lines(ROWS))
    assert len(load(path)) == 2
    path.write_text(json.dumps({"train": ROWS, "test": ROWS[:1]}))
    assert (len(load(path)), len(load(path, split="test"))) == (2, 1)
    with pytest.raises(DataError, match="split 'dev'"):
        load(path, split="dev")


def test_csv_cells_may_hold_messages_and_lists(tmp_path):
    turns = json.dumps([{"role": "user", "content": "q"}])
    path = write(tmp_path / "r.csv", [{"messages": turns, "responses": '["[a]", "b"]', "rewards": "[1, 2]"}])
    record = load(path)[0]
    assert (record.prompt[0].content, record.responses, record.rewards) == ("q", ("b", "[a]"), (2.0, 1.0))


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = write(tmp_path / "r.csv", ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(load(path)) == 2


def truncated_gzip(path):
    path = path.with_suffix(".jsonl.gz")
    path.write_bytes(gzip.compress(lines(ROWS * 50))[:-20])
    return path


def wrong_column(path):
    path.write_bytes(lines([{"prompt": "q", "chosen": "a", "rejcted": "b"}]))
    return path


def non_utf8(path):
    path.write_bytes(lines(ROWS) + '{"prompt": "q", "chosen": "é", "rejected": "b"}\n'.encode("latin-1"))
    return path


def half_a_line(path):
    path.write_bytes(lines(ROWS)[:-8])
    return path


def half_a_character(path):
    path.write_bytes(lines(ROWS).partition("空".encode())[0] + "空".encode()[:1])
    return path


def boolean_response(path):
    path.write_bytes(lines([*ROWS, {"prompt": "q", "chosen": False, "rejected": "b"}]))
    return path


def empty(path):
    path.write_bytes(b"")
    return path


def missing_side(path):
    path.write_bytes(lines([*ROWS, {"prompt": "q", "chosen": "a", "rejected": None}]))
    return path


def directory(path):
    path.mkdir()
    for name in ("inside.jsonl", "other.csv"):
        (path / name).write_bytes(lines(ROWS))
    return path


def broken_parquet(path):
    path = path.with_suffix(".parquet")
    path.write_bytes(b"PAR1 and nothing else")
    return path


def broken_json(path):
    path = path.with_suffix(".json")
    path.write_bytes(json.dumps(ROWS).encode()[:-5])
    return path


def ragged_csv(path):
    path = path.with_suffix(".csv")
    path.write_text("prompt,chosen,rejected\nq,a,b\nq,a, with a comma,b\n")
    return path


def a_column_twice(path):
    path = path.with_suffix(".csv")
    path.write_text("prompt,chosen,rejected,chosen\nq,a,b,c\n")
    return path


def too_deep(path):
    path.write_text("[" * 100_000)
    return path


def a_number_of_5000_digits(path):
    path.write_bytes(lines(ROWS) + b'{"prompt": "q", "chosen": "a", "rejected": "b", "weight": ' + b"9" * 5000 + b"}")
    return path


def absent(path):
    write(path.with_name("pairs.jsonl"), ROWS)
    return path.with_name("pears.jsonl")


@pytest.mark.parametrize(
    "broken, said",
    [
        (truncated_gzip, "truncated.*fetch it again"),
        (wrong_column, "row 1, column 'rejected'.*rejcted"),
        (non_utf8, "row 3.*byte 0xe9.*UTF-8"),
        (half_a_line, "row 2.*broken JSON"),
        (half_a_character, "row 2.*ends inside a character"),
        (boolean_response, "row 3, column 'chosen'.*false \\(a boolean\\)"),
        (empty, "empty file"),
        (missing_side, "row 3, column 'rejected'.*nothing"),
        (directory, "directory with 2 data files.*inside.jsonl, other.csv"),
        (broken_parquet, "broken Parquet"),
        (broken_json, "broken JSON"),
        (ragged_csv, "row 2: found 4 fields, expected 3"),
        (a_column_twice, "column 'chosen' twice"),
        (too_deep, "row 1.*too deeply"),
        (a_number_of_5000_digits, "row 3.*too many digits"),
        (absent, "no such file.*did you mean 'pairs.jsonl'"),
    ],
)
def test_a_broken_file_gets_one_line_that_names_it_and_the_fix(tmp_path, broken, said):
    path = broken(tmp_path / "r.jsonl")
    with pytest.raises(DataError, match=said) as error:
        load(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value) and "expected" in str(error.value) and ";" in str(error.value)


def test_a_folder_with_one_data_file_stands_for_it(tmp_path):
    (tmp_path / "README.md").write_text("# Pairs")
    (tmp_path / "pairs.jsonl.gz").write_bytes(gzip.compress(lines(ROWS)))
    assert load(tmp_path) == load(tmp_path / "pairs.jsonl.gz")


@pytest.mark.parametrize("broken", [non_utf8, half_a_line, boolean_response, missing_side])
def test_bad_rows_are_set_aside_with_their_reason_and_counted(tmp_path, broken):
    path = broken(tmp_path / "r.jsonl")
    reading = read(path, skip_bad_rows=tmp_path / "deep" / "bad.jsonl")
    written = [json.loads(line) for line in (tmp_path / "deep" / "bad.jsonl").read_text().splitlines()]
    assert len(reading.bad) == 1 and len(written) == 1
    assert written[0]["row"] == reading.bad[0].row == len(reading.records) + 1
    assert written[0]["reason"] == reading.bad[0].reason
    assert written[0]["content"]


def test_bad_rows_never_go_into_the_data_themselves(tmp_path):
    path = half_a_line(tmp_path / "r.jsonl")
    before = path.read_bytes()
    with pytest.raises(DataError, match="another file"):
        read(path, skip_bad_rows=tmp_path / "." / "r.jsonl")
    assert path.read_bytes() == before


@pytest.mark.parametrize("broken", [truncated_gzip, wrong_column, empty, directory, broken_parquet])
def test_a_file_without_a_good_row_is_an_error_and_nothing_is_written(tmp_path, broken):
    path = broken(tmp_path / "r.jsonl")
    with pytest.raises(DataError):
        load(path, skip_bad_rows=tmp_path / "bad.jsonl")
    assert not (tmp_path / "bad.jsonl").exists()


def test_a_mixture_scales_the_weight_of_its_parts_rows(tmp_path):
    a = write(tmp_path / "a.jsonl", [ROWS[0] | {"weight": 0.5}])
    b = write(tmp_path / "b.jsonl", [{"prompt": "q", "good": "a", "bad": "b"}])
    columns = {"chosen": "good", "rejected": "bad"}
    records = load([{"path": a, "weight": 3}, {"path": str(b), "columns": columns}])
    assert [r.weight for r in records] == [1.5, 1.0]  # 0.5 x 3
    assert [r.source for r in records] == [str(a), str(b)]
    assert load([{"path": str(b)}], columns=columns)[0].responses == ("a", "b")  # those of all parts without their own


@pytest.mark.parametrize(
    "part, said",
    [
        ({"path": "x", "wieght": 2}, "did you mean 'weight'"),
        ({"weight": 2}, "expected a path"),
        ({"path": "x", "weight": 0}, "above 0"),
        ({"path": "x", "columns": {"chosn": "a"}}, "did you mean 'chosen'"),
    ],
)
def test_a_mixture_with_a_wrong_key_is_refused(part, said):
    with pytest.raises(DataError, match=said):
        load([part])


def test_a_name_that_is_no_file_is_looked_for_on_the_hub(monkeypatch):
    import datasets

    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: asked.append((args, options)) or ROWS)
    records = load([{"path": "owner/name", "split": "test[:2]", "subset": "en"}])
    assert asked == [(("owner/name", "en"), {"split": "test[:2]"})]
    assert (len(records), records[0].source) == (2, "owner/name")


def test_a_hub_set_that_cannot_be_read_is_one_line(monkeypatch):
    import datasets

    def refuse(*args, **options):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match="owner/name: found no such file.*no route to host") as error:
        load("owner/name")
    assert "\n" not in str(error.value)


# Holding out


@given(st.lists(st.sampled_from("abcdefgh"), min_size=4, max_size=40), st.integers(0, 5), st.floats(0.05, 0.95))
@settings(max_examples=100, deadline=None)
def test_no_prompt_stands_on_both_sides(prompts, seed, fraction):
    records = [Record(prompt=p.upper() if i % 2 else p, row=i) for i, p in enumerate(prompts)]
    if len(set(prompts)) < 2:
        return
    train, held = split_holdout(records, fraction, seed)
    assert {normalise(r.prompt) for r in train}.isdisjoint(normalise(r.prompt) for r in held)
    assert sorted(r.row for r in train + held) == list(range(len(records)))
    assert train and held
    assert (train, held) == split_holdout(records, fraction, seed)


def test_a_number_of_rows_is_held_out():
    records = [Record(prompt=str(i), row=i) for i in range(100)]
    assert [len(side) for side in split_holdout(records, 10)] == [90, 10]
    assert [len(side) for side in split_holdout(records, 0.25)] == [75, 25]
    assert split_holdout(records, 10, seed=1) != split_holdout(records, 10, seed=2)


@pytest.mark.parametrize("share", [0, 1.0, 200, -0.5])
def test_holding_out_nothing_or_everything_is_refused(share):
    with pytest.raises(ValueError, match="held out"):
        split_holdout([Record(prompt="a")], share)


def test_prompts_of_a_real_set_are_held_out_whole():
    records = files.load(shared("data/hhh_alignment/pairs.jsonl.gz"))
    train, held = split_holdout(records, 0.2)
    assert {normalise(r.prompt) for r in train}.isdisjoint(normalise(r.prompt) for r in held)
    assert len(held) == 44  # round(0.2 x 221)
