"""What a pass holds at its peak: the real model code run on tensors that have a shape and no contents.

Torch's FakeTensorMode gives every operation's result its shape, and a counter watches storages come and go; so the
activations of any architecture, of LoRA, of autocast and of checkpointing are what they are, with nothing loaded.
"""

from __future__ import annotations

import functools
import json
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from modeseek.policies.adapter import Lora, adapted
from modeseek.policies.decode import lean
from modeseek.policies.hf import without_dropout
from modeseek.policies.pack import Row, Segment
from modeseek.policies.packed import Packed

_NOT_OF_THE_MODEL = ("architectures", "transformers_version", "dtype", "torch_dtype", "_name_or_path")
_TILE = int(1.5 * 2**30)  # bytes of logits at once on a GPU, as in policies.packed


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A model as it is trained."""

    config: str  # config.json
    dtype: str = "float32"
    lora: Lora | None = None
    bf16: bool = False  # autocast
    checkpointing: bool = False
    on_gpu: bool = False  # the output layer's tile is larger there

    def told(self) -> dict[str, Any]:
        """The keys of config.json that are the model's."""
        return {k: v for k, v in json.loads(self.config).items() if k not in _NOT_OF_THE_MODEL}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes of what a model has for as long as it is trained, and its numbers of parameters."""

    parameters: int
    trained: int
    embedding: int  # parameters of the embedding
    head: int  # of the output layer; those of the embedding too, where they are tied
    tied: bool
    weights: int
    gradients: int  # once all are there; AdamW has two numbers of the same dtype for each
    largest: int  # bytes of the largest trained tensor


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Bytes that a forward and backward take beyond weights and gradients. Layers add `layer` each."""

    fixed: int  # held when the backward begins, whatever the depth: the output layer's gradients among it
    layer: int  # held of each layer
    passing: int  # on top of that for a moment
    bottom: int  # at least, however few the layers: the embedding's own gradient before it is added

    def peak(self, layers: int) -> int:
        """Of a model so deep."""
        return max(self.fixed + layers * self.layer + self.passing, self.bottom)


@dataclass(frozen=True)
class Groups:
    """`prompts` groups of one prompt and `responses` responses each, lengths in tokens."""

    prompts: int
    responses: int
    prompt: int
    response: int

    @property
    def packed(self) -> int:
        """Tokens with each prompt once."""
        return self.prompts * (self.prompt + self.responses * self.response)


@functools.cache
def sizes(learner: Learner, *, scores: bool = False) -> Sizes:
    """Of the whole model; with `scores` of the reward model on the same body."""
    model: Any = _scorer(learner) if scores else _causal(learner)
    every = list(model.parameters())
    own = [p for p in every if p.requires_grad]
    size = lambda p: p.numel() * p.element_size()
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    return Sizes(
        parameters=sum(p.numel() for p in every),
        trained=sum(p.numel() for p in own),
        embedding=embedding.numel(),
        head=0 if head is None else head.weight.numel(),
        tied=head is not None and head.weight is embedding,
        weights=sum(map(size, every)),
        gradients=sum(map(size, own)),
        largest=max(map(size, own)),
    )


@functools.cache
def training_pass(learner: Learner, groups: Groups) -> Pass:
    """Forward and backward of packed groups."""

    def run(model: Any) -> Callable[[], Tensor]:
        packed = Packed(model, tile=_tile(learner) if learner.on_gpu else None)
        head: Any = packed._head
        row = _row(groups)

        def pass_() -> Tensor:
            h = packed._states(row)
            if head.fused:
                return _Output.apply(h, head.module.weight, head.tile)  # type: ignore[return-value]
            return head(h, row.target)["logp"].sum()

        return pass_

    return _pass(learner, _causal, run)


@functools.cache
def scoring_pass(learner: Learner, groups: Groups) -> Pass:
    """Forward and backward of a reward model or a critic: padded rows, a prompt before each response."""

    def run(model: Any) -> Callable[[], Tensor]:
        tokens = torch.zeros(groups.prompts * groups.responses, groups.prompt + groups.response, dtype=torch.long)

        def pass_() -> Tensor:
            hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
            return model.score(hidden).float().sum()

        return pass_

    return _pass(learner, _scorer, run)


def _pass(learner: Learner, make: Callable[[Learner], Any], run: Callable[[Any], Callable[[], Tensor]]) -> Pass:
    """Two depths say what a layer adds."""
    one, two = (_measured(learner, make, run, depth) for depth in (1, 2))
    layer = two.held - one.held
    return Pass(fixed=one.held - layer, layer=layer, passing=two.top - two.held, bottom=two.peak)


class _Moments(NamedTuple):
    """Bytes, with all gradients there before."""

    held: int  # when the backward begins
    top: int  # at most until a layer has its gradient
    peak: int


def _measured(
    learner: Learner, make: Callable[[Learner], Any], run: Callable[[Any], Callable[[], Tensor]], depth: int
) -> _Moments:
    model, live, top = make(_shallow(learner, depth)), _Live(), list[int]()
    with FakeTensorMode():
        model = _faked(model)
        for name, p in model.named_parameters():
            p.grad = torch.zeros_like(p) if p.requires_grad else None
            if p.requires_grad and ".layers." in name:
                p.register_post_accumulate_grad_hook(lambda _: top.append(live.peak))
        model.train(learner.checkpointing)
        pass_ = run(model)
        with live:
            with torch.autocast("cpu", torch.bfloat16, enabled=learner.bf16):
                loss = pass_()
            held = live.now
            loss.backward()
    assert top, "no layer is trained"
    return _Moments(held, top[0], live.peak)


@functools.cache
def reading_pass(learner: Learner, tokens: int) -> int:
    """Bytes beyond the weights while `tokens` packed tokens are read without a gradient."""
    model = _causal(_shallow(learner, 2))
    with FakeTensorMode(), torch.no_grad():
        model = _faked(model)
        packed = Packed(model, tile=_tile(learner) if learner.on_gpu else None)
        row, live = _row(Groups(1, 1, tokens // 2, tokens - tokens // 2)), _Live()
        with live:
            said = packed._head(packed._states(row), row.target)
        del said
    return live.peak


@functools.cache
def copied(learner: Learner) -> int:
    """Bytes of the copies of its weights that a rollout driven by hand makes; 0 where the model drives itself."""
    one, two = (_copied(_shallow(learner, depth)) for depth in (1, 2))
    return one + (learner.told()["num_hidden_layers"] - 1) * (two - one)


def _copied(learner: Learner) -> int:
    if learner.on_gpu:
        return 0
    model, live = _causal(learner), _Live()
    with FakeTensorMode(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=learner.bf16):
        model = _faked(model)
        if not lean.fits(model):
            return 0
        with live:
            body = lean.Lean(model, 1)
        again = (*body.matrices, body.head)  # once more, for steps of few rows
        return live.now + sum(m.weight.numel() * m.weight.element_size() for m in again)


class _Live(TorchDispatchMode):
    """Counts the bytes of storages that were made within and are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given: list[Tensor] = []
        tree_map_only(Tensor, given.append, (args, kwargs or {}))
        before = {t.untyped_storage()._cdata for t in given}
        made = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, lambda t: self._note(t, before), made)
        return made

    def _note(self, tensor: Tensor, before: set[int]) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known or key in before:  # a view, or written in place
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        weakref.finalize(storage, self._gone, key, size)
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _Output(torch.autograd.Function):
    """The room that policies.head takes for one tile after the other, without its arithmetic (which asks for values):
    a tile of logits, the gradients gathered over tiles, and their scaled copies in the backward."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, tile: int) -> Tensor:
        device = h.device.type
        cast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else h.dtype
        states, matrix = h.to(cast), weight.to(cast)
        room = torch.empty(min(tile, len(h)), len(weight), dtype=torch.float32)
        grad_h = torch.zeros_like(states)
        grad_weight = torch.zeros_like(matrix, dtype=torch.float32) if weight.requires_grad else None
        back = room.to(cast)
        if grad_weight is not None and cast != torch.float32:
            grad_weight += back.t() @ states[: len(back)]
        ctx.save_for_backward(h, weight, grad_h, grad_weight)
        return h.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        h, weight, grad_h, grad_weight = ctx.saved_tensors
        scaled = None if grad_weight is None else (grad_weight * 0.5).to(weight.dtype)
        return (grad_h * 0.5).to(h.dtype), scaled, None


def _faked(model: Any) -> Any:
    """The same modules with tensors of no contents on a CPU in place of those on the meta device: autocast and the
    CPU's attention take no notice of the difference. To be called within a FakeTensorMode."""
    known: dict[int, nn.Parameter] = {}  # tied weights stay tied
    for module in model.modules():
        for name, old in list(module._parameters.items()):
            if old is not None and id(old) not in known:
                known[id(old)] = nn.Parameter(torch.empty(old.shape, dtype=old.dtype), old.requires_grad)
            if old is not None:
                module._parameters[name] = known[id(old)]
        for name, old in list(module._buffers.items()):
            if old is not None:
                module._buffers[name] = torch.empty(old.shape, dtype=old.dtype)
    return model


def _causal(learner: Learner) -> Any:
    """On the meta device."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_config(learner), dtype=getattr(torch, learner.dtype))
    model = without_dropout(model)
    if learner.checkpointing:
        _checkpoint(model)
    if learner.lora is None:
        return model
    with torch.device("meta"):
        return adapted(model, learner.lora).eval()


def _scorer(learner: Learner) -> Any:
    config = _config(learner)
    config.num_labels = 1
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config, dtype=getattr(torch, learner.dtype))
    if learner.checkpointing:
        _checkpoint(model)
    return without_dropout(model)


def _checkpoint(model: Any) -> None:
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _config(learner: Learner) -> Any:
    told = learner.told()
    return AutoConfig.for_model(told.pop("model_type"), **told)


def _shallow(learner: Learner, depth: int) -> Learner:
    told = {**learner.told(), "num_hidden_layers": depth}
    if "layer_types" in told:
        told["layer_types"] = told["layer_types"][:depth]
    return replace(learner, config=json.dumps(told))


def _tile(learner: Learner) -> int:
    return max(512, _TILE // (4 * learner.told()["vocab_size"]))


def _row(groups: Groups) -> Row:
    """A packed row of equal groups, as `pack` lays it out."""
    length, each = groups.prompt + groups.responses * groups.response, (groups.response,) * groups.responses
    segments = tuple(Segment(p * length, groups.prompt, each) for p in range(groups.prompts))
    n = groups.prompts * groups.responses * groups.response
    ids = lambda many: torch.zeros(many, dtype=torch.long)
    mask = torch.ones(groups.prompts, groups.responses, groups.response, dtype=torch.bool)
    return Row(
        ids(groups.packed), ids(groups.packed), segments, ids(n), ids(n), (n // groups.prompts,) * groups.prompts, mask
    )
