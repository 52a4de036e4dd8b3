"""A server that holds a model, asked over HTTP: trouble that may pass is waited out, and what it says is bounded."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
import urllib.error
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from modeseek.wire import PASSING, sent

_AT_MOST = 1 << 26  # bytes of an answer that are read


class ServerFailed(ValueError):
    """What a server last said, or that it said nothing."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status  # of HTTP; None where there was no answer


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
                if status not in PASSING and status < 500:
                    break
            except (OSError, ValueError, http.client.HTTPException) as error:
                status, problem = None, f"{type(error).__name__}: {error}"
        shown = problem.replace(self.key, "***") if self.key else problem
        raise ServerFailed(f"{self.where}: {self.url}{path} failed, at last with {_brief(shown)}", status)

    def _send(self, path: str, body: dict[str, Any] | None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        return sent(self.url + path, data, key=self.key, timeout=self.timeout, most=_AT_MOST)


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
