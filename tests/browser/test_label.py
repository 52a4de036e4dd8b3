"""The labelling page in a real browser: by keyboard, through crashes, for two people, against what models write."""

import os
import pathlib

import pytest

from attacks import ATTACKS
from modeseek.collect.store import Store

pytestmark = pytest.mark.browser


KEYS = ("1", "2", "t", "s")
LONG = "\n\n".join(
    [
        "The tide is the slow rise and fall of the sea, and it comes **twice a day** on most coasts.",
        "1. The moon pulls the water on its side.\n2. The earth turns under the two bulges.\n3. The sun helps.",
        "| moon | tide |\n|---|---|\n| new, full | spring |\n| half | neap |",
        "```\nheight = mean + sum(a * cos(w * t + p))\n```",
        "> A longer quotation about currents in narrow straits, which run faster than the tide itself would suggest.",
    ]
)


def pairs(n):
    return [(f"prompt {i}", f"answer one of {i}", f"answer two of {i}") for i in range(n)]


def enter(page, name):
    page.fill("#annotator", name)
    page.press("#annotator", "Enter")
    page.wait_for_selector("#answers:visible")
    ready(page)


def ready(page):
    page.wait_for_selector("body:not(.busy)")  # the page's policy forbids functions to wait for


def prompt(page):
    return page.inner_text("#prompt").strip()


def press(page, key):
    page.keyboard.press(key)
    ready(page)


def kept(path):
    query = "select prompts.prompt, annotator, preferred, shown, seconds, note from labels, pairs, prompts"
    query += " where pairs.id = labels.pair and prompts.id = pairs.prompt and undone is null order by labels.id"
    with Store(path) as store:
        return store.rows(query)


def test_twenty_pairs_by_keyboard(server, open_page, fill):
    fill(server.store, pairs(20))
    page = open_page(server.start())
    assert "token" not in page.url
    enter(page, "ann")
    expected = []
    for i in range(20):
        shown, first, key = prompt(page), page.inner_text("#first").strip(), KEYS[i % 4]
        if key in "12":
            side = first if key == "1" else page.inner_text("#second").strip()
            expected.append((shown, "a" if "one" in side else "b"))
        else:
            expected.append((shown, {"t": "tie", "s": "skip"}[key]))
        press(page, key)
    assert "Nothing waits for you" in page.inner_text("#status")
    found = [(row[0].strip('"'), row[2]) for row in kept(server.store)]
    assert found == expected
    assert "15 of 20" in page.inner_text("#count")
    assert all(row[4] > 0 for row in kept(server.store))


def test_undo_brings_the_pair_back_and_a_note_is_kept(server, open_page, fill):
    fill(server.store, pairs(3))
    page = open_page(server.start())
    enter(page, "ann")
    first = prompt(page)
    press(page, "1")
    assert prompt(page) != first
    press(page, "u")
    assert prompt(page) == first and kept(server.store) == []
    press(page, "n")
    page.keyboard.type("t1s: typed, not chosen")
    page.keyboard.press("Escape")
    press(page, "t")
    ((_, _, preferred, _, _, note),) = kept(server.store)
    assert (preferred, note) == ("tie", "t1s: typed, not chosen")
    assert page.input_value("#note") == ""


def test_a_reload_goes_on_where_it_was(server, open_page, fill):
    fill(server.store, pairs(3))
    page = open_page(server.start())
    enter(page, "ann")
    press(page, "1")
    before, side = prompt(page), page.inner_text("#first")
    page.reload()
    page.wait_for_selector("#answers:visible")
    ready(page)
    assert (prompt(page), page.inner_text("#first")) == (before, side)
    assert "you 1" in page.inner_text("#count")


def test_two_people_have_queues_of_their_own(server, open_page, fill):
    fill(server.store, pairs(4), times=2)
    link = server.start()
    ann, bob = open_page(link), open_page(link)
    enter(ann, "ann")
    enter(bob, "bob")
    for _ in range(4):
        press(ann, "1")
        press(bob, "t")
    said = kept(server.store)
    assert sorted(row[1] for row in said) == ["ann"] * 4 + ["bob"] * 4
    assert "8 of 8" in bob.inner_text("#count") or "7 of 8" in bob.inner_text("#count")


def test_a_label_survives_the_death_of_the_server(server, open_page, fill):
    fill(server.store, pairs(5))
    page = open_page(server.start())
    enter(page, "ann")
    press(page, "1")
    server.kill()
    page.keyboard.press("2")
    page.wait_for_selector("#status:has-text('kept here')")
    assert len(kept(server.store)) == 1
    server.start()
    ready(page)
    assert [row[2] in "ab" for row in kept(server.store)] == [True, True]
    press(page, "t")
    assert len(kept(server.store)) == 3


def test_a_label_survives_the_death_of_server_and_page(server, open_page, fill):
    fill(server.store, pairs(5))
    page = open_page(server.start())
    enter(page, "ann")
    shown = prompt(page)
    server.kill()
    page.keyboard.press("t")
    page.wait_for_selector("#status:has-text('kept here')")
    link = server.start()
    page.goto("about:blank")
    page.goto(link)
    page.wait_for_selector("#answers:visible")
    ready(page)
    assert [(row[0].strip('"'), row[2]) for row in kept(server.store)] == [(shown, "tie")]
    assert prompt(page) != shown


def test_a_lost_answer_counts_once(server, open_page, fill):
    fill(server.store, pairs(3))
    page = open_page(server.start())
    enter(page, "ann")
    lost = []

    def lose(route):
        if lost:
            return route.continue_()
        lost.append(route.fetch())  # the server has it, the page never hears
        return route.abort()

    page.route("**/api/label", lose)
    press(page, "1")
    assert len(lost) == 1 and len(kept(server.store)) == 1


def test_an_undo_whose_answer_was_lost_takes_one_label_back_when_it_is_pressed_again(server, open_page, fill):
    fill(server.store, pairs(4))
    page = open_page(server.start())
    enter(page, "ann")
    press(page, "1")
    last = prompt(page)
    press(page, "2")
    lost = []

    def lose(route):
        if lost:
            return route.continue_()
        lost.append(route.fetch())
        return route.abort()

    page.route("**/api/undo", lose)
    press(page, "u")
    assert "does not answer" in page.inner_text("#status") and len(kept(server.store)) == 1
    press(page, "u")
    assert prompt(page) == last and len(kept(server.store)) == 1


def test_nothing_that_a_model_wrote_runs_or_reaches_out(server, open_page, fill):
    fill(server.store, [(text, text, f"other {text}") for text in ATTACKS])
    page = open_page(server.start())
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    enter(page, "ann")
    for _ in ATTACKS:
        for part in ("#prompt", "#first", "#second"):
            inside = page.eval_on_selector_all(
                f"{part} *", "all => all.map(e => [e.tagName, e.getAttributeNames().join()])"
            )
            assert all(names in ("", "start") for _, names in inside), inside
            assert not {tag for tag, _ in inside} & {
                "SCRIPT",
                "IMG",
                "A",
                "SVG",
                "IFRAME",
                "STYLE",
                "FORM",
                "INPUT",
                "BUTTON",
            }
        assert page.is_visible("[data-choice='1']")
        press(page, "t")
    assert "Nothing waits for you" in page.inner_text("#status")
    assert {url.split("/api/")[0] for url in asked} == {f"http://127.0.0.1:{server.port}"}


def test_haste_is_pointed_out(server, open_page, fill):
    fill(server.store, [("p", LONG * 5, LONG * 4), ("q", "a", "b"), ("r", "a", "b")])
    page = open_page(server.start())
    enter(page, "ann")
    press(page, "1")
    assert "less than reading takes" in page.inner_text("#status")


@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_fits_and_is_accessible(server, open_page, fill, tmp_path, width):
    fill(server.store, [("How do tides work? Explain it to a sailor.", LONG, LONG[:400]), ("second", "a", "b")])
    page = open_page(server.start(), width=width, height=844 if width == 390 else 900)
    folder = pathlib.Path(os.environ.get("SCREENSHOTS", tmp_path))
    page.screenshot(path=folder / f"enter-{width}.png")
    check(page)
    enter(page, "ann")
    page.screenshot(path=folder / f"label-{width}.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for choice in ("1", "2", "tie", "skip"):
        box = page.locator(f"[data-choice='{choice}']").bounding_box()
        assert box["y"] + box["height"] <= page.viewport_size["height"] and box["height"] >= 32
    check(page)
    press(page, "1")
    press(page, "1")
    check(page)


def check(page):
    """axe-core's findings, those that are serious or worse: none."""
    package = pytest.importorskip(
        "axe_playwright_python", reason="axe-playwright-python, which brings axe-core, is absent"
    )
    # the page's own policy forbids injected tags; evaluated through the debugger it is not part of the page
    page.evaluate(pathlib.Path(package.__file__).with_name("axe.min.js").read_text())
    found = page.evaluate("axe.run()")
    assert found["passes"]
    serious = [(v["id"], v["nodes"][0]["html"]) for v in found["violations"] if v["impact"] in ("serious", "critical")]
    assert not serious, serious
