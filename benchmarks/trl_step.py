"""TRL 1.16's DPO step, rebuilt with torch alone: the baseline where TRL itself cannot be brought.

Read from its source (`DPOTrainer._compute_loss`, `kernels/chunked_logprob.py`, `add_fused_lm_head`) and written anew:
each pair is two right-padded rows, all chosen in front of all rejected, the prompt in both; the output layer runs in
tiles of 4,096 tokens by 32,768 of the vocabulary, and once more in the backward (four matrix products a tile); entropy,
mean logits and the best token are computed for the metrics; the reference is asked at every step unless its
log-probabilities are given. `compact` is what it does on a GPU only: the output layer sees completion tokens alone.
Where it has Triton kernels, on a GPU, the same arithmetic is compiled. `peers.py` shows on a CPU that this costs within
10% of the real one and has its losses.
"""

import copy
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeseek.batch import Batch

TOKENS, WORDS = 4096, 32_768  # of a tile
BETA = 0.1


class Rebuilt:
    """A model and the way in which TRL trains it. `given`: the reference's log-probabilities are in the batch."""

    def __init__(self, model: Any, *, bf16: bool, checkpointing: bool, given: bool, compact: bool):
        self.model, self.bf16, self.compact = model, bf16, compact
        self.reference = None if given else copy.deepcopy(model).requires_grad_(False).eval()
        model.train()  # transformers recomputes in training mode only
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        self.metrics: dict[str, float] = {}

    def loss(self, batch: Batch) -> Tensor:
        """The mean over pairs, as TRL averages it; what it logs is left in `metrics`."""
        rows = collate(batch)
        said = self._said(self.model, rows, told=True)
        if self.reference is None:
            kept = batch["ref_logp"].masked_fill(~batch.mask, 0.0).sum(-1)  # [P, 2]
            ref = torch.cat([kept[:, 0], kept[:, 1]])
        else:
            with torch.no_grad():
                ref = self._said(self.reference, rows, told=False)["logp"].sum(1)
        chosen, rejected = (said["logp"].sum(1) - ref).chunk(2)
        loss = -F.logsigmoid(BETA * (chosen - rejected)).mean()
        self.metrics = _metrics(rows["completion"][:, 1:].bool(), said, chosen.detach(), rejected.detach())
        return loss

    def _said(self, model: Any, rows: dict[str, Tensor], *, told: bool) -> dict[str, Tensor]:
        """Of each next token [2 P, L - 1]; zero where it is none of a response."""
        device = rows["tokens"].device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.bf16):
            h = model.base_model(
                input_ids=rows["tokens"], attention_mask=rows["attention"], use_cache=False
            ).last_hidden_state[:, :-1]
            target, mask = rows["tokens"][:, 1:], rows["completion"][:, 1:].bool()
            weight = model.get_output_embeddings().weight
            states, words = (h[mask], target[mask]) if self.compact else (h.flatten(0, 1), target.flatten())
            every: Any = _Chunked.apply(states, weight, words, told)
            found = dict(zip(("logp", "entropy", "mean", "best"), every, strict=True))
        if self.compact:
            spread = lambda x: x.new_zeros(mask.shape).masked_scatter(mask, x)
        else:
            spread = lambda x: x.view(mask.shape).masked_fill(~mask, 0)
        return {name: spread(x) for name, x in found.items() if x is not None}


def collate(batch: Batch) -> dict[str, Tensor]:
    """Right-padded rows, the chosen ones first."""
    ids, marks = [], []
    for k in range(2):
        for p in range(len(batch)):
            prompt, response = batch.prompt[p][batch.prompt_mask[p]], batch.response[p, k][batch.mask[p, k]]
            ids.append(torch.cat([prompt, response]))
            marks.append(torch.cat([torch.zeros_like(prompt), torch.ones_like(response)]))
    padded = lambda rows: nn.utils.rnn.pad_sequence(rows, batch_first=True)
    there = padded([torch.ones_like(x) for x in ids])
    return {"tokens": padded(ids), "attention": there, "completion": padded(marks)}


def _metrics(mask: Tensor, said: dict[str, Tensor], chosen: Tensor, rejected: Tensor) -> dict[str, float]:
    """What TRL logs at every step; each waits for the device once, as there."""
    of_chosen, of_rejected = mask.chunk(2)
    mean, best, logp = said["mean"].chunk(2), said["best"].chunk(2), said["logp"].detach().sum(1).chunk(2)
    share = lambda x, among: (x.sum() / among.sum()).item()
    return {
        "entropy": share(said["entropy"].detach() * mask, mask),
        "logits/chosen": share(mean[0][of_chosen], of_chosen),
        "logits/rejected": share(mean[1][of_rejected], of_rejected),
        "mean_token_accuracy": share(best[0].bool() & of_chosen, of_chosen),
        "rewards/chosen": BETA * chosen.mean().item(),
        "rewards/rejected": BETA * rejected.mean().item(),
        "rewards/accuracies": (chosen > rejected).float().mean().item(),
        "rewards/margins": BETA * (chosen - rejected).mean().item(),
        "logps/chosen": logp[0].mean().item(),
        "logps/rejected": logp[1].mean().item(),
    }


class _Chunked(torch.autograd.Function):
    """log-probabilities by an online log-sum-exp over tiles of the vocabulary; the backward makes each tile again."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, target: Tensor, told: bool) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        device, n = h.device.type, len(h)
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else h.dtype
        room = h.new_empty(min(n, TOKENS), WORDS, dtype=dtype)
        low, fold = -math.inf, _on(device, _folded)
        # the largest, their exponentials' sum, that weighted by the logits, the logits' sum, the largest before the
        # target, the target's own
        run = [h.new_full((n,), x, dtype=torch.float32) for x in (low, 0.0, 0.0, 0.0, low, 0.0)]
        for rows, words in _tiles(n, len(weight)):
            tile = _product(room, h[rows].to(dtype), weight[words].to(dtype))
            new = fold(tile, target[rows] - words.start, *(x[rows] for x in run), told)
            for x, y in zip(run, new, strict=True):
                x[rows] = y
        top, total, weighted, every, before, own = run
        log_z = top + total.log()
        ctx.save_for_backward(h, weight, target, log_z)
        ctx.dtype = dtype
        if not told:
            return own - log_z, None, None, None
        found = log_z - weighted / total, every / len(weight), ((own >= top) & (own > before)).float()
        ctx.mark_non_differentiable(*found)
        return own - log_z, *found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        h, weight, target, log_z = ctx.saved_tensors
        grad, device = grads[0], h.device.type
        assert grad is not None
        room = h.new_empty(min(len(h), TOKENS), WORDS, dtype=ctx.dtype)
        slope = _on(device, _slope)
        grad_h, grad_weight = (torch.zeros(x.shape, device=x.device) for x in (h, weight))
        for rows, words in _tiles(len(h), len(weight)):
            states, part = h[rows].to(ctx.dtype), weight[words].to(ctx.dtype)
            tile = _product(room, states, part)
            tile.copy_(slope(tile, target[rows] - words.start, log_z[rows], grad[rows].float()))
            _add(grad_h[rows], tile, part)
            _add(grad_weight[words], tile.t(), states)
        return grad_h.to(h.dtype), grad_weight.to(weight.dtype), None, None


def _tiles(tokens: int, words: int) -> list[tuple[slice, slice]]:
    spans = lambda n, by: [slice(i, min(i + by, n)) for i in range(0, n, by)]
    return [(rows, some) for rows in spans(tokens, TOKENS) for some in spans(words, WORDS)]


def _product(room: Tensor, h: Tensor, weight: Tensor) -> Tensor:
    tile = room[: len(h), : len(weight)]
    return torch.mm(h, weight.t(), out=tile)


def _add(to: Tensor, a: Tensor, b: Tensor) -> None:
    """In float32, which the sum over tiles is kept in."""
    if to.is_cuda and a.dtype == torch.bfloat16:
        torch.addmm(to, a, b, out_dtype=torch.float32, out=to)
    else:
        to.addmm_(a.float(), b.float())


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


def _on(device: str, function: Callable[..., Any]) -> Callable[..., Any]:
    return _compiled(function) if device == "cuda" else function


def _folded(
    tile: Tensor,
    at: Tensor,
    top: Tensor,
    total: Tensor,
    weighted: Tensor,
    every: Tensor,
    before: Tensor,
    own: Tensor,
    told: bool,
) -> tuple[Tensor, ...]:
    """The running sums with one more tile."""
    z = tile.float() * 1.0 * 1.0  # times the logit scale, over the temperature
    if told:
        every = every + z.sum(-1)
        ahead = torch.arange(z.shape[1], device=z.device) < at[:, None]
        before = torch.maximum(before, z.masked_fill(~ahead, -math.inf).amax(-1))
    new = torch.maximum(top, z.amax(-1))
    shrunk, e = torch.exp(top - new), torch.exp(z - new[:, None])
    total = total * shrunk + e.sum(-1)
    if told:
        weighted = weighted * shrunk + (e * z).sum(-1)
    inside = (at >= 0) & (at < z.shape[1])
    said = z.gather(-1, at.clamp(0, z.shape[1] - 1)[:, None]).squeeze(-1)
    return new, total, weighted, every, before, torch.where(inside, said, own)


def _slope(tile: Tensor, at: Tensor, log_z: Tensor, grad: Tensor) -> Tensor:
    """Of the loss by the logits of a tile: d log p_y / d z_j = [j = y] - p_j."""
    p = torch.exp(tile.float() * 1.0 * 1.0 - log_z[:, None])
    hit = torch.arange(tile.shape[1], device=tile.device) == at[:, None]
    found = torch.zeros_like(p)
    found += grad[:, None] * (hit.float() - p)
    return found * 1.0 * 1.0
