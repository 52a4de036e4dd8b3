"""A policy behind an OpenAI-compatible server (vLLM, llama.cpp, a provider): chat completions, with log-probs if told.

What it samples cannot be drawn again, so a chunk that it wrote is kept before it is labelled. Whether `logp` is of the
whole distribution is the server's to say: some return the log-probabilities of what temperature and top_p left.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from modeseek.collect.rows import Response
from modeseek.data.records import Text
from modeseek.policies.serving import Endpoint


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model by the name that its server knows."""

    endpoint: Endpoint
    model: str
    name: str
    temperature: float
    top_p: float
    max_tokens: int
    workers: int = 8

    @staticmethod
    def open(
        url: str, model: str, *, name: str, key_env: str, temperature: float, top_p: float, max_tokens: int
    ) -> Served:
        """Refuses, before anything is sampled, a server that is not there or has no such model."""
        key = os.environ.get(key_env, "").strip() if key_env else ""
        if key_env and not key:
            raise ValueError(f"api_key_env: the environment variable {key_env} is not set")
        made = Served(
            endpoint=Endpoint(url=url.rstrip("/"), where="policies", key=key),
            model=model,
            name=name,
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
        )
        made._check_model()
        return made

    @property
    def identity(self) -> str:
        return f"{self.endpoint.url}#{self.model}"

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
            "seed": (seed + k * place) % 2**31,  # vLLM counts up from it for the n choices
            "logprobs": True,
        }
        choices = self.endpoint.ask("/chat/completions", body).get("choices")
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
        listed = self.endpoint.ask("/models").get("data")
        names = (
            [str(one["id"]) for one in listed if isinstance(one, dict) and "id" in one]
            if isinstance(listed, list)
            else []
        )
        if names and self.model not in names:
            raise ValueError(f"policies: {self.endpoint.url} serves {', '.join(names[:8])}, not {self.model}")


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
