"""`modeseek label`: what it refuses before it serves, what it asks for, and its report."""

import pytest

from modeseek.collect.rows import Group, Pair, Response
from modeseek.collect.store import Store
from modeseek.commands import label as command
from modeseek.label import serve


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "store.sqlite"
    with Store(path) as made:
        responses = [Response(text=text, writer="w", draw=text) for text in ("one", "two words")]
        group = Group(prompt="p", source="hand", responses=responses, pairs=[Pair(a=0, b=1)])
        made.commit(made.begin({"made": "by hand"}), 0, [group], selected="hand")
    return path


@pytest.fixture
def served(monkeypatch):
    """What the server would have been started with."""
    found = []
    monkeypatch.setattr(serve, "serve", lambda queue, **told: found.append(told))
    return found


def test_the_first_start_asks_people_and_the_token_outlives_it(store, served):
    for _ in range(2):
        assert command.main([str(store)]) == 0
    assert served[0]["token"] == served[1]["token"] and len(served[0]["token"]) >= 32
    with Store(store) as found:
        assert found.progress().wanted == 1


def test_overlap_asks_anew(store, served):
    command.main([str(store)])
    command.main([str(store), "--overlap", "1", "--times", "3"])
    with Store(store) as found:
        assert found.progress().wanted == 3


def test_guidelines_come_from_a_file_or_are_ours(store, served, tmp_path):
    (tmp_path / "g.md").write_text("# Mine")
    command.main([str(store), "--guidelines", str(tmp_path / "g.md")])
    command.main([str(store)])
    assert served[0]["guidelines"] == "# Mine" and "tie" in served[1]["guidelines"]
    with pytest.raises(ValueError, match=r"guidelines: .* cannot be read"):
        command.main([str(store), "--guidelines", str(tmp_path / "absent.md")])


def test_a_store_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(ValueError, match="no file"):
        command.main([str(tmp_path / "absent.sqlite")])
    assert not (tmp_path / "absent.sqlite").exists()


def test_an_empty_store_is_said_to_be_empty(tmp_path):
    Store(tmp_path / "empty.sqlite").close()
    with pytest.raises(ValueError, match="holds no pairs"):
        command.main([str(tmp_path / "empty.sqlite")])


def test_the_report_needs_labels_and_then_shows_them(store, tmp_path, capsys):
    out = tmp_path / "labels.html"
    with pytest.raises(ValueError, match="nobody has labelled"):
        command.main([str(store), "--report", str(out)])
    with Store(store) as found:
        found.ask(overlap=1, times=2)
        found.label(1, "ann", "a", 3.0, "ab", "because", "click-0001")
        found.label(1, "bob", "b", 3.0, "ba", "", "click-0002")
    assert command.main([str(store), "--report", str(out)]) == 0
    page = out.read_text()
    assert "because" in page and "two words" in page and "1 pairs, 1 of them with opposite choices" in page


def test_a_port_that_is_taken_is_named(store):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port: {port} cannot be had"):
            command.main([str(store), "--port", str(port)])
