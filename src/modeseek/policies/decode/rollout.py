"""The rollout: prompts in chunks that fit a token budget, one token of every response a step, finished rows dropped."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor, nn

from modeseek.batch import Batch
from modeseek.policies.base import Sampling, pick, uniform
from modeseek.policies.decode import lean
from modeseek.policies.decode.beside import Beside, Twin, together
from modeseek.policies.decode.body import driven
from modeseek.policies.decode.cache import Cache
from modeseek.policies.stop import Stop

WORTH = 512  # tokens that need not be read each step, in a layer, for a more involved way to pay
ALIVE = 0.75  # rows are moved together once no more than this share of them still speaks


@dataclass(frozen=True)
class How:
    """What is drawn from, and when a response ends."""

    eos: tuple[int, ...]
    stop: Stop | None
    sampling: Sampling


@dataclass(frozen=True)
class _Said:
    """What has been written, response by response: R of them, room for T tokens."""

    token: Tensor  # [R, T]
    logp: Tensor  # [R, T]
    length: Tensor  # [R]
    finished: Tensor  # [R]


@torch.no_grad()
def sample(
    model: nn.Module,
    prompts: Int[Tensor, "P S"],
    prompt_mask: Bool[Tensor, "P S"],
    k: int,
    rng: Generator,
    *,
    eos: Sequence[int],
    max_new: int,
    token_budget: int | None = None,
    beside: Beside | None = None,
    limits: Sequence[int] | None = None,
    stop: Stop | None = None,
    **sampling: Unpack[Sampling],
) -> Batch:
    """k responses to each prompt from a model that `why_not` has nothing against, in eval mode.

    `token_budget` bounds the tokens whose keys and values are held at once; None holds all prompts' at once. With a
    model `beside` it each token is drawn from the mixture of both, and both hold as many. Every random number is drawn
    before the first token, so neither the chunks nor the dropping of rows change a response. `limits` are tokens that
    the responses to each prompt may have, where that is fewer than `max_new`.
    """
    P = len(prompts)
    lengths = prompt_mask.sum(1).tolist()
    most = [max_new] * P if limits is None else [min(max_new, n) for n in limits]
    _check(lengths, most, k, max_new, token_budget)
    u = uniform((max_new, P, k), rng, prompts.device)
    token = prompts.new_zeros(P, k, max_new)
    logp = torch.zeros(P, k, max_new, dtype=_wide(model), device=prompts.device)
    length = torch.zeros(P, k, dtype=torch.long, device=prompts.device)
    finished = torch.zeros(P, k, dtype=torch.bool, device=prompts.device)
    how = How(tuple(eos), stop, sampling)
    with _body(model, beside, max(lengths, default=0) + max_new) as body:
        for part in _chunks(lengths, k, most, token_budget):
            at = torch.tensor(part, device=prompts.device)
            mine, room = [lengths[i] for i in part], max(most[i] for i in part)
            share = _share(mine, k, room, token_budget)
            caches = [
                Cache(mine, k, room - 1, prompts.device, share=share, worth=WORTH)
                for _ in range(1 if beside is None else 2)
            ]
            cache = caches[0] if beside is None else Twin(*caches)
            limit = torch.tensor([most[i] for i in part], device=prompts.device).repeat_interleave(k)
            said = _write(body, cache, prompts[at][prompt_mask[at]], u[:room, at].flatten(1), limit, how)
            shape = (len(part), k, -1)
            token[at, :, :room], logp[at, :, :room] = said.token.view(shape), said.logp.view(shape)
            length[at], finished[at] = said.length.view(shape[:2]), said.finished.view(shape[:2])
    T = int(length.max()) if P else 0
    mask = torch.arange(T, device=prompts.device) < length[..., None]
    return Batch.own(
        prompts,
        prompt_mask,
        token[..., :T].masked_fill(~mask, 0),
        mask,
        old_logp=logp[..., :T].masked_fill(~mask, 0.0),
        finished=finished,
    )


def _write(
    body: Any, cache: Cache | Twin, tokens: Int[Tensor, " N"], u: Tensor, limit: Int[Tensor, " R"], how: How
) -> _Said:
    """Responses to prompts packed into one row; `u` `[T, R]` is where in the unit interval each token falls, `limit`
    how many tokens a response may have."""
    lengths, device = torch.tensor(cache.lengths, device=tokens.device), tokens.device
    T, R = u.shape
    place = torch.cat([torch.arange(n) for n in cache.lengths]).to(device)
    logits = body(cache, tokens, place, lengths.cumsum(0) - 1)  # [prompts, V]
    cache.start()
    ends = _ends(how.eos, logits.shape[-1], device)
    logits, place = logits.repeat_interleave(cache.k, 0), lengths.repeat_interleave(cache.k)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    said = _Said(
        tokens.new_zeros(R, T),
        torch.zeros(R, T, dtype=wide, device=device),
        limit.clone(),
        torch.zeros(R, dtype=torch.bool, device=device),
    )
    rows, alive, begun = torch.arange(R, device=device), torch.ones(R, dtype=torch.bool, device=device), 0
    cut = {*limit.tolist()}  # where some response has all the tokens it may have
    token_run: list[Tensor] = []
    logp_run: list[Tensor] = []
    for t in range(T):
        token, logp = pick(logits, u[t], **how.sampling)
        token_run.append(token)
        logp_run.append(logp)
        over, count = ends.index_select(0, token), len(rows)
        if how.stop is not None:
            before = said.token[rows, :begun]
            written = lambda row, before=before: [*before[row].tolist(), *(int(x[row]) for x in token_run)]
            over = over | how.stop.ended(token, alive & ~over, written)
        if over.any() or t + 1 in cut:
            over = over & alive
            said.length[rows[over]] = t + 1
            said.finished[rows[over]] = True
            alive = alive & ~over & (limit[rows] > t + 1)
            count = int(alive.sum())
        last = count == 0 or t + 1 == T
        if last or count <= ALIVE * len(rows):
            said.token[rows, begun : t + 1] = torch.stack(token_run, 1)
            said.logp[rows, begun : t + 1] = torch.stack(logp_run, 1)
            if last:
                break
            kept = alive.nonzero().squeeze(1)
            cache.keep(kept)
            rows, token, place, u = rows[kept], token[kept], place[kept], u[:, kept]
            alive, begun = alive[kept], t + 1
            token_run.clear()
            logp_run.clear()
        logits = body(cache, token, place, None)
        cache.next()
        place = place + 1
    return said


@contextlib.contextmanager
def _body(model: nn.Module, beside: Beside | None, longest: int) -> Iterator[Any]:
    """What `_write` asks for logits, with the kind of cache that it reads."""
    if beside is not None:
        with _body(model, None, longest) as ours, _body(beside.model, None, longest) as theirs:
            yield together(ours, theirs, beside)
    elif lean.fits(model):
        # Bookkeeping for autograd is a fifth of a small model's step. What is returned was made outside of this mode.
        with torch.inference_mode():
            yield lean.Lean(model, longest)
    else:
        with driven(model) as body:
            yield body


def _chunks(lengths: list[int], k: int, most: list[int], budget: int | None) -> Iterator[list[int]]:
    """Prompts whose cache fits the budget, longest first: what lies together is as wide as its longest."""
    part: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        room = max(most[j] for j in [*part, i])
        if part and budget is not None and (len(part) + 1) * _cost(lengths[part[0]], k, room) > budget:
            yield part
            part = []
        part.append(i)
    if part:
        yield part


def _share(lengths: list[int], k: int, max_new: int, budget: int | None) -> bool:
    """Whether to hold a prompt once for its k responses, or to repeat short ones, which is less work to look at."""
    n, S = len(lengths), max(lengths)
    return k > 1 and (n * (k - 1) * S > WORTH or budget is not None and n * k * (S + max_new) > budget)


def _cost(length: int, k: int, max_new: int) -> int:
    return length + k * max_new


def _ends(eos: tuple[int, ...], vocab: int, device: torch.device) -> Bool[Tensor, " V"]:
    if any(not 0 <= e < vocab for e in eos):
        raise ValueError(f"eos: {list(eos)} are not all tokens of the model, which has 0 to {vocab - 1}")
    ends = torch.zeros(vocab, dtype=torch.bool, device=device)
    return ends.index_fill_(0, torch.tensor(eos, dtype=torch.long, device=device), True)


def _wide(model: nn.Module) -> torch.dtype:
    return torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32


def _check(lengths: list[int], most: list[int], k: int, max_new: int, budget: int | None) -> None:
    if min(lengths, default=1) < 1:
        raise ValueError(f"prompt {lengths.index(0)} has no token: begin it with the tokenizer's bos token")
    if k < 1 or max_new < 1:
        raise ValueError(f"k: {k}, max_new: {max_new}; both must be at least 1")
    if min(most, default=1) < 1:
        p = most.index(min(most))
        raise ValueError(f"prompt {p} has {lengths[p]} tokens, which leaves its responses {most[p]}: shorten it")
    need = max((_cost(length, k, room) for length, room in zip(lengths, most, strict=True)), default=0)
    if budget is not None and need > budget:
        raise ValueError(
            f"token_budget: {budget} is too small for one prompt of {max(lengths)} tokens and its {k} responses of "
            f"up to {max_new}; give at least {need}, or fewer or shorter responses"
        )
