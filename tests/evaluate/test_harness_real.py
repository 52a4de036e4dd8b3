"""lm-evaluation-harness itself on a toy task with the tiny model; skipped where it is not installed.

pip install 'modeseek[harness]'
"""

import json
import math

import pytest

from modeseek.commands.evaluate import main
from modeseek.evaluate.harness import program

TASK = """task: toy
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def installed() -> bool:
    try:
        return bool(program())
    except ValueError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="lm-eval is not installed: pip install 'modeseek[harness]'")
def test_a_toy_task_is_run_and_read(tiny, fable_pairs, tmp_path, capsys, monkeypatch):
    """A short answer is likelier than itself and more words, so the first is always chosen: right in 6 of 8, .75.

    Its standard error is that of the mean, sqrt(p (1 - p) / (n - 1)), and the model against itself has not changed.
    """
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [
        {"question": "the fox told", "choices": ["the tale", "the tale of the old widow"], "label": int(i >= 6)}
        for i in range(8)
    ]
    file = tmp_path / "toy.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "toy.yaml").write_text(TASK.format(file=file))
    words = [str(tiny), "--against", str(tiny), "--prompts", str(fable_pairs), "--limit", "2", "--json"]
    words += ["--max_completion_length", "4", "--reward", "length", "--harness", "toy"]
    assert main([*words, "--harness_include", str(tmp_path / "tasks")]) == 0
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert found["toy/acc"]["value"] == 0.75 and found["toy/acc"]["n"] == 8
    assert found["toy/acc"]["standard_error"] == pytest.approx(math.sqrt(0.75 * 0.25 / 7), rel=1e-3)
    assert found["regression/toy/acc"]["value"] == 0
