"""A policy that `vllm serve` holds: it samples and says log-probabilities, token ids in and token ids out, no gradient.

Every request names the whole distribution (temperature, no top_p, top_k, min_p, penalty, watermark) and the end tokens,
because a server fills in what is left out from the model's generation config. What it answers is checked, not believed.
Written against https://docs.vllm.ai/en/v0.32.0/serving/openai_compatible_server/ and the source of that version.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Unpack

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from modeseek.batch import PS, Batch, MaskPS
from modeseek.policies.base import Sampling
from modeseek.policies.serving import Endpoint, ServerFailed

PREFIX = "vllm:"
OLDEST = (0, 32)  # the oldest version that this is tested with: an older one leaves out unseen what it does not know
KEY = "VLLM_API_KEY"  # environment variable that vLLM itself reads its key from
WHOLE: dict[str, Any] = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
WHOLE |= {"watermarking": False, "ignore_eos": True, "skip_special_tokens": False}


class Written(NamedTuple):
    """One response as the server told it."""

    tokens: list[int]
    logp: list[float]  # nats, of each token
    finished: bool


@dataclass(frozen=True, kw_only=True)
class Server:
    """A `vllm serve` that answers, and the model that is asked of it."""

    endpoint: Endpoint
    model: str
    root: str  # folder or hub name that the server loaded
    context: int  # tokens of prompt and response together
    version: str

    @staticmethod
    def open(word: str, *, where: str, **patience: Any) -> Server:
        """`vllm:http://127.0.0.1:8000`, with `#MODEL` where it serves several. Refuses one that cannot be used."""
        url, _, name = word.removeprefix(PREFIX).partition("#")
        url = url.rstrip("/").removesuffix("/v1")
        endpoint = Endpoint(url=url, where=where, key=os.environ.get(KEY, "").strip(), **patience)
        version = _version(endpoint)
        listed = endpoint.ask("/v1/models").get("data")
        cards = [x for x in listed if isinstance(x, dict) and x.get("id")] if isinstance(listed, list) else []
        if not name:  # adapters are listed with their base as parent
            cards = [card for card in cards if not card.get("parent")]
        found = [card for card in cards if not name or card["id"] == name]
        if len(found) != 1:
            served = ", ".join(str(card["id"]) for card in cards[:8]) or "nothing"
            asked = f"not {name}" if name else f"so which one? Write {word}#MODEL"
            raise ValueError(f"{where}: {url} serves {served}, {asked}")
        card = found[0]
        base = next((x for x in cards if x["id"] == card.get("parent")), card)
        context = base.get("max_model_len")
        if not isinstance(context, int):
            raise ValueError(f"{where}: {url} does not say its max_model_len; is it vLLM?")
        root = str(base.get("root") or base["id"])
        return Server(endpoint=endpoint, model=str(card["id"]), root=root, context=context, version=version)

    def names(self) -> list[str]:
        """The models and adapters that are served now."""
        listed = self.endpoint.ask("/v1/models").get("data")
        return [str(x.get("id")) for x in listed if isinstance(x, dict)] if isinstance(listed, list) else []

    def describe(self) -> str:
        """For errors and the run card."""
        return f"{self.endpoint.url}#{self.model}"


class VLLMSampler:
    """A policy without weights here. `ends` are the tokens that end a response; `version` marks the weights that are
    asked: the server reuses nothing that it computed under another."""

    def __init__(
        self,
        server: Server,
        *,
        ends: Sequence[int],
        max_new: int,
        vocabulary: int | None = None,
        workers: int = 16,
    ):
        self.server, self.ends, self.max_new, self.workers = server, tuple(ends), max_new, workers
        self.vocabulary = vocabulary  # tokens that the trained model knows
        self.model, self.version = server.model, ""

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter(())

    @torch.no_grad()
    def logp(self, batch: Batch) -> Float[Tensor, "P K T"]:
        """What the server says of given tokens, at temperature 1, one request a token; zero where nothing stands.

        `prompt_logprobs` would be one request a response, but with --enable-lora vLLM 0.32 dies of two at a time.
        """
        mask = (batch.mask & batch.present[..., None]).cpu()
        prompts, tokens = _rows(batch.prompt, batch.prompt_mask), batch.response.cpu()
        before = lambda p, k, t: prompts[p] + tokens[p, k, :t][mask[p, k, :t]].tolist()
        asked = [(before(p, k, t), int(tokens[p, k, t])) for p, k, t in mask.nonzero().tolist()]
        said = self._each(lambda i: self._told(*asked[i]), len(asked))
        found = torch.zeros(mask.shape)
        found[mask] = torch.tensor(said, dtype=found.dtype)
        return found.to(batch.response.device)

    @torch.no_grad()
    def sample(self, prompt: PS, prompt_mask: MaskPS, k: int, rng: Generator, **how: Unpack[Sampling]) -> Batch:
        """`k` responses to each prompt; the same seeds for the same state of `rng`, though a server that batches
        otherwise may answer otherwise."""
        asked: Sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, **how}
        cut = asked["temperature"] not in (0, 1) or asked["top_p"] < 1 or asked["top_k"] > 0
        if cut and not self.processed:
            told = ", ".join(f"{name} {value}" for name, value in asked.items())
            raise ValueError(
                f"{self.where}: {self.server.describe()} says log-probabilities of the whole distribution at "
                f"temperature 1, and {told} are asked for; start it with --logprobs-mode processed_logprobs"
            )
        rows = _rows(prompt, prompt_mask)
        longest = max(map(len, rows), default=0)
        if longest + self.max_new > self.server.context:  # the server would cut the response without a word
            raise ValueError(
                f"{self.where}: a prompt of {longest} tokens and max_completion_length {self.max_new} do not fit in "
                f"the {self.server.context} tokens of {self.server.describe()}; lower max_length or raise its limit"
            )
        seeds = torch.randint(2**62, (len(rows),), generator=rng, device=rng.device).tolist()
        groups = self._each(lambda i: self._written(rows[i], k, seeds[i], asked), len(rows))
        return self._batch(prompt, prompt_mask, k, groups)

    @property
    def where(self) -> str:
        """The key of the config that errors name."""
        return self.server.endpoint.where

    @cached_property
    def processed(self) -> bool:
        """Whether log-probabilities are of what was sampled from: at another temperature the best token's differs."""
        likeliest = []
        for temperature in (1.0, 0.5):
            how = {"temperature": temperature, "top_p": 1.0, "top_k": 0}
            choice = self._choices([self.ends[0]], {"n": 1, "max_tokens": 1, "logprobs": 1, "seed": 0, **how})[0]
            best = list(self._top(choice).values())
            if not all(map(_number, best)):
                raise self._nonsense(choice, "the likeliest token's log-probability")
            likeliest.append(max(best))
        return abs(likeliest[0] - likeliest[1]) > 1e-3

    def _batch(self, prompt: Tensor, prompt_mask: Tensor, k: int, groups: Sequence[Sequence[Written]]) -> Batch:
        T = max((len(one.tokens) for group in groups for one in group), default=0)
        shape = (len(groups), k, T)
        response, logp = torch.full(shape, self.ends[0]), torch.zeros(shape)
        mask, finished = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape[:2], dtype=torch.bool)
        for p, group in enumerate(groups):
            for i, one in enumerate(group):
                n = len(one.tokens)
                response[p, i, :n], logp[p, i, :n] = torch.tensor(one.tokens), torch.tensor(one.logp)
                mask[p, i, :n], finished[p, i] = True, one.finished
        there = lambda x: x.to(prompt.device)
        columns = {"old_logp": there(logp), "finished": there(finished)}
        return Batch.own(prompt, prompt_mask, there(response), there(mask), **columns)

    def _each(self, ask: Callable[[int], Any], n: int) -> list[Any]:
        """Several requests at a time, answers in their order; the first trouble ends them all."""
        pool = ThreadPoolExecutor(self.workers)
        try:
            return list(pool.map(ask, range(n)))
        finally:
            pool.shutdown(cancel_futures=True)

    def _written(self, prompt: list[int], k: int, seed: int, how: Sampling) -> list[Written]:
        greedy = how.get("temperature") == 0  # of which a server takes no n
        asked = {"n": 1 if greedy else k, "max_tokens": self.max_new, "logprobs": 0, "seed": seed, **how}
        choices = self._choices(prompt, asked | {"stop_token_ids": list(self.ends)})
        written = [self._checked(choice) for choice in choices]
        return [w._replace(logp=[0.0] * len(w.tokens)) for w in written] * k if greedy else written

    def _told(self, before: list[int], token: int) -> float:
        """The log-probability of one token."""
        asked = {"n": 1, "max_tokens": 1, "logprobs": 1, "logprob_token_ids": [token], "seed": 0}
        asked |= {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "return_tokens_as_token_ids": True}
        choice = self._choices(before, asked)[0]
        said = self._top(choice).get(f"token_id:{token}")
        if not _number(said):
            raise self._nonsense(choice, f"the log-probability of token {token}")
        return float(said)  # type: ignore[arg-type]

    def _top(self, choice: dict[str, Any]) -> dict[str, Any]:
        """The log-probabilities that stand beside the first token's."""
        told = choice.get("logprobs")
        first = (told.get("top_logprobs") or [None])[0] if isinstance(told, dict) else None
        if not isinstance(first, dict) or not first:
            raise self._nonsense(choice, "top_logprobs")
        return first

    def _choices(self, prompt: list[int], asked: dict[str, Any]) -> list[dict[str, Any]]:
        body = {"model": self.model, "prompt": prompt, "return_token_ids": True, **WHOLE, **asked}
        if self.version:
            body["cache_salt"] = self.version
        said = self.server.endpoint.ask("/v1/completions", body)
        choices = said.get("choices")
        if said.get("model") != self.model:
            raise self._nonsense(said, f"an answer of {self.model}")
        if not isinstance(choices, list) or len(choices) != asked["n"] or not all(isinstance(x, dict) for x in choices):
            raise self._nonsense(said, f"{asked['n']} choices")
        return sorted(choices, key=lambda x: x["index"] if isinstance(x.get("index"), int) else 0)

    def _checked(self, choice: dict[str, Any]) -> Written:
        """A response that cannot be one is refused before anything is learnt from it."""
        tokens, reason = choice.get("token_ids"), choice.get("finish_reason")
        logp = (
            (choice.get("logprobs") or {}).get("token_logprobs") if isinstance(choice.get("logprobs"), dict) else None
        )
        if not isinstance(tokens, list) or not tokens or not all(type(x) is int and x >= 0 for x in tokens):
            raise self._nonsense(choice, "token_ids")
        if self.vocabulary is not None and max(tokens) >= self.vocabulary:
            raise ValueError(
                f"{self.where}: {self.server.describe()} wrote token {max(tokens)}, and the policy knows "
                f"{self.vocabulary}: it serves another model"
            )
        if not isinstance(logp, list) or len(logp) != len(tokens) or not all(map(_number, logp)) or max(logp) > 1e-3:
            raise self._nonsense(choice, f"{len(tokens)} log-probabilities")
        ends = [token in self.ends for token in tokens]
        finished = reason == "stop"
        if reason not in ("stop", "length") or len(tokens) > self.max_new or any(ends[:-1]) or ends[-1] != finished:
            raise self._nonsense(choice, f"at most {self.max_new} tokens that end where they say they do")
        if not finished and len(tokens) < self.max_new:
            raise self._nonsense(choice, f"an end token or {self.max_new} tokens")
        return Written(tokens, [min(float(x), 0.0) for x in logp], finished)

    def _nonsense(self, said: Any, expected: str) -> ServerFailed:
        return ServerFailed(f"{self.where}: {self.server.describe()} answered {str(said)[:200]!r}, expected {expected}")


def _version(endpoint: Endpoint) -> str:
    """The server's version, if it is vLLM and new enough."""
    try:
        found = str(endpoint.ask("/version", retries=1).get("version"))
    except ServerFailed as error:
        if error.status is None:
            raise ServerFailed(
                f"{endpoint.where}: no answer from {endpoint.url}; start it with `vllm serve MODEL` ({error})"
            ) from None
        raise ServerFailed(f"{endpoint.where}: {endpoint.url} is no vLLM server: {error}", error.status) from None
    number = re.match(r"(\d+)\.(\d+)", found)
    oldest = ".".join(map(str, OLDEST))
    if number is None or (int(number[1]), int(number[2])) < OLDEST:
        raise ValueError(f"{endpoint.where}: {endpoint.url} is vLLM {found}, expected {oldest} or newer; upgrade it")
    return found


def _rows(tokens: Int[Tensor, "P S"], mask: Bool[Tensor, "P S"]) -> list[list[int]]:
    return [row[real].tolist() for row, real in zip(tokens.cpu(), mask.cpu(), strict=True)]


def _number(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
