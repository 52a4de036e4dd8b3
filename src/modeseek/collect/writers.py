"""Who writes responses: a policy that is loaded here, or one that a server holds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Generator

from modeseek.build import context_of, device_of, load_policy
from modeseek.collect.plan import Plan
from modeseek.collect.rows import Response
from modeseek.collect.served import Served
from modeseek.config import Run
from modeseek.data.records import Record, Text
from modeseek.data.tokenise import Groups, Template
from modeseek.ops import seq
from modeseek.policies.hf import HFPolicy
from modeseek.sources import Sampler


@runtime_checkable
class Writer(Protocol):
    """Writes `k` responses to each prompt, the same ones for the same seed where it can; none to one it cannot take."""

    @property
    def identity(self) -> str:
        """What it is, by content."""
        ...

    def write(self, prompts: Sequence[Text], k: int, seed: int) -> list[list[Response]]: ...


@dataclass(frozen=True, kw_only=True)
class Own:
    """A policy that is loaded here."""

    name: str
    policy: HFPolicy
    template: Template
    policy_hash: str
    step: int | None
    plan: Plan

    @property
    def identity(self) -> str:
        return self.policy_hash

    def write(self, prompts: Sequence[Text], k: int, seed: int) -> list[list[Response]]:
        """Sampled in one batch, so that a chunk is drawn alike however often it is."""
        limit = min(self.plan.max_length, context_of(self.policy) or self.plan.max_length)
        records = [Record(prompt=prompt, row=i) for i, prompt in enumerate(prompts)]
        longest = self.plan.max_completion_length
        groups = Groups.from_prompts(records, self.template, max_length=limit, max_completion_length=longest)
        device = next(iter(self.policy.parameters())).device
        told = groups.prompts(slice(None)).to(device)
        draw = Sampler(policy=self.policy, k=k, temperature=self.plan.temperature, top_p=self.plan.top_p)
        with torch.no_grad():
            own = draw(told, Generator(device).manual_seed(seed)).to("cpu")
        logp = seq(own["old_logp"], own.mask)
        found: list[list[Response]] = [[] for _ in prompts]
        for p, record in enumerate(groups.records):
            for i in range(k):
                tokens = own.response[p, i][own.mask[p, i]].tolist()
                found[record.row].append(
                    Response(
                        text=self.template.decode(tokens),
                        writer=self.name,
                        draw=f"{seed}.{record.row}.{i}",
                        policy_hash=self.policy_hash,
                        step=self.step,
                        temperature=self.plan.temperature,
                        logp=float(logp[p, i]),
                        tokens=len(tokens),
                        finished=bool(own["finished"][p, i]),
                    )
                )
        return found


def open_writer(word: str, plan: Plan, name: str = "") -> Writer:
    """A policy by folder, run, hub name, or `URL#MODEL`. `name` is what the store calls it; unset: the word."""
    if word.startswith(("http://", "https://")):
        url, _, model = word.partition("#")
        if not model:
            raise ValueError(f"policies: {word}: which model? Write {url}#MODEL, as the server calls it")
        return Served.open(
            url,
            model,
            name=name or model,
            key_env=plan.api_key_env,
            temperature=plan.temperature,
            top_p=plan.top_p,
            max_tokens=plan.max_completion_length,
        )
    inside = Path(word) / "model"
    folder = str(inside) if inside.is_dir() else word
    template = Template.load(folder, trust_remote_code=plan.trust_remote_code)
    run = dataclasses.replace(Run(), dtype=plan.dtype, trust_remote_code=plan.trust_remote_code)
    policy = load_policy(folder, template, max_new=plan.max_completion_length, run=run, device=device_of(plan.device))
    return Own(
        name=name or word,
        policy=policy,
        template=template,
        policy_hash=weights_hash(policy.model),
        step=_steps(Path(folder)),
        plan=plan,
    )


def weights_hash(model: torch.nn.Module) -> str:
    """16 hex digits of a model's parameters and buffers, by name: the same weights under any file name."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _steps(folder: Path) -> int | None:
    """The optimiser steps behind a model, where the run that trained it stands around it."""
    card = folder.parent / "card.json"
    if folder.name != "model" or not card.is_file():
        return None
    steps: Any = json.loads(card.read_text(encoding="utf-8")).get("steps")
    return steps if isinstance(steps, int) else None
