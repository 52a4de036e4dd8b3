"""The labelling page's server: one page, three files, four questions, and nothing else.

Everything but the three files needs the token of the printed link. A question is a POST of JSON with the token in a
header, which no other site can send; the page itself knows the token from a cookie that no other site's request
carries. No request names a file. A label is on disk before it is answered, under the click's own id, so that a click
whose answer was lost is sent again and counts once.
"""

from __future__ import annotations

import hmac
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from importlib import resources
from typing import Any, Literal, Protocol, runtime_checkable
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modeseek.label.markdown import render

Preferred = Literal["a", "b", "tie", "skip"]
HOSTS = ("127.0.0.1", "localhost")
HEADER = "x-modeseek-token"
_BODY = 32 * 1024  # bytes of a question
_NOTE = 2000  # characters
_DAY = 86_400.0  # seconds; a pair that was looked at for longer was not looked at
FAST = 20.0  # words a second: nobody reads so fast

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}
_STATIC = {"label.js": "text/javascript", "label.css": "text/css", "icon.svg": "image/svg+xml"}


@runtime_checkable
class Pair(Protocol):
    """What the queue says of a pair: `modeseek.collect.store.Asked`."""

    @property
    def pair_id(self) -> int: ...

    @property
    def prompt(self) -> Any: ...

    @property
    def a(self) -> Any: ...

    @property
    def b(self) -> Any: ...

    @property
    def order(self) -> Literal["ab", "ba"]: ...


@runtime_checkable
class Queue(Protocol):
    """Where pairs come from and labels go: `modeseek.collect.store.Store`."""

    def next_pair(self, annotator: str) -> Any: ...

    def label(
        self,
        pair_id: int,
        annotator: str,
        preferred: Preferred,
        seconds: float | None = None,
        order: Literal["ab", "ba"] = "ab",
        note: str = "",
        client: str | None = None,
    ) -> int: ...

    def undo(self, annotator: str, label: int | None = None) -> int | None: ...

    def last(self, annotator: str) -> int | None: ...

    def progress(self, annotator: str | None = None) -> Any: ...


class Refused(ValueError):
    """A question that is not one: what is wrong with it."""


def make_app(queue: Queue, *, token: str, guidelines: str = "", port: int = 0) -> Starlette:
    """The application. `guidelines` is Markdown; `port` keeps the cookies of two pages apart."""
    if len(token) < 16:
        raise ValueError(f"token: found {len(token)} characters, expected 16 or more")
    cookie, files = f"modeseek_label_{port}", _files()
    shown = render(guidelines)

    async def page(request: Request) -> Response:
        given = request.query_params.get("token") or request.cookies.get(cookie) or ""
        if not _same(given, token):
            return PlainTextResponse("Open the link that modeseek label printed: it carries the token.", 403)
        body = files["label.html"].replace("{{token}}", token).replace("{{guidelines}}", shown)
        response = Response(body, media_type="text/html")
        response.set_cookie(cookie, token, httponly=True, samesite="strict", path="/")
        return response

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        return Response(files[name], media_type=_STATIC[name]) if name in _STATIC else PlainTextResponse("no", 404)

    def question(answer: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            if not _same(request.headers.get(HEADER, ""), token):
                return JSONResponse({"error": "the token is missing or wrong: open the printed link"}, 403)
            try:
                return JSONResponse(await run_in_threadpool(answer, await _asked(request)))
            except ValueError as error:  # ours, or the store's in the user's words
                return JSONResponse({"error": str(error)}, 400)

        return endpoint

    answers = Answers(queue)
    routes = [
        Route("/", page, methods=["GET"]),
        Route("/static/{name}", static, methods=["GET"]),
        *(
            Route(f"/api/{name}", question(getattr(answers, name)), methods=["POST"])
            for name in ("next", "label", "undo", "progress")
        ),
    ]
    return Starlette(routes=routes, middleware=[Middleware(Guard)])


class Answers:
    """The four questions, each from plain data to plain data."""

    def __init__(self, queue: Queue):
        self.queue = queue

    def next(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The pair that waits for this person, blind: which response is whose is the store's to know."""
        return self._state(_name(asked))

    def label(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a click. `choice` is a side of the screen; the order tells whose it was."""
        annotator, order, choice = _name(asked), asked.get("order"), asked.get("choice")
        if order not in ("ab", "ba") or choice not in ("1", "2", "tie", "skip"):
            raise Refused(
                f"label: found choice {choice!r} and order {order!r}, expected 1, 2, tie or skip, and ab or ba"
            )
        pair, client, note = asked.get("pair"), asked.get("client"), asked.get("note", "")
        if type(pair) is not int or not isinstance(client, str) or not 8 <= len(client) <= 64:
            raise Refused("label: expected the number of a pair and the click's id")
        if not isinstance(note, str) or len(note) > _NOTE:
            raise Refused(f"note: expected at most {_NOTE} characters")
        first, second = ("a", "b") if order == "ab" else ("b", "a")
        sides: dict[str, Preferred] = {"1": first, "2": second, "tie": "tie", "skip": "skip"}
        note = note.strip().encode("utf-8", "replace").decode()
        made = self.queue.label(pair, annotator, sides[choice], _seconds(asked.get("seconds")), order, note, client)
        return {"label": made}

    def undo(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Take the last label back, which the page names so that asking twice is asking once; its pair is the next."""
        annotator, label = _name(asked), asked.get("label")
        if label is not None and type(label) is not int:
            raise Refused("undo: expected the number of a label")
        undone = self.queue.undo(annotator, label)
        return self._state(annotator) | {"undone": undone}

    def progress(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """How far this person and all are."""
        return {"progress": self._progress(_name(asked))}

    def _state(self, annotator: str) -> dict[str, Any]:
        pair = self.queue.next_pair(annotator)
        shown = None if pair is None else _shown(pair)
        return {"pair": shown, "progress": self._progress(annotator), "last": self.queue.last(annotator)}

    def _progress(self, annotator: str) -> dict[str, int]:
        found = self.queue.progress(annotator)
        return {name: int(getattr(found, name)) for name in ("pairs", "wanted", "got", "done", "skipped")}


class Guard:
    """Only from this machine's own page, only so many bytes, and the same headers on every answer."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(k.encode(), v.encode()) for k, v in _HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        request = Request(scope)
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        name = host.rpartition(":")[0] if ":" in host else host
        if name not in HOSTS or (origin is not None and urlsplit(origin).netloc != host):
            # another name for this address is how a web site reaches a server that listens on loopback only
            await PlainTextResponse("not from here", 403)(scope, receive, guarded)
            return
        await self.app(scope, receive, guarded)


async def _asked(request: Request) -> Mapping[str, Any]:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refused("expected application/json")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _BODY:
            raise Refused(f"expected at most {_BODY} bytes")
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused("expected JSON") from None
    if not isinstance(asked, dict):
        raise Refused("expected a JSON object")
    return asked


def _shown(pair: Pair) -> dict[str, Any]:
    first, second = (pair.a, pair.b) if pair.order == "ab" else (pair.b, pair.a)
    return {
        "id": pair.pair_id,
        "order": pair.order,
        "prompt": render(pair.prompt),
        "first": render(first),
        "second": render(second),
        "same": words(first) == words(second),
        "fast": round(sum(len(words(x)) for x in (first, second)) / FAST, 1),  # seconds below which nobody has read
    }


def words(text: Any) -> list[str]:
    """The words of a text or of a conversation's turns."""
    return text.split() if isinstance(text, str) else [word for turn in text for word in turn.content.split()]


def _name(asked: Mapping[str, Any]) -> str:
    name = asked.get("annotator")
    if not isinstance(name, str) or not 1 <= len(name.strip()) <= 64 or not name.strip().isprintable():
        raise Refused("annotator: expected a name of 1 to 64 characters")
    return name.strip()


def _seconds(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return min(float(value), _DAY) if known and value >= 0 else None


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _files() -> dict[str, str]:
    """Everything that is ever served, read once."""
    folder = resources.files("modeseek.label").joinpath("static")
    return {name: folder.joinpath(name).read_text(encoding="utf-8") for name in (*_STATIC, "label.html")}
