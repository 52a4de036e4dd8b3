"""A few scale-free numbers that need no truth: whether a problem is like the ones that the prior was made from."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from modeseek.advise.worlds import Worlds, fit_linear

NAMES: tuple[str, ...] = (
    "pairs, log",
    "held-out accuracy of a linear reward",
    "accuracy of the reference",
    "accuracy of the proxy",
    "rank of chosen among own",
    "rank of rejected among own",
    "effective dimension of the pairs",
    "leverage of own pairs, log",
    "effective sample share at the tilt",
    "chosen above own, by the proxy",
    "best of 8 above chosen, by the proxy",
    "entropy of the reference",
)


def diagnoses(worlds: Worlds) -> Float[Tensor, "W D"]:
    """One row a world, in the order of `NAMES`, of what the advisor sees: `seen`, the base, the pairs, the proxy."""
    p = worlds.mass(worlds.still())
    real = (torch.arange(worlds.pairs.shape[1]) < worlds.count[:, None]).double()
    share = real / real.sum(1, keepdim=True)
    seen = worlds.seen.flatten(1, 2)
    at = lambda table, k: table.gather(1, worlds.pairs[..., k])
    agree = lambda table: (share * ((at(table, 0) - at(table, 1)).sign() + 1) / 2).sum(1)
    rank = _rank(p)
    difference = _rows(seen, worlds.pairs[..., 0]) - _rows(seen, worlds.pairs[..., 1])
    moment = torch.einsum("wnd,wn,wne->wde", difference, share, difference)
    centred = seen - torch.einsum("wm,wmd->wd", p, seen)[:, None]
    own = 2 * torch.einsum("wmd,wm,wme->wde", centred, p, centred)
    eye = 1e-3 * torch.eye(seen.shape[-1], dtype=seen.dtype) * own.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    spectrum = torch.linalg.eigvalsh(moment + eye)
    tilt = (p.log() + worlds.proxy).softmax(-1)
    chosen = (share * at(worlds.proxy, 0)).sum(1)
    found = [
        worlds.count.double().log(),
        _held_out(worlds),
        agree(p),
        agree(worlds.proxy),
        (share * at(rank, 0)).sum(1),
        (share * at(rank, 1)).sum(1),
        spectrum.sum(1).square() / spectrum.square().sum(1) / seen.shape[-1],
        torch.linalg.solve(moment + eye, own).diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-6).log(),
        1 / (tilt.square() / p.clamp(min=1e-300)).sum(1),
        chosen - (p * worlds.proxy).sum(1),
        _best_of(p, worlds.proxy, 8) - chosen,
        -(p * p.clamp(min=1e-300).log()).sum(1) / math.log(p.shape[1]),
    ]
    return torch.stack(found, 1)


def _rank(p: Float[Tensor, "W M"]) -> Float[Tensor, "W M"]:
    """For each response, the mass of those that are less likely, and half of those as likely."""
    order = p.argsort(1)
    inside = p.gather(1, order)
    below = inside.cumsum(1) - inside / 2
    return torch.empty_like(p).scatter_(1, order, below)


def _rows(seen: Float[Tensor, "W M e"], places: Int[Tensor, "W N"]) -> Float[Tensor, "W N e"]:
    return seen.gather(1, places[..., None].expand(-1, -1, seen.shape[-1]))


def _held_out(worlds: Worlds) -> Float[Tensor, " W"]:
    """Fit a linear reward on the first half of the pairs, count how many of the second it orders as they are told."""
    half = (worlds.count // 2).clamp(min=1)
    score = fit_linear(worlds.seen.flatten(1, 2), worlds.pairs, half)
    row = torch.arange(worlds.pairs.shape[1])
    later = ((row >= half[:, None]) & (row < worlds.count[:, None])).double()
    right = score.gather(1, worlds.pairs[..., 0]) > score.gather(1, worlds.pairs[..., 1])
    return (later * right).sum(1) / later.sum(1).clamp(min=1)


def _best_of(p: Float[Tensor, "W M"], score: Float[Tensor, "W M"], n: int) -> Float[Tensor, " W"]:
    """The expected best score among n draws, over the responses of all prompts together."""
    order = score.argsort(1)
    below = p.gather(1, order).cumsum(1).clamp(max=1).pow(n)
    return (below.diff(dim=1, prepend=below.new_zeros(len(p), 1)) * score.gather(1, order)).sum(1)
