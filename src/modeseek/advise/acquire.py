"""Which pair to have labelled next: strategies, and worlds in which labels are bought by each of them.

The learner is the same for all: the belief's mean reward, and the policy that is best for it with a KL penalty,
pi_ref exp(reward / beta), normalised. They differ in the pairs alone. `rivals` draws two rewards from the belief and
one response from the policy that is best for each (double Thompson sampling for duels, Wu & Liu 2016,
https://arxiv.org/abs/1604.07101), and of several such pairs takes the one whose outcome is least known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from modeseek.advise import belief
from modeseek.advise.belief import Belief, Setting, linear_kernel
from modeseek.advise.worlds import Worlds

BETA = 1.0
SETTING = Setting(scale=2.0, own=0.25, flips=0.1, trust=0.0)
OFFERED = 8  # pairs that a strategy chooses from


@dataclass(frozen=True)
class Shop:
    """What a strategy may look at before it names n pairs in each world."""

    held: Belief
    base: Float[Tensor, "W M"]  # log of the reference's mass
    worlds: Worlds
    spent: int  # labels bought so far, beside the pairs at the start
    first: int  # pairs at the start

    def policy(self, reward: Float[Tensor, "W M"]) -> Float[Tensor, "W M"]:
        """The mass that is best for a reward."""
        return tilted(self.base, reward, self.worlds.contexts)


Strategy = Callable[[Shop, int, Generator], Int[Tensor, "W n 2"]]


def offline(shop: Shop, n: int, rng: Generator) -> Int[Tensor, "W n 2"]:
    """More of the pairs that others write."""
    at = shop.first + shop.spent
    return shop.worlds.pairs[:, at : at + n]


def random(shop: Shop, n: int, rng: Generator) -> Int[Tensor, "W n 2"]:
    """Two of the policy's own responses."""
    return drawn(shop, n, 2, rng)


def best_worst(shop: Shop, n: int, rng: Generator) -> Int[Tensor, "W n 2"]:
    """The best and the worst of four own responses, by the reward that is believed."""
    four = drawn(shop, n, 4, rng)
    score = shop.held.mean.gather(1, four.flatten(1)).view(four.shape)
    at = torch.stack([score.argmax(-1), score.argmin(-1)], -1)
    return four.gather(-1, at)


def uncertain(shop: Shop, n: int, rng: Generator) -> Int[Tensor, "W n 2"]:
    """Of several own pairs, the one that is least sure to be won by either."""
    return _likeliest(shop, _offers(shop, n, rng), n, lambda gap, sd: -gap.abs())


def d_optimal(shop: Shop, n: int, rng: Generator) -> Int[Tensor, "W n 2"]:
    """Of several own pairs, the one whose difference of worths is least known."""
    return _likeliest(shop, _offers(shop, n, rng), n, lambda gap, sd: sd)


def rivals(shop: Shop, n: int, rng: Generator) -> Int[Tensor, "W n 2"]:
    """One response for each of two rewards that may be true."""
    W = len(shop.base)
    drawn = _rewards(shop, 2 * n, rng)  # [W, 2 n, M]
    p = tilted(shop.base[:, None].expand_as(drawn), drawn, shop.worlds.contexts)
    return _one_each(p, shop.worlds.contexts, rng).view(W, n, 2)


def informed_rivals(shop: Shop, n: int, rng: Generator) -> Int[Tensor, "W n 2"]:
    """Of several pairs of rivals, the one whose difference of worths is least known."""
    return _likeliest(shop, rivals(shop, OFFERED * n, rng), n, lambda gap, sd: sd)


def v_optimal(shop: Shop, n: int, rng: Generator) -> Int[Tensor, "W n 2"]:
    """One after another, of pairs of the policy's, the reference's and rivals' responses, the one whose label is
    expected to make the policy's own responses best known.

    What a policy loses by a wrong reward is to second order the variance of the error over its own responses, so that
    variance is what a label should lower. A pair whose outcome is foreseen lowers nothing, however unlike its two are.
    """
    W, M = shop.base.shape
    p = shop.policy(shop.held.mean)
    flat = torch.stack([p, shop.base.exp(), (p + shop.base.exp()) / 2], 1)
    spread = flat.repeat(1, n, 1)
    offers = torch.cat([_same_prompt(spread, 2, shop.worlds.contexts, rng), rivals(shop, 2 * n, rng)], 1)
    one, other = offers.unbind(-1)  # [W, m]
    gap = shop.held.mean.gather(1, one) - shop.held.mean.gather(1, other)
    covariance, chosen = shop.held.covariance, []
    for _ in range(n):
        effect = _rows(covariance, one) - _rows(
            covariance, other
        )  # [W, m, M] what knowing a pair says of every response
        variance = (effect.gather(2, one[..., None]) - effect.gather(2, other[..., None]))[..., 0].clamp(min=0)
        told = informative(gap, variance, SETTING.flips)
        centred = _centred(effect, p, shop.worlds.contexts)
        value = told / (1 + told * variance) * torch.einsum("wnm,wm->wn", centred.square(), p)
        best = value.argmax(1, keepdim=True)
        chosen.append(offers.gather(1, best[..., None].expand(-1, -1, 2)))
        its = effect.gather(1, best[..., None].expand(-1, -1, M))  # [W, 1, M]
        size = told.gather(1, best) / (1 + told.gather(1, best) * variance.gather(1, best))
        covariance = covariance - size[..., None] * its.mT @ its
    return torch.cat(chosen, 1)


def informative(gap: Float[Tensor, "W m"], variance: Float[Tensor, "W m"], flips: float) -> Float[Tensor, "W m"]:
    """Fisher information of a label about its gap, at the gap's mean drawn in by what is not known of it (MacKay)."""
    p = (gap / (1 + torch.pi * variance / 8).sqrt()).sigmoid()
    chance = flips + (1 - 2 * flips) * p
    return ((1 - 2 * flips) * p * (1 - p)).square() / (chance * (1 - chance))


def _centred(effect: Float[Tensor, "W m M"], p: Float[Tensor, "W M"], contexts: int) -> Float[Tensor, "W m M"]:
    """Less its mean over each prompt's responses under p: what all responses to a prompt share moves no policy."""
    own = p.unflatten(-1, (contexts, -1))[:, None]
    parts = effect.unflatten(-1, (contexts, -1))
    mean = (own * parts).sum(-1, keepdim=True) / own.sum(-1, keepdim=True)
    return (parts - mean).flatten(-2)


STRATEGIES: dict[str, Strategy] = {
    "offline": offline,
    "random": random,
    "best_worst": best_worst,
    "uncertain": uncertain,
    "d_optimal": d_optimal,
    "rivals": rivals,
    "informed_rivals": informed_rivals,
    "v_optimal": v_optimal,
}


def buy(
    worlds: Worlds,
    strategy: Strategy,
    *,
    labels: int,
    batch: int = 20,
    first: int = 40,
    flips: float = 0.1,
    seed: int = 0,
) -> Iterator[tuple[int, Float[Tensor, " W"]]]:
    """Labels bought so far, and the share of the best gain (reward less the KL's price) that the policy has then."""
    rng = torch.Generator().manual_seed(seed)
    kernel = linear_kernel(worlds.seen.flatten(1, 2))
    base = worlds.mass(worlds.still()).clamp(min=1e-300).log()
    gain = lambda reward: penalised(tilted(base, reward, worlds.contexts), base, worlds.reward)
    best = gain(worlds.reward)
    pairs, spent = worlds.pairs[:, :first], 0
    nothing, none = torch.zeros_like(worlds.reward), torch.zeros(len(worlds), dtype=torch.bool)
    while True:
        count = torch.full((len(worlds),), pairs.shape[1])
        fits = belief.fit(kernel, pairs, count, nothing, none, [SETTING])
        held = Belief(fits.mean[:, 0], fits.covariance[0])
        yield spent, gain(held.mean) / best
        if spent >= labels:
            return
        wanted = strategy(Shop(held, base, worlds, spent, first), batch, rng)
        told = wanted if strategy is offline else labelled(worlds, wanted, flips, rng)
        pairs, spent = torch.cat([pairs, told], 1), spent + batch


def penalised(p: Float[Tensor, "W M"], base: Float[Tensor, "W M"], reward: Float[Tensor, "W M"]) -> Float[Tensor, " W"]:
    """Expected reward less beta for each nat of KL, over the reference's: no policy has more than the tilted one."""
    kl = (p * (p.clamp(min=1e-300).log() - base)).sum(-1)
    return ((p - base.exp()) * reward).sum(-1) - BETA * kl


def labelled(worlds: Worlds, pairs: Int[Tensor, "W n 2"], flips: float, rng: Generator) -> Int[Tensor, "W n 2"]:
    """The pairs with the preferred first, by Bradley-Terry on the true reward, some labels flipped."""
    worth = worlds.reward.gather(1, pairs.flatten(1)).view(pairs.shape)
    draw = lambda: torch.rand(pairs.shape[:2], generator=rng, dtype=torch.float64)
    right = draw() < (worth[..., 0] - worth[..., 1]).sigmoid()
    return torch.where((right ^ (draw() < flips))[..., None], pairs, pairs.flip(-1))


def tilted(base: Float[Tensor, "*W M"], reward: Float[Tensor, "*W M"], contexts: int) -> Float[Tensor, "*W M"]:
    """pi_ref exp(reward / beta), normalised for each prompt; as a mass over all responses."""
    logits = (base + reward / BETA).unflatten(-1, (contexts, -1))
    return logits.softmax(-1).flatten(-2) / contexts


def _rows(covariance: Float[Tensor, "W M M"], at: Int[Tensor, "W m"]) -> Float[Tensor, "W m M"]:
    return covariance.gather(1, at[..., None].expand(-1, -1, covariance.shape[2]))


def drawn(shop: Shop, n: int, k: int, rng: Generator) -> Int[Tensor, "W n k"]:
    """`k` responses of the policy to each of n prompts."""
    p = shop.policy(shop.held.mean)[:, None].expand(-1, n, -1)
    return _same_prompt(p, k, shop.worlds.contexts, rng)


def _offers(shop: Shop, n: int, rng: Generator) -> Int[Tensor, "W m 2"]:
    return drawn(shop, OFFERED * n, 2, rng)


def _likeliest(
    shop: Shop, offers: Int[Tensor, "W m 2"], n: int, value: Callable[[Tensor, Tensor], Tensor]
) -> Int[Tensor, "W n 2"]:
    """Of each run of offers the one with the largest value of its gap's mean and standard deviation."""
    W, m, _ = offers.shape
    M = shop.base.shape[1]
    one, other = offers.unbind(-1)
    own = shop.held.covariance.diagonal(dim1=1, dim2=2)
    both = shop.held.covariance.flatten(1).gather(1, one * M + other)
    sd = (own.gather(1, one) + own.gather(1, other) - 2 * both).clamp(min=0).sqrt()
    gap = shop.held.mean.gather(1, one) - shop.held.mean.gather(1, other)
    best = value(gap, sd).view(W, n, m // n).argmax(-1)  # [W, n]
    return offers.view(W, n, m // n, 2).gather(2, best[..., None, None].expand(-1, -1, 1, 2))[:, :, 0]


def _rewards(shop: Shop, n: int, rng: Generator) -> Float[Tensor, "W n M"]:
    """Draws of the reward from the belief."""
    covariance = shop.held.covariance
    eye = 1e-6 * torch.eye(covariance.shape[-1], dtype=covariance.dtype)
    root = torch.linalg.cholesky(covariance + eye)
    noise = torch.randn(len(covariance), n, covariance.shape[-1], generator=rng, dtype=covariance.dtype)
    return shop.held.mean[:, None] + noise @ root.mT


def _same_prompt(p: Float[Tensor, "W n M"], k: int, contexts: int, rng: Generator) -> Int[Tensor, "W n k"]:
    W, n, M = p.shape
    A = M // contexts
    prompt = torch.randint(contexts, (W, n), generator=rng)
    table = p.view(W, n, contexts, A).gather(2, prompt[..., None, None].expand(-1, -1, 1, A))[:, :, 0]
    drawn = torch.multinomial(table.flatten(0, 1) + 1e-300, k, replacement=True, generator=rng)
    return drawn.view(W, n, k) + A * prompt[..., None]


def _one_each(p: Float[Tensor, "W n M"], contexts: int, rng: Generator) -> Int[Tensor, "W n"]:
    """One response from each of these masses, neighbours on the same prompt."""
    W, n, M = p.shape
    A = M // contexts
    prompt = torch.randint(contexts, (W, n // 2), generator=rng).repeat_interleave(2, 1)
    table = p.view(W, n, contexts, A).gather(2, prompt[..., None, None].expand(-1, -1, 1, A))[:, :, 0]
    drawn = torch.multinomial(table.flatten(0, 1) + 1e-300, 1, generator=rng)
    return drawn.view(W, n) + A * prompt
