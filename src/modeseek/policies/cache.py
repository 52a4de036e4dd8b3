"""What a frozen reference says of the data's responses, computed once and kept on disk by its content."""

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from modeseek.batch import PS, Batch, MaskPS
from modeseek.policies.base import Sampling
from modeseek.policies.hf import HFPolicy, Reference
from modeseek.policies.shards import Shards

WHENCE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")  # of a config: says nothing of the numbers


class Cached:
    """A reference that looks up what it has said before, and computes and keeps what it has not.

    Only responses that are not the policy's own are kept: fresh ones never come again. A row is found by everything
    that decides its numbers, `identity` and the token ids of prompt and response, so a folder may serve many runs, also
    at the same time, and nothing in it is ever out of date. What is found was computed beside other rows than the batch
    at hand holds: equal to the last digits of the dtype, as for any other packing.
    """

    def __init__(self, reference: Reference, folder: str | Path, identity: dict[str, str] | None = None):
        self._reference, self._shards = reference, Shards(Path(folder))
        self.counts = {"found": 0, "computed": 0}
        self._first: Callable[[Callable[[], Any]], Any] = lambda look: look()
        self._keeps = True
        if identity is not None:
            self.identity = identity

    def together(self, asked: Any, first: Callable[[Callable[[], Any]], Any], *, keeps: bool) -> "Cached":
        """The same cache where many processes ask at once and `asked` needs all of them: the `first` one looks and
        all hear what it found, so that all miss the same rows, and it alone `keeps` them."""
        made = copy.copy(self)
        made._reference, made._first, made._keeps = asked, first, keeps
        return made

    @property
    def reference(self) -> Reference:
        """What is asked where nothing is kept yet."""
        return self._reference

    @property
    def module(self) -> HFPolicy:
        """The policy that answers."""
        return self._reference.module

    def parameters(self) -> Iterator[nn.Parameter]:
        return self._reference.parameters()

    @cached_property
    def identity(self) -> dict[str, str]:
        """What decides the numbers, beside the tokens. The weights are read once for it."""
        return identity(self._reference.module)

    def describe(self) -> dict[str, Any]:
        """For the run card."""
        counts = self.counts | ({"damaged": self._shards.damaged} if self._shards.damaged else {})
        return {"folder": str(self._shards.folder), **self.identity, "rows": counts}

    @torch.no_grad()
    def logp(self, batch: Batch) -> Float[Tensor, "P K T"]:
        """As the reference says it; zero where a response has no token."""
        speaks = batch.present & batch.mask.any(-1)
        keys = self._keys(batch, speaks & ~batch.fresh)
        known = self._first(lambda: self._find(keys))
        unknown = speaks.clone()
        for p, k in known:
            unknown[p, k] = False
        said = self._say(batch, unknown, known)
        for (p, k), row in known.items():
            said[p, k, batch.mask[p, k]] = torch.from_numpy(row.copy()).to(said)
        if not self._keeps:
            return said
        rows = {key: said[p, k, batch.mask[p, k]].cpu().numpy() for (p, k), key in keys.items() if (p, k) not in known}
        self._shards.add({key: row for key, row in rows.items() if np.isfinite(row).all()})
        self.counts["found"] += len(known)
        self.counts["computed"] += len(rows)
        return said

    def sample(self, prompt: PS, prompt_mask: MaskPS, k: int, rng: Generator, **how: Unpack[Sampling]) -> Batch:
        return self._reference.sample(prompt, prompt_mask, k, rng, **how)

    def predict(self, tokens: Tensor, mask: Tensor, start: int) -> Tensor:
        return self._reference.predict(tokens, mask, start)

    def _find(self, keys: dict[tuple[int, int], bytes]) -> dict[tuple[int, int], np.ndarray]:
        found = {at: self._shards.get(key) for at, key in keys.items()}
        if any(row is None for row in found.values()):
            self._shards.look()
            found |= {at: self._shards.get(keys[at]) for at, row in found.items() if row is None}
        return {at: row for at, row in found.items() if row is not None}

    def _say(
        self, batch: Batch, unknown: Bool[Tensor, "P K"], known: dict[tuple[int, int], np.ndarray]
    ) -> Float[Tensor, "P K T"]:
        if not known:
            return self._reference.logp(batch)
        shape, device = batch.response.shape, batch.response.device
        rows = unknown.any(1)
        if not rows.any():
            return torch.zeros(shape, dtype=torch.from_numpy(next(iter(known.values())).copy()).dtype, device=device)
        part = self._reference.logp(dataclasses.replace(batch, present=unknown).prompts(rows))
        said = part.new_zeros(shape)
        said[rows] = part.masked_fill(~unknown[rows][..., None], 0.0)
        return said

    def _keys(self, batch: Batch, which: Bool[Tensor, "P K"]) -> dict[tuple[int, int], bytes]:
        device = batch.prompt.device.type
        cast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "off"
        about = json.dumps([self.identity, device, cast], sort_keys=True).encode()
        tokens = [x.cpu() for x in (batch.prompt, batch.prompt_mask, batch.response, batch.mask)]
        prompts = [row[there].numpy().tobytes() for row, there in zip(*tokens[:2], strict=True)]
        keys = {}
        for p, k in which.nonzero().tolist():
            response = tokens[2][p, k][tokens[3][p, k]].numpy().tobytes()
            found = hashlib.blake2b(about, digest_size=16)
            found.update(len(prompts[p]).to_bytes(8, "little") + prompts[p] + response)
            keys[p, k] = found.digest()
        return keys


def identity(policy: HFPolicy) -> dict[str, str]:
    """What decides the log-probabilities that a policy, its adapters off, says of given tokens."""
    config: Any = policy.model.config
    told = {name: x for name, x in config.to_dict().items() if name not in WHENCE}
    if not policy.has_adapter and getattr(policy.model, "peft_config", None):  # adapters that are a part of it
        told["adapters"] = {name: x.to_dict() for name, x in policy.model.peft_config.items()}  # type: ignore[union-attr]
    return {
        "weights": weights_hash(policy.model, adapters=not policy.has_adapter),
        "config": hashlib.blake2b(json.dumps(told, sort_keys=True, default=str).encode(), digest_size=16).hexdigest(),
        "dtype": str(next(policy.model.parameters()).dtype).removeprefix("torch."),
        "path": policy.paths["logp"],
        "attention": str(config._attn_implementation),
        "temperature": str(policy.temperature),
    }


def weights_hash(model: nn.Module, *, adapters: bool) -> str:
    """Hash of parameters and buffers by name. Without its adapters a model hashes as its base does."""
    state = {name: x for name, x in model.state_dict().items() if isinstance(x, Tensor)}
    if not adapters:
        kept = {n: x for n, x in state.items() if not any(part.startswith("lora_") for part in n.split("."))}
        state = {n.removeprefix("base_model.model.").replace(".base_layer.", "."): x for n, x in kept.items()}
    return tensors_hash(state.items())


def tensors_hash(named: Iterable[tuple[str, Tensor]]) -> str:
    """32 hex digits (blake2b) of tensors by name: the same weights wherever they are kept."""
    found = hashlib.blake2b(digest_size=16)
    for name, x in sorted(named, key=lambda pair: pair[0]):
        found.update(f"{name} {x.dtype} {list(x.shape)}".encode())
        here = x.detach().to("cpu", copy=True)  # what numpy has seen can no longer be freed, as FSDP2 does
        found.update(here.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
