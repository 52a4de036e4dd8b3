"""A policy sampled by a vLLM server that is given its weights whenever they have changed, and proves that it has them.

Adapters are loaded at run time under a name of their content, so that no request can be answered by older ones. Full
weights are written to disk and reloaded in place: vLLM's weight-transfer engines (0.32: NCCL, CUDA IPC, RDMA) all need
GPUs on both sides. After each change the server says the log-probabilities of probe responses, and they must be ours.
"""

from __future__ import annotations

import copy
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from modeseek.batch import PS, Batch, MaskPS
from modeseek.policies.base import Sampling
from modeseek.policies.cache import tensors_hash
from modeseek.policies.hf import HFPolicy
from modeseek.policies.serving import ServerFailed
from modeseek.policies.vllm import PREFIX, Server, VLLMSampler

AT_MOST = 0.05  # nats a token on average: room for half precision, none for another model or temperature
LEAST = 1e-4  # and no change of weights is blamed for less
PROBES, RESPONSES, PROBE_TOKENS = 4, 2, 16


class OutOfStep(ValueError):
    """The server would not sample from the policy that is trained."""


class InStep:
    """`policy` as a vLLM server samples it. `folder` is where weights are written for the server: both see it under
    the same path."""

    def __init__(self, policy: HFPolicy, sampler: VLLMSampler, folder: Path):
        self.policy, self.sampler, self.folder = policy, sampler, folder.resolve()
        self.run = uuid.uuid4().hex[:8]  # two runs may share a server: adapters keep apart, full weights are noticed
        self.version = ""  # hash of the weights that the server was given
        self.syncs = 0
        self.gap = float("nan")  # nats a token on the probes, after the last change
        self.floor = float("nan")  # the same before anything was learnt: what two engines differ by
        self._proved = ""  # the version that the probes were right about
        self._probes: Batch | None = None
        self._before: Float[Tensor, " N"] | None = None  # what the policy said of the probes at the last change

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.policy.parameters()

    def logp(self, batch: Batch) -> Float[Tensor, "P K T"]:
        return self.policy.logp(batch)

    @torch.no_grad()
    def sample(self, prompt: PS, prompt_mask: MaskPS, k: int, rng: Generator, **how: Unpack[Sampling]) -> Batch:
        self.prove(prompt, prompt_mask)
        own = self.sampler.sample(prompt, prompt_mask, k, rng, **how)
        if not self._holds():
            raise OutOfStep(f"{self._where} was given other weights while it sampled; each run needs its own server")
        return own

    @torch.no_grad()
    def prove(self, prompt: PS, prompt_mask: MaskPS) -> dict[str, float]:
        """Bring the weights to the server unless it has them, and compare what both say of some responses.

        Raises OutOfStep. The first call is the gate before anything is learnt: its probes are the server's own
        responses to the first of these prompts.
        """
        version = tensors_hash(_trained(self.policy))
        if version == self._proved and self._holds():
            return {"server_gap": self.gap}
        self._bring(version)
        if self._probes is None:
            rng = Generator().manual_seed(0)
            short = copy.copy(self.sampler)
            short.max_new = min(short.max_new, PROBE_TOKENS)
            self._probes = short.sample(prompt[:PROBES], prompt_mask[:PROBES], RESPONSES, rng)
            self._agree(self._probes["old_logp"], "samples with")
        self._agree(self.sampler.logp(self._probes), "says")
        self._proved = version
        return {"server_gap": self.gap}

    def _agree(self, said: Float[Tensor, "P K T"], how: str) -> None:
        """The server's log-probabilities are the policy's now, and not rather those of before the last change."""
        assert self._probes is not None
        there = self._probes.mask
        now, told = self.policy.logp(self._probes)[there].double(), said[there].double()
        gap = lambda other: float((told - other).abs().mean())
        first = self._before is None
        limit = AT_MOST if first else min(AT_MOST, max(LEAST, 5 * self.floor))
        self.gap = gap(now)
        if not self.gap <= limit:
            raise OutOfStep(
                f"{self._where} {how} log-probabilities that differ from the policy's by {self.gap:.2g} nats a token "
                f"on average, {limit:.2g} at most; {self._why(first)}"
            )
        if self._before is not None:
            moved = float((now - self._before).abs().mean())
            if moved > 4 * self.floor and gap(self._before) < self.gap:
                raise OutOfStep(f"{self._where} still has the weights of before: what was loaded is not what it serves")
        self.floor = self.gap if first else self.floor
        self._before = now

    def _why(self, first: bool) -> str:
        if first:
            return "does it serve this model, with raw log-probabilities?"
        tied = getattr(self.policy.model.config, "tie_word_embeddings", False) and not self.policy.has_adapter
        on_cpu = "; on a CPU vLLM keeps the old output layer where embeddings are tied: train adapters" if tied else ""
        return f"what was loaded is not what it serves{on_cpu}"

    def _bring(self, version: str) -> None:
        old, new = self.folder / self.version, self.folder / version
        if not (new / "config.json").exists() and not (new / "adapter_config.json").exists():
            draft = self.folder / "draft"
            shutil.rmtree(draft, ignore_errors=True)
            self.policy.model.save_pretrained(draft)  # type: ignore[operator]
            draft.rename(new)  # whole or not at all: a server that reads half of it does not recover
        self._load_adapter(version, new) if self.policy.has_adapter else self._reload(version, new)
        if self.version and old != new:
            shutil.rmtree(old, ignore_errors=True)
        self.version, self.sampler.version, self.syncs = version, version, self.syncs + 1

    def _load_adapter(self, version: str, folder: Path) -> None:
        before, name, server = self.sampler.model, self._adapter(version), self.sampler.server
        if name not in server.names():
            body = {"lora_name": name, "lora_path": str(folder)}
            self._tell("/v1/load_lora_adapter", body, "--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1")
        if before not in (server.model, name) and before in server.names():
            server.endpoint.tell("/v1/unload_lora_adapter", {"lora_name": before})
        self.sampler.model = name

    def _reload(self, version: str, folder: Path) -> None:
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        self._tell("/collective_rpc", body, "VLLM_SERVER_DEV_MODE=1, which has to stay off the open network")
        self.sampler.server.endpoint.tell("/update_weight_version", {"new_version": self._mark(version)})

    def _tell(self, path: str, body: dict[str, Any], started_with: str) -> None:
        try:
            self.sampler.server.endpoint.tell(path, body)
        except ServerFailed as error:
            if error.status == 404 and "No adapter" not in str(error):
                raise ServerFailed(f"{self._where} takes no weights: start it with {started_with}", 404) from None
            raise ServerFailed(
                f"{error}; does the server see {self.folder} under this path, and take weights of these shapes (an "
                "adapter's rank is bounded by --max-lora-rank)?",
                error.status,
            ) from None

    def _holds(self) -> bool:
        """Whether the server still has what it was given: it may have been started anew, or told by someone else."""
        server = self.sampler.server
        if self.policy.has_adapter:
            return self._adapter(self.version) in server.names()
        return server.endpoint.ask("/weight_info").get("weight_version") == self._mark(self.version)

    def _adapter(self, version: str) -> str:
        return f"modeseek-{self.run}-{version}"

    def _mark(self, version: str) -> str:
        return f"{self.run}-{version}"

    @property
    def _where(self) -> str:
        return f"{self.sampler.where}: {self.sampler.server.describe()}"

    def describe(self) -> dict[str, Any]:
        """For the run card."""
        server = self.sampler.server
        way = "adapters, loaded at run time" if self.policy.has_adapter else "all, reloaded from disk"
        return {
            "server": server.describe(),
            "model": server.root,
            "version": f"vLLM {server.version}",
            "weights": way,
            "exact": "no: vLLM's samples depend on what else it computes, so a run repeated or resumed draws others",
        }


def in_step(word: str, policy: HFPolicy, folder: Path, *, where: str) -> InStep:
    """The policy behind `vllm:URL`, which serves the same base model. Raises ValueError where it cannot be used."""
    if not word.startswith(PREFIX):
        raise ValueError(f"{where}: {word!r}, expected vllm:URL as in vllm:http://127.0.0.1:8000")
    if policy.stop is not None:
        raise ValueError(f"{where}: not with stop_strings, which only the policy's own sampler knows; leave one out")
    if policy.temperature != 1:
        raise ValueError(f"{where}: not for a policy that is trained at temperature {policy.temperature}")
    model: Any = policy.model
    known = model.get_input_embeddings().num_embeddings
    server = Server.open(word, where=where)
    sampler = VLLMSampler(server, ends=policy.eos, max_new=policy.max_new, vocabulary=known)
    return InStep(policy, sampler, folder)


def _trained(policy: HFPolicy) -> Iterator[tuple[str, Tensor]]:
    """The adapters, or all weights."""
    named = policy.model.named_parameters()
    return ((name, x) for name, x in named if x.requires_grad or not policy.has_adapter)
