"""The rollout: prompts in chunks that fit a token budget, one token of every response a step, finished rows dropped."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor, nn

from modeseek.batch import Batch
from modeseek.policies.base import pick, uniform
from modeseek.policies.decode import lean
from modeseek.policies.decode.body import Body, driven
from modeseek.policies.decode.cache import Cache

WORTH = 512  # tokens that need not be read each step, in a layer, for a more involved way to pay
ALIVE = 0.75  # rows are moved together once no more than this share of them still speaks


@dataclass(frozen=True)
class How:
    """What is drawn from, and when a response ends."""

    eos: tuple[int, ...]
    max_new: int
    temperature: float
    top_p: float
    top_k: int


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
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    token_budget: int | None = None,
) -> Batch:
    """k responses to each prompt from a model that `why_not` has nothing against, in eval mode.

    `token_budget` bounds the tokens whose keys and values are held at once; None holds all prompts' at once. Every
    random number is drawn before the first token, so neither the chunks nor the dropping of rows change a response.
    """
    P = len(prompts)
    lengths = prompt_mask.sum(1).tolist()
    _check(lengths, k, max_new, token_budget)
    u = uniform((max_new, P, k), rng, prompts.device)
    token = prompts.new_zeros(P, k, max_new)
    logp = torch.zeros(P, k, max_new, dtype=_wide(model), device=prompts.device)
    length = torch.zeros(P, k, dtype=torch.long, device=prompts.device)
    finished = torch.zeros(P, k, dtype=torch.bool, device=prompts.device)
    how = How(tuple(eos), max_new, temperature, top_p, top_k)
    with _body(model, max(lengths, default=0) + max_new) as body:
        for part in _chunks(lengths, k, max_new, token_budget):
            at = torch.tensor(part, device=prompts.device)
            mine = [lengths[i] for i in part]
            cache = Cache(
                mine, k, max_new - 1, prompts.device, share=_share(mine, k, max_new, token_budget), worth=WORTH
            )
            said = _write(body, cache, prompts[at][prompt_mask[at]], u[:, at].flatten(1), how)
            shape = (len(part), k, -1)
            token[at], logp[at] = said.token.view(shape), said.logp.view(shape)
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


def _write(body: Body, cache: Cache, tokens: Int[Tensor, " N"], u: Tensor, how: How) -> _Said:
    """Responses to prompts packed into one row; `u` `[T, R]` is where in the unit interval each token falls."""
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
        tokens.new_full((R,), T),
        torch.zeros(R, dtype=torch.bool, device=device),
    )
    rows, alive, begun = torch.arange(R, device=device), torch.ones(R, dtype=torch.bool, device=device), 0
    token_run: list[Tensor] = []
    logp_run: list[Tensor] = []
    for t in range(T):
        token, logp = pick(logits, u[t], how.temperature, how.top_p, how.top_k)
        token_run.append(token)
        logp_run.append(logp)
        over, count = ends.index_select(0, token), len(rows)
        if over.any():
            over = over & alive
            said.length[rows[over]] = t + 1
            said.finished[rows[over]] = True
            alive = alive & ~over
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
def _body(model: nn.Module, longest: int) -> Iterator[Body]:
    if lean.fits(model):
        # Bookkeeping for autograd is a fifth of a small model's step. What is returned was made outside of this mode.
        with torch.inference_mode():
            yield lean.Lean(model, longest)
    else:
        with driven(model) as body:
            yield body


def _chunks(lengths: list[int], k: int, max_new: int, budget: int | None) -> Iterator[list[int]]:
    """Prompts whose cache fits the budget, longest first: what lies together is as wide as its longest."""
    part: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if part and budget is not None and (len(part) + 1) * _cost(lengths[part[0]], k, max_new) > budget:
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
    ends[list(eos)] = True
    return ends


def _wide(model: nn.Module) -> torch.dtype:
    return torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32


def _check(lengths: list[int], k: int, max_new: int, budget: int | None) -> None:
    if min(lengths, default=1) < 1:
        raise ValueError(f"prompt {lengths.index(0)} has no token: begin it with the tokenizer's bos token")
    if k < 1 or max_new < 1:
        raise ValueError(f"k: {k}, max_new: {max_new}; both must be at least 1")
    need = _cost(max(lengths, default=0), k, max_new)
    if budget is not None and lengths and need > budget:
        raise ValueError(
            f"token_budget: {budget} is too small for one prompt of {max(lengths)} tokens and its {k} responses of "
            f"up to {max_new}; give at least {need}, or fewer or shorter responses"
        )
