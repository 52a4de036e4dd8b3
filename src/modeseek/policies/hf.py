"""A transformers causal LM as a policy, and the frozen reference of it."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from modeseek.batch import PS, Batch, MaskPS
from modeseek.policies import decode, packed
from modeseek.policies.adapter import unwrapped
from modeseek.policies.base import Sampling
from modeseek.policies.causal import plain_logp, plain_sample
from modeseek.policies.mixture import mixed
from modeseek.policies.stop import Stop

transformers_logging.disable_progress_bar()  # a run has one bar, ours


class HFPolicy(nn.Module):
    """`model` is a transformers causal LM, or one wrapped by peft. Dropout is off, in the reference too.

    Log-probabilities come from packed rows and samples from cached keys and values where the model allows it, else
    from the plain path: the same numbers, and `paths` says which and why. `unverified` takes packed rows on a device on
    which no one has run them, if they pass their trial there. A `critic` has a `value`, weights of its own, and is
    trained with the policy; it is not saved with it.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        eos: Sequence[int],
        max_new: int,
        fast: bool = True,
        token_budget: int | None = None,
        critic: nn.Module | None = None,
        stop: Stop | None = None,
        unverified: bool = False,
    ):
        super().__init__()
        self.critic = None if critic is None else without_dropout(critic)
        self.model, self.eos, self.max_new = without_dropout(model), tuple(eos), max_new
        self.fast, self.token_budget, self.stop, self.unverified = fast, token_budget, stop, unverified
        unasked = "not asked for (fast: false)"
        self._why_plain = packed.why_not(model, unverified=unverified) if fast else unasked
        self._why_uncached = decode.why_not(model) if fast else unasked
        self._packed = None if self._why_plain else packed.Packed(model, token_budget=token_budget)

    def logp(self, batch: Batch) -> Float[Tensor, "P K T"]:
        if not len(batch):  # every prompt tied, say
            return batch.response.new_zeros(batch.response.shape, dtype=torch.float32)
        with self._checkpointing():
            return self._plain_logp(batch) if self._packed is None else self._packed.logp(batch)

    def kl(self, batch: Batch) -> Float[Tensor, "P K T"]:
        """Exact KL per token, in nats, to the base of an adapter or to what `measure_against` was given."""
        if self._packed is None:
            raise ValueError(f"kl per token is said by packed policies only, and this one is not: {self._why_plain}")
        with self._checkpointing():
            return self._packed.kl(batch)

    def measure_against(self, reference: "Reference") -> None:
        """Let `kl` be to this reference; with an adapter it is to the base in any case."""
        if self._packed is not None and not self.has_adapter:
            other = reference._policy.model
            self._packed = packed.Packed(self.model, token_budget=self.token_budget, reference=other)

    def value(self, batch: Batch) -> Float[Tensor, "P K T"]:
        """What the critic expects before each response token."""
        if self.critic is None:
            raise ValueError("value is said by a critic, and this policy has none")
        said: Any = self.critic.value  # type: ignore[union-attr]
        return said(batch)

    def entropy(self, batch: Batch) -> Float[Tensor, "P K T"]:
        if self._packed is None:
            raise ValueError(f"entropy is said by packed policies only, and this one is not: {self._why_plain}")
        return self._packed.entropy(batch)

    def collision(self, batch: Batch) -> Float[Tensor, "P K T"]:
        """log sum_v pi(v)^2 at each response token, without gradient."""
        if self._packed is None:
            raise ValueError(f"collision is said by packed policies only, and this one is not: {self._why_plain}")
        return self._packed.collision(batch)

    def evaluate(self, batch: Batch, wanted: frozenset[str], apply: Callable[[Batch, dict[str, Tensor]], Any]) -> Any:
        """An objective's loss on a batch; see `train.evaluate`."""
        if unknown := [name for name in sorted(wanted) if not hasattr(self, name)]:
            raise ValueError(f"the objective reads {unknown[0]}, which a causal LM without further heads cannot say")
        if self._packed is None or "value" in wanted:  # a critic's values are of no tile of the output layer
            # In one order on every rank of a team: sharded weights are gathered as they are asked for.
            return apply(batch, {name: getattr(self, name)(batch) for name in sorted(wanted)})
        with self._checkpointing():
            return self._packed.evaluate(batch, wanted, apply)

    def sample(self, prompt: PS, prompt_mask: MaskPS, k: int, rng: Generator, **how: Unpack[Sampling]) -> Batch:
        ends = self._ends(prompt_mask)
        if self._why_uncached:
            self._fits(len(prompt), k, prompt.shape[1])
            return plain_sample(self.predict, prompt, prompt_mask, k, rng, **ends, **how)
        ends["token_budget"] = self.token_budget
        return decode.sample(self.model, prompt, prompt_mask, k, rng, **ends, **how)

    def sample_mixed(
        self,
        reference: Any,
        share: float,
        prompt: PS,
        prompt_mask: MaskPS,
        k: int,
        rng: Generator,
        **how: Unpack[Sampling],
    ) -> Batch:
        """From pi^(1 - share) ref^share, normalised at each token; see `policies.mixture`."""
        ends = self._ends(prompt_mask)
        theirs: HFPolicy = reference.module
        if self._why_uncached or theirs._why_uncached:
            self._fits(len(prompt), k, prompt.shape[1])
            forward = mixed(self.predict, reference.predict, share)
            return plain_sample(forward, prompt, prompt_mask, k, rng, **ends, **how)
        ends |= {
            "token_budget": self.token_budget,
            "beside": decode.Beside(theirs.model, share, theirs.without_adapter),
        }
        return decode.sample(self.model, prompt, prompt_mask, k, rng, **ends, **how)

    def without_adapter(self) -> contextlib.AbstractContextManager[Any]:
        """Within, the model is the base that an adapter sits on; without one it is what it is."""
        model: Any = self.model
        return model.disable_adapter() if self.has_adapter else contextlib.nullcontext()

    @property
    def temperature(self) -> float:
        """What divides the logits that log-probabilities are of."""
        return 1.0 if self._packed is None else self._packed.temperature

    @property
    def paths(self) -> dict[str, str]:
        """Which way log-probabilities and samples are computed, and why: for the run card."""
        device = next(self.model.parameters()).device.type
        known = device in packed.VERIFIED or device == "meta"  # nothing is computed there
        run = "" if known else f" (unverified on {device.upper()}: no one has run it there)"
        return {
            "logp": f"plain: {self._why_plain}" if self._why_plain else f"packed rows, shared prompts, fused head{run}",
            "sample": f"plain: {self._why_uncached}" if self._why_uncached else f"shared prefill, cached{run}",
        }

    @property
    def ways(self) -> tuple[str | None, str | None]:
        """Why not packed rows, and why not a shared cache: found by trial, which needs weights."""
        return self._why_plain, self._why_uncached

    def go(self, ways: tuple[str | None, str | None], device: str) -> None:
        """Take on this device the ways that a twin with weights has tried: a model on `meta` cannot try."""
        self._why_plain, self._why_uncached = ways
        if self._why_plain is None and device not in packed.VERIFIED and not self.unverified:
            self._why_plain = f"packed rows have not been verified on {device}"
        self._packed = None if self._why_plain else self._packed

    @property
    def has_adapter(self) -> bool:
        return hasattr(self.model, "disable_adapter")

    def reference(self) -> "Reference":
        """The policy as it is now, frozen: the base with adapters off, or a copy of the weights."""
        if self.has_adapter:
            return Reference(self)
        frozen = copy.deepcopy(self.model).requires_grad_(False)
        options: dict[str, Any] = {"fast": self.fast, "token_budget": self.token_budget, "stop": self.stop}
        options["unverified"] = self.unverified
        return Reference(HFPolicy(frozen, eos=self.eos, max_new=self.max_new, **options))

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """A plain `save_pretrained` directory, or a PEFT adapter, with its tokenizer."""
        self.model.save_pretrained(folder)  # type: ignore[operator]
        tokenizer.save_pretrained(folder)

    @contextlib.contextmanager
    def _checkpointing(self) -> Iterator[None]:
        """transformers recomputes activations only in training mode, and only where a gradient is kept; sampling and
        the reference stay in evaluation mode, where a cache may be used. Dropout is off in both."""
        model = unwrapped(self.model)
        name = "is_activation_checkpointing"  # transformers before 5.18 has the other name
        name = name if hasattr(model, name) else "is_gradient_checkpointing"
        wanted = getattr(model, name, False) and torch.is_grad_enabled()
        self.model.train(wanted)
        try:
            yield
        finally:
            self.model.eval()

    def _plain_logp(self, batch: Batch) -> Float[Tensor, "P K T"]:
        """In parts of at most `token_budget` tokens, padding and repeated prompts included; of one prompt at least."""
        _, K, T = batch.response.shape
        width = max(1, K * (batch.prompt.shape[1] + T))
        parts = batch.split(None if self.token_budget is None else max(1, self.token_budget // width))
        return torch.cat([plain_logp(self.predict, part) for part in parts])

    def _ends(self, prompt_mask: MaskPS) -> dict[str, Any]:
        """When a response to each of these prompts ends."""
        context = getattr(getattr(self.model, "config", None), "max_position_embeddings", None)
        limits = None if context is None else [context - n for n in prompt_mask.sum(1).tolist()]
        return {"eos": self.eos, "max_new": self.max_new, "stop": self.stop, "limits": limits}

    def _fits(self, prompts: int, k: int, width: int) -> None:
        need = prompts * k * (width + self.max_new)
        if self.token_budget is not None and need > self.token_budget:
            raise ValueError(
                f"token_budget: {self.token_budget}, but sampling takes the plain path ({self._why_uncached}), which "
                f"holds all rows of a call, here {need} tokens; give that many, or take fewer prompts or responses"
            )

    def predict(self, tokens: Tensor, mask: Tensor, start: int) -> Tensor:
        """Logits `[B, L - start, V]` of the positions from `start` on, by the plain path."""
        places = (mask.long().cumsum(1) - 1).clamp(min=0)
        said = self.model(
            input_ids=tokens,
            attention_mask=mask.long(),
            position_ids=places,
            logits_to_keep=tokens.shape[1] - start,
            use_cache=False,
        )
        return said.logits


class Reference:
    """A frozen policy. It holds no parameter of its own, so nothing of it can be trained or checkpointed."""

    def __init__(self, policy: HFPolicy):
        self._policy = policy

    @property
    def module(self) -> HFPolicy:
        """The policy that answers: its weights are what is cut into pieces over several processes."""
        return self._policy

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter(())

    @torch.no_grad()
    def logp(self, batch: Batch) -> Float[Tensor, "P K T"]:
        with self._frozen():
            return self._policy.logp(batch)

    def sample(self, prompt: PS, prompt_mask: MaskPS, k: int, rng: Generator, **how: Unpack[Sampling]) -> Batch:
        with self._frozen():
            return self._policy.sample(prompt, prompt_mask, k, rng, **how)

    @torch.no_grad()
    def predict(self, tokens: Tensor, mask: Tensor, start: int) -> Tensor:
        with self._frozen():
            return self._policy.predict(tokens, mask, start)

    def _frozen(self) -> contextlib.AbstractContextManager[Any]:
        return self._policy.without_adapter()


def without_dropout(model: nn.Module) -> nn.Module:
    """The same module with every dropout at zero, so that policy and reference agree and reruns repeat."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout", "hidden_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model.eval()
