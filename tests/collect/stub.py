"""An OpenAI-compatible server on this machine that answers as each test tells it."""

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar


class Server(ThreadingHTTPServer):
    """Answers chat completions with what `say` makes of a request's body: an object, or (status, bytes)."""

    daemon_threads = True

    def __init__(self, say: Callable[[dict[str, Any]], Any], models: tuple[str, ...] = ("m",)):
        super().__init__(("127.0.0.1", 0), Handler)
        self.say, self.models, self.asked = say, models, list[dict[str, Any]]()

    def answer(self, path: str, body: dict[str, Any] | None) -> Any:
        """An object, or (status, bytes); `body` is None for a GET."""
        if body is None:
            return {"data": [{"id": name} for name in self.models]}
        self.asked.append(body)
        return self.say(body)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        self._answer(None)

    def do_POST(self):
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: dict[str, Any] | None):
        said = self.server.answer(self.path, body)
        self._send(*(said if isinstance(said, tuple) else (200, json.dumps(said).encode())))

    def _send(self, status: int, content: bytes):
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format, *args):
        pass


ServerT = TypeVar("ServerT", bound=Server)


@contextlib.contextmanager
def running(server: ServerT) -> Iterator[ServerT]:
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def serving(say, **options):
    return running(Server(say, **options))


def by_length(body: dict[str, Any], prefers: str = "longer") -> dict[str, Any]:
    """What a judge says that goes by length alone."""
    shown = body["messages"][1]["content"]
    texts = [re.search(rf"<response {x} (\w+)>\n(.*?)\n</response {x} \1>", shown, re.DOTALL) for x in "AB"]
    a, b = (len(found[2]) for found in texts if found)
    first = a > b if prefers == "longer" else a < b
    return chat("[[C]]" if a == b else "[[A]]" if first else "[[B]]")


def chat(*texts: str, logps: list[list[float]] | None = None, reason: str = "stop") -> dict[str, Any]:
    """A reply with these choices."""
    choices = []
    for i, text in enumerate(texts):
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}, "finish_reason": reason}
        if logps is not None:
            choice["logprobs"] = {"content": [{"token": "t", "logprob": x} for x in logps[i]]}
        choices.append(choice)
    return {"choices": choices}
