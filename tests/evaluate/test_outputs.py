"""Answers in the forms of AlpacaEval 2 and MT-Bench."""

import json

import pytest

from modeseek.cli import main
from modeseek.data.records import Message
from modeseek.evaluate.outputs import TEMPERATURES, answers, questions, write

ALPACA = [{"dataset": "helpful_base", "instruction": "Say hello.", "output": "Hi", "generator": "text_davinci_003"}]
MT_BENCH = [
    {"question_id": 81, "category": "writing", "turns": ["Write.", "Write it again."]},
    {"question_id": 111, "category": "math", "turns": ["Add 1 and 2.", "Double it."]},
]


class Parrot:
    """Says which question it was asked, how many messages there were and how warm it was."""

    def __init__(self):
        self.asked = []

    def __call__(self, conversations, temperature):
        self.asked += conversations
        return [f"{c if isinstance(c, str) else c[-1].content} {len(c)} {temperature}" for c in conversations]


def test_alpaca_eval_reads_a_list_of_outputs_with_their_generator():
    found = answers(ALPACA, "alpaca_eval", Parrot(), "mine", 0.7)
    assert found == [
        {
            "dataset": "helpful_base",
            "instruction": "Say hello.",
            "output": "Say hello. 10 0.7",
            "generator": "mine",
        }
    ]


def test_mt_bench_asks_the_second_turn_with_the_first_answer_in_it():
    parrot = Parrot()
    writing, maths = answers(MT_BENCH, "mt_bench", parrot, "mine", 1.0)
    assert writing["choices"] == [{"index": 0, "turns": ["Write. 1 0.7", "Write it again. 3 0.7"]}]
    assert maths["choices"] == [{"index": 0, "turns": ["Add 1 and 2. 1 0.0", "Double it. 3 0.0"]}]
    assert (writing["question_id"], writing["model_id"]) == (81, "mine")
    assert (Message("user", "Write."), Message("assistant", "Write. 1 0.7")) == parrot.asked[-1][:2]
    assert writing.keys() == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    assert TEMPERATURES["coding"] == 0.0


def test_questions_without_what_the_form_needs_are_refused(tmp_path):
    path = tmp_path / "q.json"
    path.write_text(json.dumps(ALPACA))
    assert questions(path, "alpaca_eval") == ALPACA
    with pytest.raises(ValueError, match="row 1 has no question_id, which mt_bench needs"):
        questions(path, "mt_bench")
    path.write_text("{broken")
    with pytest.raises(ValueError, match="neither a JSON list nor JSON lines"):
        questions(path, "mt_bench")


def test_mt_bench_is_written_as_lines_and_alpaca_eval_as_a_list(tmp_path):
    assert json.loads(write(ALPACA, "alpaca_eval", tmp_path / "a" / "out.json").read_text()) == ALPACA
    lines = write(MT_BENCH, "mt_bench", tmp_path / "a" / "out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == MT_BENCH


def test_the_command_writes_a_policys_answers(tiny, tmp_path, capsys):
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MT_BENCH))
    out = tmp_path / "model_answer" / "tiny.jsonl"
    words = ["evaluate", str(tiny), "--prompts", str(tmp_path / "q.jsonl"), "--outputs", "mt_bench", str(out)]
    words += ["--max_length", "120", "--max_completion_length", "8"]
    assert main(words) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["question_id"] for row in rows] == [81, 111]
    assert all(len(row["choices"][0]["turns"]) == 2 for row in rows)
    words[words.index("mt_bench")] = "arena"
    assert main(words) == 2
    assert "outputs: 'arena'" in capsys.readouterr().err
