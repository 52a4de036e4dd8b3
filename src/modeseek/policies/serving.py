"""A server that holds a model, asked over HTTP: trouble that may pass is waited out, and what it says is bounded."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_AT_MOST = 1 << 26  # bytes of an answer that are read
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_PASSING = {408, 409, 425, 429}  # and every server's error


class ServerFailed(ValueError):
    """What a server last said, or that it said nothing."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status  # of HTTP; None where there was no answer


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a server is and how patient we are. `where` is the key of the config that errors name."""

    url: str  # what paths are put behind
    where: str
    key: str = field(default="", repr=False)  # sent as a bearer token, never shown
    timeout: float = 120.0  # seconds for one request
    retries: int = 4
    backoff: float = 1.0  # seconds before the first retry; doubles each time

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise ValueError(f"{self.where}: {self.url!r}, expected a URL such as http://127.0.0.1:8000")
        if parts.query:
            raise ValueError(f"{self.where}: {self.url!r} has a query; leave it out")

    def ask(self, path: str, body: dict[str, Any] | None = None, *, retries: int | None = None) -> dict[str, Any]:
        """The JSON object that the server answers; without a body it is a GET."""
        return self._patiently(path, body, _json_object, retries)

    def tell(self, path: str, body: dict[str, Any]) -> str:
        """Say something whose answer is a text."""
        return self._patiently(path, body, lambda said: said.decode(errors="replace"), None)

    def _patiently(self, path: str, body: dict[str, Any] | None, read: Any, retries: int | None) -> Any:
        problem, status = "", None
        for attempt in range((self.retries if retries is None else retries) + 1):
            if attempt:
                time.sleep(min(self.backoff * 2 ** (attempt - 1), 30.0))
            try:
                return read(self._send(path, body))
            except urllib.error.HTTPError as error:
                status, problem = error.code, str(error.code)
                with error, contextlib.suppress(OSError, http.client.HTTPException):
                    problem = f"{error.code} {error.read(2000).decode(errors='replace')}"
                if status not in _PASSING and status < 500:
                    break
            except (OSError, ValueError, http.client.HTTPException) as error:
                status, problem = None, f"{type(error).__name__}: {error}"
        shown = problem.replace(self.key, "***") if self.key else problem
        raise ServerFailed(f"{self.where}: {self.url}{path} failed, at last with {_brief(shown)}", status)

    def _send(self, path: str, body: dict[str, Any] | None) -> bytes:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        data = None if body is None else json.dumps(body).encode()
        # A redirect could carry the key to another host; what goes to this machine goes through no proxy.
        direct = [urllib.request.ProxyHandler({})] if urlsplit(self.url).hostname in _LOOPBACK else []
        opener = urllib.request.build_opener(_NoRedirect, *direct)
        said, end = bytearray(), time.monotonic() + self.timeout
        with opener.open(urllib.request.Request(self.url + path, data, headers), timeout=self.timeout) as reply:
            while part := reply.read1(1 << 16):
                said += part
                if len(said) > _AT_MOST:
                    raise ValueError(f"an answer of more than {_AT_MOST} bytes")
                if time.monotonic() > end:
                    raise ValueError(f"an answer that took longer than {self.timeout} seconds")
        return bytes(said)


def _json_object(said: bytes) -> dict[str, Any]:
    try:
        found = json.loads(said)
    except (ValueError, RecursionError):
        raise ValueError(f"an answer that is no JSON: {said[:120]!r}") from None
    if not isinstance(found, dict):
        raise ValueError(f"an answer that is no object: {str(found)[:120]!r}")
    return found


def _brief(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 400 else line[:400] + "..."
