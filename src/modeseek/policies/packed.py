"""The fast path of a transformers causal LM: packed rows, shared prompts, a fused head; the same numbers."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from modeseek.batch import Batch
from modeseek.ops import token_logp
from modeseek.policies import last
from modeseek.policies.adapter import unwrapped
from modeseek.policies.attention import packed_attention
from modeseek.policies.head import Against, Form, Head, Said, computed_in
from modeseek.policies.layout import Layout
from modeseek.policies.pack import Row, pack, split

VERIFIED = ("cpu",)  # devices on which somebody has run packed rows

Loss = TypeVar("Loss")  # an objective's, with `per_prompt` and `metrics`; objectives stand beside policies, not below


class Packed:
    """What a causal LM says of a Batch, computed on packed rows. It owns no weights: the model stays whoever's it is.

    `temperature` divides the logits, as it did when the responses were sampled. `tile` is how many tokens' logits
    exist at once; unset, 512 on a CPU and as many as fit into 1.5 GiB elsewhere. `token_budget` cuts a batch into
    several rows of at most so many tokens: it bounds memory where no gradient is kept. `reference` is what `kl` is
    measured against, a frozen model that can be packed too; unset, the same weights with their adapters off.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        temperature: float = 1.0,
        tile: int | None = None,
        token_budget: int | None = None,
        reference: nn.Module | None = None,
    ):
        if temperature <= 0:
            raise ValueError(f"temperature: {temperature}, expected above 0: log-probabilities need a distribution")
        base = unwrapped(model)
        assert isinstance(base, PreTrainedModel), "why_not was not asked"
        module = base.get_output_embeddings()
        assert module is not None, "why_not was not asked"
        form, self.temperature = dataclasses.replace(_form(base.config), temperature=temperature), temperature
        self._base, self._head, self.token_budget = base, Head(module, form, tile or _tile(module)), token_budget
        self._without_adapter: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
        self._reference = None if reference is None else Packed(reference, temperature=temperature)
        if reference is None and hasattr(model, "disable_adapter"):
            self._reference, self._without_adapter = self, model.disable_adapter  # type: ignore[assignment]

    @property
    def says(self) -> frozenset[str]:
        """What it can say of each response token."""
        return frozenset({"logp", "entropy"} | ({"kl"} if self._reference is not None else set()))

    def logp(self, batch: Batch) -> Float[Tensor, "P K T"]:
        """log-probability of every response token, in nats; zero where the response has none."""
        return self._say(batch, ("logp",))["logp"]

    def entropy(self, batch: Batch) -> Float[Tensor, "P K T"]:
        """Entropy of the distribution that each response token was drawn from, in nats; zero where there is none."""
        return self._say(batch, ("entropy",))["entropy"]

    def kl(self, batch: Batch) -> Float[Tensor, "P K T"]:
        """KL(pi || pi_ref) of the next token before each response token, exact, in nats; zero where there is none."""
        self._check(frozenset({"kl"}))
        return self._say(batch, ("kl",))["kl"]

    @torch.no_grad()
    def collision(self, batch: Batch) -> Float[Tensor, "P K T"]:
        """log sum_v pi(v)^2 of the distribution that each response token was drawn from; zero where there is none."""
        found = []
        for part in split(batch, self.token_budget):
            row = pack(part)
            tiles = self._states(row).split(self._head.tile)
            said = [(2 * self._head.log_softmax(h)).logsumexp(-1) for h in tiles]
            found.append(_scattered(torch.cat(said), row.mask))
        return torch.cat(found)

    def evaluate(self, batch: Batch, wanted: frozenset[str], apply: Callable[[Batch, dict[str, Tensor]], Loss]) -> Loss:
        """An objective's loss, applied to whole prompts while their logits are live; see `train.evaluate`."""
        self._check(wanted)
        names = tuple(sorted(wanted))
        if not self._head.fused or len(batch) == 0 or not names:
            return apply(batch, self._say(batch, names) if names else {})
        parts = [self._evaluate(part, names, apply) for part in split(batch, self.token_budget)]
        return _joined([loss for some in parts for loss in some])

    def _check(self, wanted: frozenset[str]) -> None:
        unknown = sorted(wanted - self.says)
        if unknown == ["kl"]:
            raise ValueError("the objective reads kl, which needs a reference model beside the policy or LoRA's base")
        if unknown:
            raise ValueError(f"a packed policy cannot say {', '.join(unknown)}; it says {', '.join(sorted(self.says))}")

    def _evaluate(
        self, batch: Batch, names: tuple[str, ...], apply: Callable[[Batch, dict[str, Tensor]], Loss]
    ) -> list[Any]:
        row, seen = pack(batch), list[Any]()

        def applied(first: int, stop: int, said: Said) -> tuple[Tensor, Said]:
            part, where = batch.prompts(slice(first, stop)), row.mask[first:stop]
            leaves = {name: _scattered(x, where).requires_grad_() for name, x in said.items()}  # [p, K, T]
            with torch.enable_grad():
                loss: Any = apply(part, leaves)
                grads = _gradients(loss.per_prompt, leaves)
            seen.append(loss)
            return loss.per_prompt.detach(), {name: grad[where] for name, grad in grads.items()}

        h, against = self._states(row), self._against(row) if "kl" in names else None
        per_prompt = self._head.apply(h, row.target, row.counts, batch.weight, names, against, applied)
        sizes = [len(loss.per_prompt) for loss in seen]
        return [
            dataclasses.replace(loss, per_prompt=own) for loss, own in zip(seen, per_prompt.split(sizes), strict=True)
        ]

    def _say(self, batch: Batch, names: tuple[str, ...]) -> dict[str, Float[Tensor, "P K T"]]:
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        for part in split(batch, self.token_budget):
            row = pack(part)
            said = self._head(self._states(row), row.target, names, self._against(row) if "kl" in names else None)
            for name, x in said.items():
                found[name].append(_scattered(x, row.mask))
        return {name: torch.cat(parts) for name, parts in found.items()}

    def _against(self, row: Row) -> Against:
        """The reference's log-probabilities of the whole vocabulary, a tile at a time: it is asked again in the
        backward, where neither autocast nor the adapter's switch is as it was."""
        ours, off = self._reference, self._without_adapter
        assert ours is not None
        with torch.no_grad(), off():
            h = ours._states(row)
        dtype = computed_in(h)

        def tile(at: slice) -> Tensor:
            with torch.no_grad(), off(), torch.autocast(h.device.type, dtype, enabled=dtype != h.dtype):
                return ours._head.log_softmax(h[at])

        return tile

    def _states(self, row: Row, layout: Layout | None = None) -> Float[Tensor, "N D"]:
        """The body's last hidden states, where a response token is predicted from."""
        body = _body(self._base)
        with packed_attention(self._base, self._read(row)):
            said = body(
                input_ids=row.tokens[None],
                position_ids=row.positions[None],
                attention_mask=None,
                use_cache=False,
                packed=layout or self._layout(row),
            )
        return said.last_hidden_state[0].index_select(0, row.before)

    def _read(self, row: Row) -> Tensor | None:
        return None if _body(self._base)._forward_hooks else row.read  # whoever watches it reads all

    def _layout(self, row: Row) -> Layout:
        return Layout.of(row, None if self._read(row) is None else last.number(self._base))


def why_not(model: nn.Module, *, unverified: bool = False) -> str | None:
    """Why a model must take the plain path; None where packed rows give the same numbers.

    Known reasons first, then a trial: two short groups, computed both ways. `unverified` lets through paths that no
    one has yet run on their hardware.
    """
    if any(getattr(c, "is_prompt_learning", False) for c in getattr(model, "peft_config", {}).values()):
        return "its adapter puts virtual tokens in front of each row"
    base = unwrapped(model)
    if not isinstance(base, PreTrainedModel):
        return f"a {type(base).__name__} is not a transformers model"
    config, name = base.config, type(base).__name__
    if getattr(config, "is_encoder_decoder", False):
        return f"{name} is an encoder and a decoder"
    if not getattr(base, "_supports_attention_backend", False):
        return f"{name} does not let its attention be replaced: it keeps state across tokens, or is older than that"
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"{name} has layers of a kind that cannot be shared: {', '.join(sorted(kinds))}"
    scaled = {r.get("rope_type") for r in _ropes(config)} & {"dynamic", "longrope"}
    if scaled:
        return f"{name} scales its positions by the longest row of a batch (rope_type: {scaled.pop()})"
    if _body(base) is base or base.get_output_embeddings() is None:
        return f"{name} has no output layer apart from its body"
    device = next(base.parameters()).device.type
    if device == "meta":
        return None
    if device not in VERIFIED and not unverified:
        return f"packed rows have not been verified on {device} (HFPolicy's unverified: true takes them all the same)"
    return _trial(model, base)


def _trial(model: nn.Module, base: PreTrainedModel) -> str | None:
    vocab, device = base.config.get_text_config().vocab_size, next(base.parameters()).device
    ids = lambda start, n: [(7 * i + start) % vocab for i in range(n)]
    groups = [[ids(5, 6), ids(11, 3)], [ids(2, 1), ids(3, 4)]]
    batch = Batch.of([ids(1, 5), ids(4, 12)], groups).to(device)  # in the last layer only the longer one's end asks
    with torch.no_grad(), _evaluating(base):
        windows: list[int | None] = []
        try:
            packed = Packed(model)
            row = pack(batch)
            layout = packed._layout(row)
            ours = packed._head(packed._states(row, layout), row.target)["logp"]
            windows = layout.windows
            plain = _plain(base, batch)
        except Exception as error:  # whatever a foreign model raises, it is a reason and not a crash
            return f"a trial failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    expected = _sliding(base.config)
    if sum(w is not None for w in windows) < expected:
        return f"{expected} of its layers have a sliding window that does not reach the attention function"
    apart = float((ours - plain).abs().max() / plain.abs().max())
    limit = {torch.float64: 1e-6, torch.float32: 1e-4}.get(next(base.parameters()).dtype, 5e-2)
    if not apart <= limit:
        return f"a trial gave other log-probabilities than the plain path (relative difference {apart:.1e})"
    return None


def _plain(base: PreTrainedModel, batch: Batch) -> Float[Tensor, " N"]:
    """log-probabilities one response at a time, without padding: some models are NaN there in float64."""
    found = []
    for p, k in batch.present.nonzero().tolist():
        prompt, response = batch.prompt[p][batch.prompt_mask[p]], batch.response[p, k][batch.mask[p, k]]
        logits = base(input_ids=torch.cat([prompt, response])[None], use_cache=False).logits[0]
        found.append(token_logp(logits[len(prompt) - 1 : -1], response))
    return torch.cat(found)


def _sliding(config: Any) -> int:
    """How many layers look back only so far."""
    if getattr(config, "layer_types", None):
        return list(config.layer_types).count("sliding_attention")
    return config.num_hidden_layers if getattr(config, "sliding_window", None) else 0


def _ropes(config: Any) -> list[dict[str, Any]]:
    told = getattr(config, "rope_parameters", None) or {}
    nested = [r for r in told.values() if isinstance(r, dict)]  # one for each kind of layer
    return nested or [told]


def _form(config: Any) -> Form:
    """What this architecture does to its raw logits. The trial finds out where this does not know one."""
    scale = getattr(config, "logit_scale", None) or 1.0
    return Form(
        scale=float(scale) / float(getattr(config, "logits_scaling", None) or 1.0),
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def _body(base: PreTrainedModel) -> nn.Module:
    return base.base_model


def _tile(head: nn.Module) -> int:
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_cuda:
        return 512
    return max(512, int(1.5 * 2**30 / (4 * len(weight))))


def _scattered(x: Float[Tensor, " N"], mask: Tensor) -> Tensor:
    return x.new_zeros(mask.shape).masked_scatter(mask, x)


def _gradients(per_prompt: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of the sum over prompts; a prompt's loss reads its own group alone, so each gets its own gradient."""
    if not per_prompt.requires_grad:  # a group may have nothing to learn from
        return {name: torch.zeros_like(x) for name, x in leaves.items()}
    found = torch.autograd.grad(per_prompt.sum(), list(leaves.values()), allow_unused=True)
    return {n: torch.zeros_like(x) if g is None else g for (n, x), g in zip(leaves.items(), found, strict=True)}


def _joined(losses: list[Any]) -> Any:
    first = losses[0]
    metrics = {name: torch.cat([loss.metrics[name] for loss in losses]) for name in first.metrics}
    return dataclasses.replace(first, per_prompt=torch.cat([x.per_prompt for x in losses]), metrics=metrics)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, and everything as it was afterwards."""
    training = [m for m in model.modules() if m.training]
    try:
        model.eval()
        yield
    finally:
        for module in training:
            module.training = True
