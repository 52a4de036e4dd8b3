"""Who writes responses: a policy that is loaded here, or one that a server holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator

from modeseek.batch import Batch
from modeseek.build import context_of, device_of, load_policy
from modeseek.collect.labels import Sampled
from modeseek.collect.plan import Plan
from modeseek.collect.rows import Response
from modeseek.collect.served import Served
from modeseek.config import Run
from modeseek.data.records import Record, Text, text
from modeseek.data.template import Template
from modeseek.data.tokenise import tokenise_prompts
from modeseek.ops import seq
from modeseek.policies.base import Policy
from modeseek.policies.cache import tensors_hash
from modeseek.policies.features import see
from modeseek.policies.hf import HFPolicy
from modeseek.policies.load import end_tokens, saved_generation
from modeseek.policies.sync import in_step
from modeseek.policies.vllm import PREFIX, Server, VLLMSampler
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
    """A policy whose tokens are ours to write and to read: loaded here, or held by a vLLM server."""

    name: str
    policy: Policy
    template: Template
    context: int | None  # tokens that it reads at most, where it says so
    plan: Plan
    identity: str  # hash of the weights, or URL#MODEL
    policy_hash: str = ""
    step: int | None = None
    reads: HFPolicy | None = None  # where it is loaded here: shows its states

    def write(self, prompts: Sequence[Text], k: int, seed: int) -> list[list[Response]]:
        """Sampled in one batch, so that a chunk is drawn alike however often it is."""
        limit = min(self.plan.max_length, self.context or self.plan.max_length)
        records = [Record(prompt=prompt, row=i) for i, prompt in enumerate(prompts)]
        longest = self.plan.max_completion_length
        groups = tokenise_prompts(records, self.template, max_length=limit, max_completion_length=longest)
        parameter = next(iter(self.policy.parameters()), None)
        device = torch.device("cpu") if parameter is None else parameter.device
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

    @torch.no_grad()
    def states(self, groups: Sequence[Sampled]) -> list[Float[np.ndarray, "K H"]]:
        """What the policy makes of responses, whoever wrote them: the mean of its last layer's states over each."""
        assert self.reads is not None
        limit = min(self.plan.max_length, self.context or self.plan.max_length) - 1
        prompts = [self.template.prompt_ids(prompt)[-limit:] for prompt, _ in groups]
        encode = lambda one, prompt: self.template.response_ids(text(one.text), prompt)
        told = [[encode(one, prompt) for one in responses] for prompt, responses in groups]
        room = [limit + 1 - len(ids) for ids in prompts]
        told = [[ids[:n] for ids in group] for group, n in zip(told, room, strict=True)]
        found = see(self.reads, Batch.of(prompts, told)).features.float().cpu().numpy()
        return [x[: len(group)] for x, group in zip(found, told, strict=True)]


def reader(writers: Sequence[Writer]) -> Own:
    """The first policy that is loaded here. Raises ValueError where there is none."""
    for one in writers:
        if isinstance(one, Own) and one.reads is not None:
            return one
    raise ValueError("features: model, but no policy is loaded here: a server shows no states; leave it out")


def open_writer(word: str, plan: Plan, name: str = "") -> Writer:
    """A policy by folder, run, hub name, `vllm:URL` or `URL#MODEL`. `name` is the store's; unset: the word."""
    if plan.stop_strings and (plan.sampler or word.startswith((PREFIX, "http://", "https://"))):
        raise ValueError(f"stop_strings: {word} is answered by a server, which would cut them off; leave them out")
    if word.startswith(PREFIX):
        return _held(word, plan, name)
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
    how = {"stop_strings": plan.stop_strings, "token_budget": plan.token_budget, "dtype": plan.dtype}
    run = dataclasses.replace(Run(), trust_remote_code=plan.trust_remote_code, **how)  # type: ignore[arg-type]
    policy = load_policy(folder, template, max_new=plan.max_completion_length, run=run, device=device_of(plan.device))
    aside = Path(f"{plan.store}.sampler")  # weights on their way to a server
    known = tensors_hash(policy.model.state_dict().items())
    return Own(
        name=name or word,
        policy=in_step(plan.sampler, policy, aside, where="sampler") if plan.sampler else policy,
        template=template,
        context=context_of(policy),
        plan=plan,
        identity=known,
        policy_hash=known,
        step=_steps(Path(folder)),
        reads=policy,
    )


def _held(word: str, plan: Plan, name: str) -> Own:
    """A model that only its vLLM server has: it is sent our tokens, so that its tokenizer is needed here."""
    server = Server.open(word, where="policies")
    try:
        template = Template.load(server.root, trust_remote_code=plan.trust_remote_code)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"policies: {word} serves {server.root}, whose tokenizer is not to be had here: {first}"
        ) from None
    ends = end_tokens(saved_generation(server.root), template.tokenizer)
    sampler = VLLMSampler(server, ends=ends, max_new=plan.max_completion_length)
    known = server.describe()
    return Own(name=name or known, policy=sampler, template=template, context=server.context, plan=plan, identity=known)


def _steps(folder: Path) -> int | None:
    """The optimiser steps behind a model, where the run that trained it stands around it."""
    card = folder.parent / "card.json"
    if folder.name != "model" or not card.is_file():
        return None
    steps: Any = json.loads(card.read_text(encoding="utf-8")).get("steps")
    return steps if isinstance(steps, int) else None
