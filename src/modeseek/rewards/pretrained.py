"""A reward model from disk as a reward: its own rendering, batches of like lengths, no response scored twice."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from modeseek.batch import PK, Batch
from modeseek.rewards.rules import check_scale
from modeseek.rewards.text import Decoder, Prompt, Prompts, Reply, ends, replies


@dataclass(frozen=True)
class Model:
    """What a sequence-classification model of transformers says, or a reward model that we trained."""

    path: str  # directory or hub name
    output: int | None = None  # which output is the reward; unset: the model must have only one
    # the policy's tokens as they are, or text that is tokenised anew; auto: tokens where both have one tokenizer
    reads: Literal["auto", "tokens", "text"] = "auto"
    # how prompt and response are put together as text; auto: chat, else pair if it has a separator token, else joined
    template: Literal["auto", "chat", "pair", "joined"] = "auto"
    max_length: int | None = None  # tokens; longer rows lose the prompt's left side; unset: what the model reads
    batch_tokens: int = 16384  # tokens of one forward pass, padding included
    cache_size: int = 100_000  # responses whose score is kept in memory
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: as it is stored
    device: str = "auto"  # auto: a GPU where there is one
    trust_remote_code: bool = False
    scale: float = 1.0  # multiplies the reward
    unfinished: float | None = None  # reward of a response cut off at the length limit; unset: scored without an end

    def __post_init__(self) -> None:
        check_scale(self.scale, self.unfinished)
        for name in ("max_length", "batch_tokens", "cache_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"reward.{name}: found {value}, expected at least 1")
        if self.reads == "tokens" and self.template != "auto":
            raise ValueError(f"reward.template: found {self.template} with reads: tokens, which renders no text")


class Row(NamedTuple):
    """What the model reads of one response."""

    ids: tuple[int, ...]
    kinds: tuple[int, ...] = ()  # token types, for the models that tell a pair's sides apart


@dataclass
class ModelReward:
    """NaN where a group has no response. `counts`: scored, unfinished, cut (too long), computed (not remembered)."""

    config: Model
    model: Any
    tokenizer: Any
    decoder: Decoder | None
    template: Literal["chat", "pair", "joined"] | None  # None: the tokens are read as they are
    limit: int
    prompts: Prompts | None = None
    counts: Counter[str] = field(default_factory=Counter)
    remembered: dict[bytes, float] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> PK:
        texts = None if self.template is None else replies(batch, self._decoder(), self.prompts)
        prompts = self.prompts(batch) if self.prompts and texts is not None else None
        ended = ends(batch)
        scores = torch.full(batch.present.shape, float("nan"))
        places, wanted = list[tuple[int, int]](), list[Row]()
        for p, k in batch.present.nonzero().tolist():
            self.counts.update(scored=1, unfinished=int(not ended[p][k]))
            if self.config.unfinished is not None and not ended[p][k]:
                scores[p, k] = self.config.unfinished
                continue
            reply = texts[p][k] if texts is not None else None
            if reply is None:
                row = self._tokens(batch, p, k)
            else:
                row = self._text(reply, prompts[p] if prompts is not None else reply.prompt)
            places.append((p, k))
            wanted.append(row)
        for (p, k), worth in zip(places, self.worth(wanted), strict=True):
            scores[p, k] = self.config.scale * worth
        return scores.to(batch.response.device)

    def worth(self, wanted: Sequence[Row]) -> list[float]:
        """The model's output for each row; those seen before are remembered."""
        keys = [_key(row) for row in wanted]
        known = {key: self.remembered[key] for key in keys if key in self.remembered}
        missing = {key: row for key, row in zip(keys, wanted, strict=True) if key not in known}
        for part in buckets(list(missing.items()), self.config.batch_tokens):
            said = self._forward([row for _, row in part])
            known |= dict(zip((key for key, _ in part), said, strict=True))
        self.counts["computed"] += len(missing)
        for key in missing:
            self.remembered[key] = known[key]
        while len(self.remembered) > self.config.cache_size:
            del self.remembered[next(iter(self.remembered))]  # the oldest
        return [known[key] for key in keys]

    def _forward(self, part: Sequence[Row]) -> list[float]:
        from modeseek.rewards.model import at_last, has_head

        pad = self.model.config.get_text_config().pad_token_id
        tokens, mask = _padded([row.ids for row in part], 0 if pad is None else pad)
        tokens, mask = tokens.to(self.model.device), mask.to(self.model.device)
        if has_head(self.model):
            # Which token transformers reads of a row that stands alone: the last that is not its padding token.
            counts = mask if pad is None else mask & (tokens != pad)
            last = (torch.arange(tokens.shape[1], device=tokens.device) * counts).argmax(1)
            said = at_last(self.model, tokens, mask, last)
        else:
            kinds = {"token_type_ids": _padded([row.kinds for row in part], 0)[0].to(tokens)} if part[0].kinds else {}
            said = self.model(input_ids=tokens, attention_mask=mask.long(), **kinds).logits.float()
        return said[:, self.config.output or 0].tolist()

    def _text(self, reply: Reply, prompt: Prompt) -> Row:
        if self.template == "chat":
            return self._cut(self._chat(prompt, reply))
        return self._pair(reply) if self.template == "pair" else self._joined(reply)

    def _decoder(self) -> Decoder:
        assert self.decoder is not None
        return self.decoder

    def _tokens(self, batch: Batch, p: int, k: int) -> Row:
        ids = batch.prompt[p][batch.prompt_mask[p]].tolist() + batch.response[p, k][batch.mask[p, k]].tolist()
        vocabulary = self.model.get_input_embeddings().num_embeddings
        if max(ids) >= vocabulary:
            raise ValueError(
                f"reward.reads: token {max(ids)} is outside the reward model's vocabulary of {vocabulary}: it has"
                " another tokenizer than the policy; write reads: text"
            )
        return self._cut(ids)

    def _joined(self, reply: Reply) -> Row:
        ids = self.tokenizer(reply.prompt + reply.response)["input_ids"]
        end = self.tokenizer.eos_token_id
        if reply.finished and end is not None and ids[-1:] != [end]:
            ids = [*ids, end]
        return self._cut(ids)

    def _chat(self, prompt: Prompt, reply: Reply) -> list[int]:
        if isinstance(prompt, str):
            turns = [{"role": "user", "content": prompt}]
        else:
            turns = [{"role": turn.role, "content": turn.content} for turn in prompt]
        render = self.tokenizer.apply_chat_template
        if reply.finished:
            text = render([*turns, {"role": "assistant", "content": reply.response}], tokenize=False)
        else:  # the template would close the turn
            text = render(turns, tokenize=False, add_generation_prompt=True) + reply.response
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _pair(self, reply: Reply) -> Row:
        encoded = self.tokenizer(reply.prompt, reply.response, verbose=False)
        if len(encoded["input_ids"]) > self.limit:
            self.counts["cut"] += 1
            alone = len(self.tokenizer("", reply.response, verbose=False)["input_ids"])
            if alone > self.limit:
                raise ValueError(
                    f"reward.max_length: a response makes {alone} tokens, but the reward model reads at most"
                    f" {self.limit}; set max_completion_length lower"
                )
            encoded = self.tokenizer(reply.prompt, reply.response, truncation="only_first", max_length=self.limit)
        return Row(tuple(encoded["input_ids"]), tuple(encoded.get("token_type_ids", ())))

    def _cut(self, ids: list[int]) -> Row:
        self.counts["cut"] += len(ids) > self.limit
        return Row(tuple(ids[-self.limit :]))


def load(config: Model, decoder: Decoder | None, prompts: Prompts | None = None) -> ModelReward:
    """The model, its tokenizer, and how the two will read the policy's responses."""
    from modeseek.rewards import model as loading

    device = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    model, _ = loading.classifier(
        config.path, labels=None, precision=config.precision, trust_remote_code=config.trust_remote_code
    )
    names = model.config.id2label
    if config.output is None and len(names) != 1:
        raise ValueError(f"reward.output: {config.path} has {len(names)} outputs ({names}); write which is the reward")
    if config.output is not None and config.output not in range(len(names)):
        raise ValueError(f"reward.output: found {config.output}, expected 0 to {len(names) - 1} ({names})")
    limits = [getattr(model.config.get_text_config(), "max_position_embeddings", None)]
    own = getattr(decoder, "tokenizer", None)
    tokenizer = None
    if config.reads != "tokens":
        tokenizer = loading.tokenizer(config.path, trust_remote_code=config.trust_remote_code)
        limits.append(tokenizer.model_max_length)
    if config.reads == "tokens" or (config.reads == "auto" and own is not None and _same(own, tokenizer)):
        tokenizer = template = None
    else:
        template = _template(config, tokenizer)
    if template is not None and decoder is None:
        raise ValueError("reward.reads: text needs the policy's tokenizer; write reads: tokens if both have the same")
    if template is not None and prompts is None and getattr(decoder, "chat", False):
        raise ValueError(
            "reward.reads: text needs the prompts as they stood in the data, because the policy's chat template is"
            " part of what it decodes; give build_reward its prompts"
        )
    able = min((n for n in limits if n is not None), default=1 << 30)
    if config.max_length is not None and config.max_length > able:
        raise ValueError(f"reward.max_length: found {config.max_length}, but {config.path} reads at most {able}")
    limit = config.max_length or able
    return ModelReward(config, model.to(device), tokenizer, decoder, template, limit, prompts)


def buckets(items: Sequence[tuple[bytes, Row]], batch_tokens: int) -> list[list[tuple[bytes, Row]]]:
    """The rows, longest first, in parts of at most this many tokens with their padding; a longer row stands alone."""
    parts: list[list[tuple[bytes, Row]]] = []
    for item in sorted(items, key=lambda item: len(item[1].ids), reverse=True):
        if not parts or (len(parts[-1]) + 1) * len(parts[-1][0][1].ids) > batch_tokens:
            parts.append([])
        parts[-1].append(item)
    return parts


def _template(config: Model, tokenizer: Any) -> Literal["chat", "pair", "joined"]:
    if config.template == "chat" and tokenizer.chat_template is None:
        raise ValueError(f"reward.template: found chat, but the tokenizer of {config.path} has no chat template")
    if config.template != "auto":
        return config.template
    if tokenizer.chat_template is not None:
        return "chat"
    return "pair" if tokenizer.sep_token_id is not None else "joined"


def _same(one: Any, other: Any) -> bool:
    return one.get_vocab() == other.get_vocab() and one.chat_template == other.chat_template


def _padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    tokens = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
    return tokens, torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]


def _key(row: Row) -> bytes:
    return hashlib.blake2b(repr(row).encode(), digest_size=16).digest()
