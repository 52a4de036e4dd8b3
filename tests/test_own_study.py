"""The example of a world and a claim of one's own runs, and its world is what it says."""

from pathlib import Path

import pytest
from rich.console import Console

from modeseek.studies.conduct import Order, conduct
from modeseek.studies.load import load_set

EXAMPLE = str(Path(__file__).parents[1] / "examples" / "own_study.py")


def test_the_example_is_a_study_from_rows_to_page(tmp_path):
    folder, said, failed = conduct(
        Order(config=EXAMPLE, seeds=5, workers=1, output_dir=str(tmp_path)), Console(quiet=True)
    )
    (claim,) = said["sets"][0]["claims"]
    assert not failed and [part["n"] for part in claim["parts"]] == [5, 5, 5]
    assert (folder / "report.html").exists()


def test_labels_that_mostly_tell_the_truth_teach():
    """From a uniform policy, worth 1/2 and without KL, both methods rise; a seed alone does as among others."""
    world = load_set(EXAMPLE).study.worlds[0]
    for method in world.methods():
        rows = world.run(method, [7, 8], steps=20)
        first, last = ({r["seed"]: r for r in rows if r["step"] == step} for step in (0, 20))
        assert first[7]["reward"] == pytest.approx(0.5) and first[7]["kl"] == pytest.approx(0)
        assert all(last[s]["reward"] > 0.55 for s in (7, 8))
        assert world.run(method, [8], steps=20)[-1]["reward"] == pytest.approx(last[8]["reward"], rel=1e-9)
