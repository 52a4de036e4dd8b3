"""The labelling server, asked over HTTP: what it keeps, what it refuses, and what it never says."""

import json
import pathlib
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient

from modeseek.collect.rows import Group, Pair, Response
from modeseek.collect.store import Store
from modeseek.label.app import HEADER, make_app

TOKEN = "a-token-of-enough-length"


def store_of(path: pathlib.Path, pairs: int = 4, times: int = 1, texts=("short", "a longer one")) -> Store:
    store = Store(path / "store.sqlite")
    plan = store.begin({"made": "by hand"})
    groups = [
        Group(
            prompt=f"prompt {i}",
            source="hand",
            responses=[
                Response(text=f"{text} {i}", writer="secret-writer", draw=str(k)) for k, text in enumerate(texts)
            ],
            pairs=[Pair(a=0, b=1)],
        )
        for i in range(pairs)
    ]
    store.commit(plan, 0, groups, selected="hand")
    store.ask(overlap=1.0 if times > 1 else 0.0, times=times)
    return store


@pytest.fixture
def store(tmp_path):
    with store_of(tmp_path) as made:
        yield made


@pytest.fixture
def client(store):
    return browser(store)


def browser(store, token=TOKEN, **kwargs):
    headers = {HEADER: token} if token else {}
    return TestClient(
        make_app(store, token=TOKEN, guidelines="*Be fair.*"), base_url="http://127.0.0.1:1", headers=headers, **kwargs
    )


def ask(client, name, /, **what):
    return client.post(f"/api/{name}", json={"annotator": "ann", **what})


def click(client, pair, choice="1", client_id="click-0001", **what):
    return ask(client, "label", pair=pair["id"], order=pair["order"], choice=choice, client=client_id, **what)


def kept(store):
    return store.rows(
        "select pair, annotator, preferred, shown, seconds, note from labels where undone is null order by id"
    )


def test_the_side_of_the_screen_is_stored_as_the_response_it_showed(client, store):
    for i in range(4):
        pair = ask(client, "next").json()["pair"]
        shown = store.rows("select shown from labels")  # what came before
        assert len(shown) == i
        first = "short" in pair["first"]
        assert first == (pair["order"] == "ab")
        assert click(client, pair, "1" if first else "2", f"click-000{i}", seconds=2.5, note=" why ").status_code == 200
    assert [(row[2], row[4], row[5]) for row in kept(store)] == [("a", 2.5, "why")] * 4
    assert ask(client, "next").json()["pair"] is None


def test_both_orders_are_shown_and_the_same_pair_always_in_the_same(tmp_path):
    with store_of(tmp_path, pairs=40, times=2) as store:
        client, orders = browser(store), []
        for i in range(40):
            pair = ask(client, "next").json()["pair"]
            assert ask(client, "next").json()["pair"] == pair
            orders.append(pair["order"])
            click(client, pair, "tie", f"click-{i:04}")
        assert 8 < orders.count("ab") < 32


def test_the_page_is_blind(client):
    said = json.dumps(ask(client, "next").json()) + client.get("/", params={"token": TOKEN}).text
    assert "secret-writer" not in said
    assert set(ask(client, "next").json()["pair"]) == {"id", "order", "prompt", "first", "second", "same", "fast"}


def test_a_click_that_arrives_twice_counts_once(client, store):
    pair = ask(client, "next").json()["pair"]
    first, again = (click(client, pair, "1", seconds=1.0).json() for _ in range(2))
    assert first == again and len(kept(store)) == 1
    # and a lost answer's click that comes after the next label changes nothing either
    click(client, ask(client, "next").json()["pair"], "tie", "click-0002")
    click(client, pair, "1", "click-0001")
    assert len(kept(store)) == 2


def test_a_label_is_on_disk_before_it_is_answered(tmp_path):
    with store_of(tmp_path) as store:
        seen = []

        class Watched:
            def __getattr__(self, name):
                return getattr(store, name)

            def label(self, *args):
                store.label(*args)
                with Store(tmp_path / "store.sqlite") as other:
                    seen.append(len(kept(other)))
                raise OSError("the process dies here")

        client = browser(Watched(), raise_server_exceptions=False)
        pair = ask(client, "next").json()["pair"]
        assert click(client, pair).status_code == 500
        assert seen == [1]
        assert click(browser(store), pair).status_code == 200
        assert len(kept(store)) == 1


def test_undo_takes_the_last_label_back_and_shows_its_pair(client, store):
    pair = ask(client, "next").json()["pair"]
    click(client, pair)
    found = ask(client, "undo").json()
    assert found["undone"] == pair["id"] and found["pair"] == pair
    assert kept(store) == []
    assert ask(client, "undo").json()["undone"] is None


def test_an_undo_whose_answer_was_lost_takes_nothing_else_back(client, store):
    for i in range(2):
        click(client, ask(client, "next").json()["pair"], client_id=f"click-000{i}")
    state = ask(client, "next").json()
    for _ in range(2):
        found = ask(client, "undo", label=state["last"]).json()
        assert found["undone"] == found["pair"]["id"] == 2 and len(kept(store)) == 1
    assert ask(client, "undo", label=found["last"]).json()["undone"] == 1
    assert ask(client, "undo", label="1").status_code == 400


def test_nobody_takes_another_s_label_back(client, store):
    pair = ask(client, "next").json()["pair"]
    click(client, pair)
    (label,) = store.rows("select id from labels")[0]
    assert ask(client, "undo", annotator="bob").json()["undone"] is None
    assert ask(client, "undo", annotator="bob", label=label).json()["undone"] is None
    assert len(kept(store)) == 1


def test_what_was_taken_back_is_shown_again_whatever_others_left_meanwhile(client, store):
    """Ann labels pair 2 while bob looks at pair 1; bob skips it; ann's undo shows 2, not 1, and nobody else gets 2."""
    assert ask(client, "next", annotator="bob").json()["pair"]["id"] == 1
    pair = ask(client, "next").json()["pair"]
    assert pair["id"] == 2
    click(client, pair)
    click(client, {"id": 1, "order": "ab"}, "skip", "click-bob-1", annotator="bob")
    assert ask(client, "undo").json()["pair"]["id"] == 2
    assert ask(client, "next", annotator="cid").json()["pair"]["id"] == 1
    assert ask(client, "next", annotator="bob").json()["pair"]["id"] == 3
    assert ask(client, "next").json()["pair"]["id"] == 2  # a reload changes nothing


def test_four_people_label_and_undo_at_once_over_the_network(tmp_path):
    """Every fourth deed is an undo. What stands is what nobody took back, and the counts are of what stands."""
    with store_of(tmp_path, pairs=30, times=3) as store:
        client = browser(store)

        def work(who: str) -> list[int]:
            mine, draw = list[int](), random.Random(who)
            for i in range(60):
                if i % 4 == 3 and mine:
                    assert ask(client, "undo", annotator=who).json()["undone"] == mine.pop()
                elif pair := ask(client, "next", annotator=who).json()["pair"]:
                    click(client, pair, draw.choice(["1", "2", "tie", "skip"]), f"{who}-click-{i}", annotator=who)
                    mine.append(pair["id"])
            return mine

        people = ["ann", "bob", "cid", "dan"]
        with ThreadPoolExecutor(4) as pool:
            found = dict(zip(people, pool.map(work, people), strict=True))
        stand = [(who, pair) for pair, who, *_ in kept(store)]
        assert sorted(stand) == sorted((who, pair) for who, pairs in found.items() for pair in pairs)
        assert sum(len(pairs) for pairs in found.values()) > 60
        live = "select count(*) from labels where pair = pairs.id and undone is null and preferred != 'skip'"
        assert store.rows(f"select id from pairs where got != ({live}) or got > wanted") == []


def test_skips_are_kept_apart_from_labels(client):
    click(client, ask(client, "next").json()["pair"], "skip")
    progress = ask(client, "progress").json()["progress"]
    assert (progress["done"], progress["skipped"], progress["got"], progress["wanted"]) == (0, 1, 0, 4)


def test_two_people_have_queues_of_their_own_with_overlap(tmp_path):
    with store_of(tmp_path, pairs=3, times=2) as store:
        client = browser(store)
        for person in ("ann", "bob"):
            for i in range(3):
                pair = ask(client, "next", annotator=person).json()["pair"]
                click(client, pair, "tie", f"{person}-click-{i}", annotator=person)
            assert ask(client, "next", annotator=person).json()["pair"] is None
        assert len(kept(store)) == 6


@pytest.mark.parametrize("token", ["", "wrong-token-of-same-len", TOKEN + "x"])
def test_nothing_is_said_without_the_token(store, token):
    client = browser(store, token=token)
    for name in ("next", "label", "undo", "progress"):
        assert ask(client, name).status_code == 403
    assert client.get("/").status_code == 403
    for given in (token, "\u00e9\ud7ff", "%00"):
        assert client.get("/", params={"token": given}).status_code == 403
    assert kept(store) == []


def test_the_cookie_opens_the_page_and_cannot_label(store):
    client = browser(store, token="")
    page = client.get("/", params={"token": TOKEN})
    cookie = page.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert client.get("/").status_code == 200  # a reload
    assert ask(client, "next").status_code == 403  # the cookie alone, as a forged request would have it


def test_other_sites_and_other_names_are_refused(client):
    good = ask(client, "next").json()["pair"]
    for headers in ({"origin": "https://evil.example"}, {"origin": "null"}, {"host": "evil.example:1"}):
        found = client.post("/api/next", json={"annotator": "ann"}, headers=headers)
        assert found.status_code == 403, headers
        assert client.get("/", params={"token": TOKEN}, headers=headers).status_code == 403
    same = client.post("/api/next", json={"annotator": "ann"}, headers={"origin": "http://127.0.0.1:1"})
    assert same.json()["pair"] == good


def test_a_form_of_another_site_could_not_send_it(client):
    body = json.dumps({"annotator": "ann"})
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert client.post("/api/next", content=body, headers={"content-type": kind}).status_code == 400
    assert client.get("/api/next").status_code == 405
    assert client.options("/api/next", headers={"origin": "http://127.0.0.1:1"}).status_code == 405


def test_no_request_reads_a_file(client):
    for path in ("../app.py", "..%2fapp.py", "%2e%2e/app.py", "/etc/passwd", "label.html", "label.js%00", "."):
        assert client.get(f"/static/{path}").status_code in (404, 405), path
    for name in ("label.js", "label.css", "icon.svg"):
        assert client.get(f"/static/{name}").status_code == 200


def test_every_answer_forbids_scripts_frames_and_guessing(client):
    for answer in (
        client.get("/", params={"token": TOKEN}),
        client.get("/nothing"),
        ask(client, "next"),
        client.get("/"),
    ):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


def test_the_page_has_no_inline_script_or_style(client):
    page = client.get("/", params={"token": TOKEN}).text
    assert "<style" not in page and " style=" not in page and " on" not in page.replace(" one", "").split("<body>")[0]
    assert page.count("<script") == 1 and "<em>Be fair.</em>" in page


@pytest.mark.parametrize(
    "what",
    [
        {"choice": "3"},
        {"choice": None},
        {"order": "aa"},
        {"pair": "1"},
        {"pair": True},
        {"pair": 999},
        {"client": "short"},
        {"client": 5},
        {"note": "x" * 2001},
        {"annotator": ""},
        {"annotator": "rule:length"},
        {"annotator": ["ann"]},
    ],
)
def test_what_is_not_a_label_is_refused_in_words(client, store, what):
    pair = ask(client, "next").json()["pair"]
    good = {"pair": pair["id"], "order": pair["order"], "choice": "1", "client": "click-0001"}
    found = ask(client, "label", **(good | what))
    assert found.status_code == 400 and found.json()["error"]
    assert kept(store) == []


@pytest.mark.parametrize("body", ["", "[]", "nonsense", "[" * 30000, "x" * 40000])
def test_what_is_not_json_is_refused(client, body):
    found = client.post("/api/next", content=body, headers={"content-type": "application/json"})
    assert found.status_code == 400


@pytest.mark.parametrize(
    ("said", "stored"), [(3, 3.0), (-1, None), ("9", None), (True, None), (1e9, 86400.0), (None, None)]
)
def test_seconds_are_a_number_of_a_day_at_most(client, store, said, stored):
    click(client, ask(client, "next").json()["pair"], seconds=said)
    assert kept(store)[0][4] == stored


def test_a_click_id_of_another_pair_is_refused(client):
    click(client, ask(client, "next").json()["pair"])
    found = click(client, ask(client, "next").json()["pair"])
    assert found.status_code == 400 and "another pair" in found.json()["error"]


def test_a_short_token_is_refused(store):
    with pytest.raises(ValueError, match="found 4 characters"):
        make_app(store, token="easy")
