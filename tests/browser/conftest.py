"""A labelling server as a process of its own, and Debian's Chromium to look at it."""

import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from modeseek.collect.rows import Group, Pair, Response
from modeseek.collect.store import Store

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "browser: drives a real browser; `make test-browser` runs them, nothing else does"
    )


def pytest_collection_modifyitems(config, items):
    """Only those who ask for them by the mark get them."""
    if "browser" not in (config.option.markexpr or ""):
        gone = [item for item in items if item.get_closest_marker("browser")]
        config.hook.pytest_deselected(items=gone)
        items[:] = [item for item in items if item not in gone]


class Server:
    """`modeseek label STORE --port N`, which can be killed and started again."""

    def __init__(self, store: pathlib.Path):
        self.store, self.process = store, None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def start(self) -> str:
        code = f"from modeseek.commands.label import main; main([{str(self.store)!r}, '--port', '{self.port}'])"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self.process.stdout
        for line in self.process.stdout:
            if link := re.search(r"http://\S+", line):
                self._wait(link[0])
                return link[0]
        raise AssertionError("the server said no link")

    def kill(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()

    def _wait(self, link: str) -> None:
        for _ in range(100):
            try:
                urllib.request.urlopen(link, timeout=5).close()
                return
            except OSError:
                time.sleep(0.05)
        raise AssertionError("the server does not answer")


@pytest.fixture
def fill():
    """Makes a store."""
    return _fill


def _fill(path: pathlib.Path, texts, *, times: int = 1) -> None:
    """A store of one pair for each (prompt, a, b)."""
    with Store(path) as store:
        plan = store.begin({"made": "by hand"})
        groups = [
            Group(
                prompt=prompt,
                source="hand",
                responses=[Response(text=text, writer="w", draw=f"{i}{k}") for k, text in enumerate((a, b))],
                pairs=[Pair(a=0, b=1)],
            )
            for i, (prompt, a, b) in enumerate(texts)
        ]
        store.commit(plan, 0, groups, selected="hand")
        store.ask(overlap=1.0 if times > 1 else 0.0, times=times)


@pytest.fixture(scope="session")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path / "store.sqlite")
    yield made
    if made.process and made.process.poll() is None:
        made.kill()


@pytest.fixture
def open_page(chromium):
    """Opens a link in a person's own browser; fails the test if any script of the page failed."""
    contexts, errors = [], []

    def opened(link: str, width: int = 1280, height: int = 900):
        context = chromium.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(f"a dialog: {dialog.message}"))
        page.goto(link)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not errors, errors
