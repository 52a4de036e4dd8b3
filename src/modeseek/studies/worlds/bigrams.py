"""A language model small enough to be exact, for each seed: the next word depends on the last one and on the time.

logits(next | last, t) = pairs[last, next] + clock(t) @ times[:, next], where the clock is a row of smooth bumps. What
is learnt at one place so holds at its neighbours, as in any language model, yet the distribution of lengths and the KL
are sums that a forward pass over (t, last word) gives exactly.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from modeseek.batch import PKT, Batch
from modeseek.data import fables
from modeseek.ops import token_logp

END = 0  # the end token; it also stands before the first word
LIMIT = 64  # tokens of a response, the end included; what has not ended by then is cut off
BUMPS = 8  # of the clock
TEXTS = 2000  # that the reference learns from


class Bigrams(nn.Module):
    """Weights `pairs` [S, V, V] and `times` [S, BUMPS, V]; prompts are empty of meaning: one end token."""

    def __init__(self, pairs: Float[Tensor, "S V V"], times: Float[Tensor, "S F V"]):
        super().__init__()
        self.pairs, self.times = nn.Parameter(pairs.clone()), nn.Parameter(times.clone())

    def at(self, t: int) -> Float[Tensor, "S V V"]:
        """log-probability of every next word after every last one, at place t."""
        return (self.pairs + torch.einsum("f,sfv->sv", clock()[t], self.times)[:, None]).log_softmax(-1)

    def logp(self, batch: Batch) -> PKT:
        S, V, _ = self.pairs.shape
        P, _, T = batch.response.shape
        last = F.pad(batch.response[..., :-1], (1, 0), value=END)
        offset = (torch.arange(P) // (P // S) * V)[:, None, None]
        rows = F.embedding(last + offset, self.pairs.flatten(0, 1))  # [P, K, T, V]
        when = torch.einsum("tf,sfv->stv", clock()[:T], self.times).repeat_interleave(P // S, 0)
        return token_logp(rows + when[:, None], batch.response)

    @torch.no_grad()
    def sample(self, prompt: Int[Tensor, "P 1"], u: Float[Tensor, "P K T"]) -> Batch:
        """Each word by its place in the cumulative distribution: the same `u`, the same luck."""
        (P, K, T), (S, V, _) = u.shape, self.pairs.shape
        offset = torch.arange(S)[:, None] * V
        last, luck = torch.full((S, P // S * K), END), u.view(S, -1, T)
        open_, words, said, mask = torch.ones_like(last, dtype=torch.bool), [], [], []
        table = self.pairs.flatten(0, 1)
        for t in range(T):
            when = torch.einsum("f,sfv->sv", clock()[t], self.times)
            logp = (table[last + offset] + when[:, None]).log_softmax(-1)  # [S, N, V]
            cdf = logp.double().exp().cumsum(-1)
            last = torch.searchsorted(cdf, luck[..., t : t + 1].contiguous(), right=True).clamp(max=V - 1)
            words.append(last)
            said.append(logp.gather(-1, last))
            mask.append(open_)
            last = last[..., 0]
            open_ = open_ & (last != END)
            if not open_.any():
                break
        join = lambda parts: torch.stack(parts, -1).view(P, K, -1)
        where = join(mask)
        everywhere = torch.ones_like(prompt, dtype=torch.bool)
        ended = ~open_.view(P, K)
        squeeze = lambda parts: join([x[..., 0] for x in parts])
        return Batch.own(prompt, everywhere, squeeze(words), where, old_logp=squeeze(said), finished=ended)

    @torch.no_grad()
    def walk(self, reference: Bigrams) -> tuple[Float[Tensor, "S L"], Float[Tensor, " S"], Float[Tensor, " S"]]:
        """Exact: the probability of each length (1 to LIMIT tokens), KL to the reference and entropy in nats."""
        S, V, _ = self.pairs.shape
        alive = torch.zeros(S, V, dtype=self.pairs.dtype)  # of the last word, nothing having ended
        alive[:, END] = 1.0
        lengths, kl, entropy = [], torch.zeros(S), torch.zeros(S)
        for t in range(LIMIT):
            logp, ref = self.at(t), reference.at(t)
            p = logp.exp()
            kl = kl + torch.einsum("sv,svw->s", alive, p * (logp - ref))
            entropy = entropy - torch.einsum("sv,svw->s", alive, p * logp)
            step = torch.einsum("sv,svw->sw", alive, p)
            lengths.append(step[:, END])
            alive = step.index_fill(1, torch.tensor([END]), 0.0)
        lengths[-1] = lengths[-1] + alive.sum(-1)  # cut off
        return torch.stack(lengths, -1), kl, entropy


@cache
def clock() -> Float[Tensor, "T F"]:
    """Bumps over log-time, so that the first words are told apart best."""
    at = torch.arange(1.0, LIMIT + 1).log()
    centre = torch.linspace(0, float(at[-1]), BUMPS)
    return (-((at[:, None] - centre) / (centre[1] - centre[0])).square()).exp()


@cache
def pretrained(steps: int = 150) -> tuple[Float[Tensor, "V V"], Float[Tensor, "F V"]]:
    """The reference: maximum likelihood on the fables that `data/fables.py` has a reference learn from.

    All texts are of one animal and place, since there is one prompt. Bigrams start at their counts, plus a hundredth.
    """
    texts = [text(row["completion"]) for row in fables.pretraining(TEXTS, seed=0)]
    words = ["<end>", *sorted({word for told in texts for word in told})]
    index = {word: i for i, word in enumerate(words)}
    V = len(words)
    counts = torch.zeros(LIMIT, V, V)
    for told in texts:
        ids = [END, *(index[word] for word in told), END][: LIMIT + 1]
        for t, (last, word) in enumerate(zip(ids, ids[1:], strict=False)):
            counts[t, last, word] += 1
    total = counts.sum(0) + 0.01
    model = Bigrams((total / total.sum(-1, keepdim=True)).log()[None], torch.zeros(1, BUMPS, V))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        logp = (model.pairs + torch.einsum("tf,sfv->tv", clock(), model.times)[:, None]).log_softmax(-1)
        (-(counts * logp).sum() / TEXTS).backward()
        optimiser.step()
    return model.pairs.detach()[0], model.times.detach()[0]


def text(fable: str) -> list[str]:
    """The words of a fable, as if all were of the same animal and place."""
    same = {word: names[0] for names in (fables.ANIMALS, fables.PLACES) for word in names}
    return [same.get(word, word) for word in fable.split()]
