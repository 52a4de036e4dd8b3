"""A policy behind an OpenAI-compatible server (vLLM, llama.cpp, a provider): chat completions, with log-probs if told.

What it samples cannot be drawn again, so a chunk that it wrote is kept before it is labelled. Whether `logp` is of the
whole distribution is the server's to say: some return the log-probabilities of what temperature and top_p left.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from modeseek.collect.rows import Response
from modeseek.data.records import Text

_AT_MOST = 1 << 24  # bytes of an answer that are read
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model by the name that its server knows."""

    url: str
    model: str
    name: str
    key: str
    temperature: float
    top_p: float
    max_tokens: int
    timeout: float = 120.0  # seconds for one request
    retries: int = 4
    backoff: float = 1.0  # seconds before the first retry; doubles each time
    workers: int = 8

    @staticmethod
    def open(
        url: str, model: str, *, name: str, key_env: str, temperature: float, top_p: float, max_tokens: int
    ) -> Served:
        """Refuses, before anything is sampled, a server that is not there or has no such model."""
        parts = urlsplit(url)
        if not parts.hostname or parts.username or parts.password or parts.query:
            raise ValueError(f"policies: {url!r}, expected a URL such as http://127.0.0.1:8000/v1#MODEL")
        key = os.environ.get(key_env, "").strip() if key_env else ""
        if key_env and not key:
            raise ValueError(f"api_key_env: the environment variable {key_env} is not set")
        made = Served(
            url=url.rstrip("/"),
            model=model,
            name=name,
            key=key,
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
        )
        made._check_model()
        return made

    @property
    def identity(self) -> str:
        return f"{self.url}#{self.model}"

    def write(self, prompts: Sequence[Text], k: int, seed: int) -> list[list[Response]]:
        """One request a prompt, several at a time."""
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(lambda i: self._write(prompts[i], k, seed, i), range(len(prompts))))

    def _write(self, prompt: Text, k: int, seed: int, place: int) -> list[Response]:
        turns = [("user", prompt)] if isinstance(prompt, str) else [(m.role, m.content) for m in prompt]
        body = {
            "model": self.model,
            "messages": [{"role": role, "content": _clean(content)} for role, content in turns],
            "n": k,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "seed": (seed + place) % 2**31,
            "logprobs": True,
        }
        choices = self._ask("/chat/completions", body).get("choices")
        if not isinstance(choices, list) or len(choices) != k:
            found = f"{len(choices)} choices" if isinstance(choices, list) else "no choices"
            raise ValueError(f"policies: {self.identity} answered with {found}, expected {k}; set num_generations: 1?")
        return [self._response(choice, f"{seed}.{place}.{i}") for i, choice in enumerate(choices)]

    def _response(self, choice: Any, draw: str) -> Response:
        try:
            said, reason = choice["message"]["content"], choice.get("finish_reason")
        except (LookupError, TypeError, AttributeError):
            said, reason = None, None
        if not isinstance(said, str):
            raise ValueError(f"policies: {self.identity} answered {str(choice)[:120]!r}, expected message.content")
        logps = _logps(choice)
        return Response(
            text=said,
            writer=self.name,
            draw=draw,
            temperature=self.temperature,
            logp=None if logps is None else sum(logps),
            tokens=None if logps is None else len(logps),
            finished=reason != "length",
        )

    def _check_model(self) -> None:
        listed = self._ask("/models", None).get("data")
        names = [str(one["id"]) for one in listed if "id" in one] if isinstance(listed, list) else []
        if names and self.model not in names:
            raise ValueError(f"policies: {self.url} serves {', '.join(names[:8])}, not {self.model}")

    def _ask(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """What the server answers; trouble that may pass is waited out."""
        problem = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(min(self.backoff * 2 ** (attempt - 1), 30.0))
            try:
                said = json.loads(self._post(path, body))
                if isinstance(said, dict):
                    return said
                problem = f"{str(said)[:120]!r}"
            except urllib.error.HTTPError as error:
                with error, contextlib.suppress(OSError, http.client.HTTPException):
                    problem = f"{error.code} {error.read(300).decode(errors='replace')}"
                if error.code not in (408, 409, 425, 429) and error.code < 500:
                    break
            except (OSError, ValueError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
        shown = problem.replace(self.key, "***") if self.key else problem
        raise ValueError(f"policies: {self.url}{path} failed, at last with {' '.join(shown.split())}")

    def _post(self, path: str, body: dict[str, Any] | None) -> bytes:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        data = None if body is None else json.dumps(body).encode()
        # A redirect could carry the key to another host; what goes to this machine goes through no proxy.
        direct = [urllib.request.ProxyHandler({})] if urlsplit(self.url).hostname in _LOOPBACK else []
        opener = urllib.request.build_opener(_NoRedirect, *direct)
        with opener.open(urllib.request.Request(self.url + path, data, headers), timeout=self.timeout) as reply:
            said = reply.read(_AT_MOST + 1)
        if len(said) > _AT_MOST:
            raise ValueError(f"an answer of more than {_AT_MOST} bytes")
        return said


def _logps(choice: Any) -> list[float] | None:
    """The log-probability of each token, where the server told all of them."""
    told = (choice.get("logprobs") or {}).get("content")
    if not isinstance(told, list) or not told:
        return None
    found = [one.get("logprob") for one in told if isinstance(one, dict)]
    numbers = [float(x) for x in found if isinstance(x, int | float)]
    return numbers if len(numbers) == len(told) else None


def _clean(text: str) -> str:
    """Without lone surrogates, which are no JSON that a server reads."""
    return text.encode(errors="replace").decode()
