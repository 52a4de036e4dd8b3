"""What the labels' page says of labels whose faults are known."""

import numpy as np
import pytest

from modeseek.label.summary import Given, given, summarise
from modeseek.report.labels import render


def label(pair, annotator, preferred, order="ab", seconds=30.0, a="one two three", b="one two", note="", prompt="p"):
    return Given(
        pair=pair,
        annotator=annotator,
        preferred=preferred,
        order=order,
        seconds=seconds,
        note=note,
        prompt=prompt,
        a=a,
        b=b,
    )


def test_agreement_is_that_of_the_shared_pairs():
    # Units aa, ab, bb as in the test of alpha: 1 - 10/18; a skip is no label, a pair of one person is no unit.
    said = {1: "aa", 2: "ab", 3: "bb"}
    labels = [label(p, n, x) for p, both in said.items() for n, x in zip(("ann", "bob"), both, strict=True)]
    labels += [label(4, "ann", "a"), label(5, "ann", "a"), label(5, "bob", "skip")]
    found = summarise(labels)
    assert found["alpha"]["value"] == pytest.approx(1 - 10 / 18)
    assert (found["overlap"], found["labels"], found["skips"], found["pairs"]) == (3, 8, 1, 5)
    (kappa,) = found["kappas"]
    assert (kappa["pairs"], kappa["same"]) == (3, pytest.approx(2 / 3))
    assert [d["pair"] for d in found["disagreements"]["shown"]] == [2]
    assert found["disagreements"]["opposite"] == 1


def test_a_lean_to_the_first_shown_is_found_and_told_from_a_lean_to_a():
    # Always the first shown, whichever response that is: a in half of them.
    labels = [label(i, "ann", "ab"[i % 2], order=("ab", "ba")[i % 2]) for i in range(40)]
    found = summarise(labels)["people"][0]
    assert found["first"]["value"] == 1.0 and found["first"]["p"] < 1e-6
    assert found["longer"]["value"] == 0.5 and found["longer"]["p"] > 0.5
    assert "took the response shown first in 100% of 40 choices" in render(summarise(labels), "s")
    fair = [label(i, "ann", "a", order=("ab", "ba")[i % 2]) for i in range(40)]
    assert summarise(fair)["people"][0]["first"]["value"] == 0.5


def test_a_lean_to_length_is_found_in_words_and_equal_lengths_say_nothing():
    labels = [label(i, "ann", "a") for i in range(30)] + [label(99, "ann", "a", b="three other words")]
    found = summarise(labels)["people"][0]["longer"]
    assert (found["value"], found["labels"]) == (1.0, 30)


def test_haste_and_absence_are_counted():
    # Five words take 0.25 s at 20 a second; slow is beyond 300 s and five times the median of 30 s.
    seconds = [0.1, 0.24, 0.26, 30.0, 30.0, 30.0, 299.0, 301.0, None]
    found = summarise([label(i, "ann", "a", seconds=s) for i, s in enumerate(seconds)])["people"][0]
    assert (found["fast"], found["slow"], found["seconds"]) == (2, 1, 30.0)


def test_nobody_shares_a_pair_and_the_page_says_so():
    page = render(summarise([label(1, "ann", "a"), label(2, "bob", "b")]), "store")
    assert "Agreement is not known: no pair has labels of two people" in page


def test_what_people_and_models_wrote_is_escaped():
    bad = "</pre><script>alert(1)</script>"
    page = render(summarise([label(1, bad, "a", a=bad, note=bad, prompt=bad), label(1, "bob", "b", a=bad)]), bad)
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "http://" not in page and "https://" not in page


def test_rows_of_a_store_are_read_with_their_turns():
    turns = '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]'
    (found,) = given([(7, "ann", "b", "ba", 2.0, "n", turns, '"left"', '"right side"')])
    assert found.prompt == "user: hi\n\nassistant: yes?"
    assert (found.first, found.longer, found.fast) == (True, True, False)


def test_random_labels_agree_as_by_chance():
    rng = np.random.default_rng(0)
    labels = [label(i, n, str(rng.choice(["a", "b"]))) for i in range(200) for n in ("ann", "bob")]
    found = summarise(labels)["alpha"]
    assert found["low"] < 0 < found["high"]
