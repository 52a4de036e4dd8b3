"""The page of a study: what it says, that it loads nothing, and that nothing a person wrote runs."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from modeseek.report import study as page
from modeseek.report.study_data import read
from modeseek.studies.conduct import Order, conduct


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    here = tmp_path_factory.mktemp("page")
    shutil.copy(Path(__file__).parent / "small_study.py", here / "own.py")
    order = Order(config=str(here / "own.py"), seeds=8, workers=1, output_dir=str(here / "out"))
    return conduct(order, Console(quiet=True))[0]


@pytest.fixture(scope="module")
def html(folder):
    return (folder / page.PAGE).read_text()


def test_verdicts_come_first_with_effect_interval_seeds_and_p(html):
    table = html[html.index("Verdicts: small") :]
    row = re.sub(r"<[^>]+>", " ", table[table.index("it ends higher") :][:600])
    assert "above 1" in row and "8.00" in row and "0.012" in row and "holds" in row
    assert html.index("Verdicts: small") < html.index('<svg class="plot"')


def test_nothing_is_loaded_and_nothing_runs(html):
    assert "<script" not in html and "&lt;script&gt;alert(1)" in html
    assert not re.search(r"(?:src|href)=[\"'](?!#)", html)
    assert "http" not in html.replace("http-equiv", "")
    assert len(re.findall(r' id="([^"]+)"', html)) == len(set(re.findall(r' id="([^"]+)"', html)))


def test_every_line_says_its_seeds_and_what_it_lost(html):
    legends = re.findall(r'<li><svg class="swatch".*?</li>', html, re.S)
    lines = [entry for entry in legends if "seed" in entry]
    assert lines and any("(8 seeds, 8 not finite)" in entry for entry in lines)
    assert len(lines) == sum("largest" not in entry for entry in legends)


def test_choose_seeds_are_said_to_be_no_report(html):
    assert "On the choose seeds" in html


def test_warnings_short_forms_and_failures_are_shown(folder, tmp_path):
    found = read(folder)
    head = {
        "warnings": ["small: old <dials>"],
        "quick": True,
        "failed": [{"cell": "line/bad", "error": "it <b>broke</b>"}],
    }
    text = page.render(dataclasses.replace(found, found={**found.found, **head}))
    assert "Warning:</b> small: old &lt;dials&gt;" in text
    assert "The short form" in text and "On the choose seeds" not in text
    assert "line/bad failed" in text and "it &lt;b&gt;broke" in text


def test_a_comparison_that_is_not_clear_is_not_called_so(folder):
    data = read(folder)
    pair = {"metric": "kl", "n": 3, "wanted": 3, "effect": 1.0, "low": 0.5, "high": 1.5}
    pairs = [
        {**pair, "ours": "a", "theirs": "b", "adjusted": 0.01, "clear": True},
        {**pair, "ours": "a", "theirs": "c", "adjusted": 0.70, "clear": False},
    ]
    one = {**data.found["sets"][0], "differences": pairs}
    text = page.render(dataclasses.replace(data, found={**data.found, "sets": [one]}))
    said = re.findall(r"<td>(a less \w)</td>.*?(\d\.\d+)</td><td>(clear|not clear)</td>", text, re.S)
    assert said == [("a less b", "0.010", "clear"), ("a less c", "0.700", "not clear")]


def test_the_page_is_made_again_from_what_is_stored(folder, tmp_path, html):
    assert page.write(folder, tmp_path / "again.html").read_text() == html
    with pytest.raises(ValueError, match=r"is not a study: it has no verdicts.json"):
        page.write(tmp_path)


def test_the_table_for_the_docs_escapes_what_would_break_it(folder):
    text = page.markdown(read(folder).found)
    assert r"it ends higher \| by 1" in text and "<script" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 5 and {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {10}
    assert "undecided: 8 of 8 seeds are not finite" in text


def test_what_a_part_asks_is_said_with_its_sign():
    said = [
        page.rule({"relation": r, "margin": m}) for r, m in (("greater", 0), ("less", 0), ("less", 0.5), ("equal", 0.1))
    ]
    assert said == ["above 0", "below 0", "below -0.5", "within \N{PLUS-MINUS SIGN}0.1"]
    assert [page.p_value(p) for p in (None, 0.0004, 0.0512)] == ["-", "< 0.001", "0.051"]
