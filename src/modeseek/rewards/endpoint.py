"""An OpenAI-compatible endpoint that is asked for chat completions, again where that may help."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import itertools
import json
import os
import threading
import urllib.error
from collections.abc import Callable

from modeseek.rewards.answers import Answer
from modeseek.wire import PASSING, Broken, sent

_AT_MOST = 1 << 22  # bytes of an answer that are read
_LONGEST_WAIT = 60.0  # seconds, whatever a server asks for


class JudgeFailed(ValueError):
    """The judge cannot go on: what happened and what to do. Answers that were given are in the cache."""


class Endpoint:
    """Where a judge answers. The key is sent to no other host and is shown in no message."""

    def __init__(self, url: str, *, api_key_env: str, timeout: float, retries: int, backoff: float):
        self._key_env, self._key = api_key_env, _api_key(api_key_env)
        self._timeout, self._retries, self._backoff = timeout, retries, backoff
        base = url.rstrip("/").removesuffix("/chat/completions")
        self.url = f"{base}/chat/completions"

    def ask(self, body: str, stop: threading.Event, spend: Callable[[int, str], None]) -> Answer | None:
        """The answer to a request; None where `stop` is set first. Before each time that it is sent, `spend` hears how
        often it was and what came of the last time, and may refuse."""
        problem = ""
        for attempt in itertools.count():
            if stop.is_set():
                return None
            spend(attempt, problem)
            wait = None
            try:
                return _answer(self._sent(body))
            except urllib.error.HTTPError as error:
                with error:
                    problem = f"{error.code} {self._said(error)}"
                    wait = error.headers.get("Retry-After")
                if error.code not in PASSING and error.code < 500:
                    problem += self._hint(error.code)
                    raise JudgeFailed(f"reward.endpoint: {self.url} answered {problem}") from None
            except Broken as error:
                problem = self._redacted(str(error))
            except (OSError, http.client.HTTPException) as error:
                problem = self._redacted(f"{type(error).__name__}: {error}")
            if attempt >= self._retries:
                raise JudgeFailed(f"reward.endpoint: {self.url} failed {attempt + 1} times, at last with {problem}")
            stop.wait(pause(wait, self._backoff * 2**attempt, body))
        raise AssertionError

    def _sent(self, body: str) -> bytes:
        return sent(self.url, body.encode(), key=self._key, timeout=self._timeout, most=_AT_MOST)

    def _said(self, error: urllib.error.HTTPError) -> str:
        try:
            text = error.read(2000).decode(errors="replace")
        except (OSError, http.client.HTTPException):
            text = ""
        return brief(self._redacted(text))

    def _redacted(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text

    def _hint(self, code: int) -> str:
        if code in (401, 403):
            name = self._key_env
            return f"; the key is read from {name}" if name else "; it may want a key: write api_key_env"
        return "; redirects are not followed: write the final URL" if 300 <= code < 400 else ""


def _answer(said: bytes) -> Answer:
    try:
        choice = json.loads(said)["choices"][0]
        content, reason = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        shown = brief(said.decode(errors="replace"))
        raise Broken(f"an answer without choices[0].message.content: {shown}") from error
    if not isinstance(content, str):
        raise Broken(f"an answer whose content is {brief(repr(content))}, expected text")
    return Answer(content.encode(errors="replace").decode(), reason == "length")


def pause(asked: str | None, usual: float, body: str) -> float:
    """Seconds to wait: what the server asks for within reason, else the usual, spread so that workers do not march."""
    spread = 1 + hashlib.sha256(body.encode()).digest()[0] / 512
    with contextlib.suppress(TypeError, ValueError):
        seconds = float(asked)  # type: ignore[arg-type]
        if seconds >= 0:  # not NaN either
            return min(seconds, _LONGEST_WAIT)
    return min(usual * spread, _LONGEST_WAIT)


def _api_key(name: str) -> str:
    if not name:
        return ""
    key = os.environ.get(name, "").strip()
    if not key:
        raise ValueError(f"reward.api_key_env: the environment variable {name} is not set")
    if not key.isascii() or not key.isprintable():
        raise ValueError(f"reward.api_key_env: the value of {name} has characters that no key has")
    return key


def brief(text: str) -> str:
    """On one line, for a message."""
    line = " ".join(text.split())
    return repr(line if len(line) <= 200 else line[:200] + "...")
