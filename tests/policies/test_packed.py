"""The packed path against plain padded transformers: values, gradients, and what must never show."""

import contextlib
import copy
import dataclasses

import peft
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from modeseek.batch import Batch
from modeseek.objectives import DPO, SFT, Loss
from modeseek.objectives.base import Axes
from modeseek.policies import attention, pack
from modeseek.policies.causal import plain_logp
from modeseek.policies.packed import Packed, why_not
from modeseek.train import evaluate

V = 37
SHAPE = dict(
    vocab_size=V,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=0,  # pad is the end token: only masks may tell them apart
)
ONE_KV = {k: v for k, v in SHAPE.items() if k != "num_key_value_heads"}
GEMMA = SHAPE | dict(head_dim=8, sliding_window=4, query_pre_attn_scalar=8)
MOE = SHAPE | dict(head_dim=8, num_experts_per_tok=2)

MODELS = {
    "Llama": lambda: hf.LlamaConfig(**SHAPE),
    "Llama, tied": lambda: hf.LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "Qwen2": lambda: hf.Qwen2Config(**SHAPE),
    "Qwen2, window": lambda: hf.Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "Qwen3": lambda: hf.Qwen3Config(**SHAPE, head_dim=4),
    "Mistral, window": lambda: hf.MistralConfig(**SHAPE, sliding_window=4),
    "Gemma": lambda: hf.GemmaConfig(**SHAPE, head_dim=8),
    "Gemma2": lambda: hf.Gemma2Config(**GEMMA, final_logit_softcapping=3.0, attn_logit_softcapping=2.0),
    "Gemma3": lambda: hf.Gemma3TextConfig(**GEMMA),
    "Phi": lambda: hf.PhiConfig(**SHAPE),  # a bias on the head
    "Phi3": lambda: hf.Phi3Config(**SHAPE),
    "OLMo": lambda: hf.OlmoConfig(**SHAPE),
    "OLMo2": lambda: hf.Olmo2Config(**SHAPE),
    "GPT-NeoX": lambda: hf.GPTNeoXConfig(**ONE_KV),
    "GPT2": lambda: hf.GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=64, eos_token_id=0),
    "Cohere": lambda: hf.CohereConfig(**SHAPE),  # a scale on the logits
    "Granite": lambda: hf.GraniteConfig(**SHAPE, logits_scaling=3.0),
    "Qwen3-MoE": lambda: hf.Qwen3MoeConfig(**MOE, num_experts=3, moe_intermediate_size=8),
    "GPT-OSS": lambda: hf.GptOssConfig(  # attention sinks
        **MOE, num_local_experts=2, sliding_window=4, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
    ),
}
# transformers' eager attention is NaN on float64 padding; its mixtures of experts have no float64
SINGLE = {"Gemma2", "Qwen3-MoE", "GPT-OSS"}


def small(name: str, dtype: torch.dtype | None = None) -> hf.PreTrainedModel:
    """A model with weights far enough from zero for attention to matter."""
    torch.manual_seed(0)
    # Gemma2's soft-cap is lost in the `sdpa` that some releases of transformers give it
    how = {"attn_implementation": "eager"} if name == "Gemma2" else {}
    model = hf.AutoModelForCausalLM.from_config(MODELS[name](), **how).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn_like(p)
    return model.to(dtype or (torch.float32 if name in SINGLE else torch.float64))


def groups(dtype: torch.dtype = torch.float64) -> Batch:
    """Ragged groups, an empty response, a prompt of one token, a group that says nothing, unequal weights."""
    rng = torch.Generator().manual_seed(1)
    ids = lambda n: torch.randint(0, V, (n,), generator=rng).tolist()
    prompts = [ids(7), ids(1), ids(4), ids(5)]
    responses = [[ids(5), ids(9), []], [ids(3), ids(2)], [ids(1)], [[], []]]
    batch = Batch.of(prompts, responses, weight=[1.0, 2.0, 0.5, 1.0])
    noise = lambda *shape: torch.randn(*shape, generator=rng, dtype=dtype)
    return batch.fill(noise=noise(*batch.mask.shape))


def pairs(n: int = 5, longest: int = 6) -> Batch:
    rng = torch.Generator().manual_seed(2)
    ids = lambda: torch.randint(0, V, (int(torch.randint(1, longest + 1, (), generator=rng)),), generator=rng).tolist()
    batch = Batch.of([ids() for _ in range(n)], [[ids(), ids()] for _ in range(n)])
    ref = -3 + torch.randn(*batch.mask.shape, generator=rng, dtype=torch.float64)
    return dataclasses.replace(batch.fill(ref_logp=ref), weight=torch.linspace(0.5, 2, n))


class Plain(nn.Module):
    """Padded rows, and what transformers makes of them."""

    def __init__(self, model: nn.Module, temperature: float = 1.0, reference: nn.Module | None = None):
        super().__init__()
        self.model, self.temperature, self.reference = model, temperature, reference

    def forward(self, tokens, mask, start):
        places = (mask.long().cumsum(1) - 1).clamp(min=0)
        said = self.model(
            input_ids=tokens,
            attention_mask=mask.long(),
            position_ids=places,
            logits_to_keep=tokens.shape[1] - start,
            use_cache=False,
        )
        return said.logits

    def logp(self, batch):
        return plain_logp(self.forward, batch, self.temperature)

    def every(self, batch):
        """log-probability of the whole vocabulary before each response token."""
        P, K, T = batch.response.shape
        S = batch.prompt.shape[1]
        tokens = torch.cat([batch.prompt.repeat_interleave(K, 0), batch.response.flatten(0, 1)], 1)
        mask = torch.cat([batch.prompt_mask.repeat_interleave(K, 0), batch.mask.flatten(0, 1)], 1)
        logp = (self.forward(tokens, mask, S - 1)[:, :-1] / self.temperature).log_softmax(-1)
        return logp.view(P, K, T, -1)

    def entropy(self, batch):
        logp = self.every(batch)
        return -(logp.exp() * logp).sum(-1).masked_fill(~batch.mask, 0.0)

    def kl(self, batch):
        logp = self.every(batch)
        with torch.no_grad(), self.model.disable_adapter() if self.reference is None else contextlib.nullcontext():
            known = (self if self.reference is None else Plain(self.reference, self.temperature)).every(batch)
        return (logp.exp() * (logp - known)).sum(-1).masked_fill(~batch.mask, 0.0)


class Fast(nn.Module):
    """The same by packed rows, as the loop meets it."""

    def __init__(self, model: nn.Module, **options):
        super().__init__()
        self.model, self.packed = model, Packed(model, **options)
        said = self.packed
        self.logp, self.entropy, self.kl, self.evaluate = said.logp, said.entropy, said.kl, said.evaluate


@dataclasses.dataclass(frozen=True)
class Curved:
    """An objective with a gradient of its own for each token, which depends on the rest of its group."""

    axes = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation = source = "this test"

    def __call__(self, logp, mask, noise):
        per_prompt = (logp * noise).masked_fill(~mask, 0.0).sum((1, 2)).square()
        return Loss(per_prompt, {"seen": per_prompt.detach()})


@dataclasses.dataclass(frozen=True)
class Spread:
    axes = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation = source = "this test"

    def __call__(self, logp, entropy, mask, noise):
        own = (logp * noise + (entropy * noise).square()).masked_fill(~mask, 0.0)
        return Loss(own.sum((1, 2)))


@dataclasses.dataclass(frozen=True)
class Pull:
    axes = Axes(on_policy=False, negative_gradient="always", claimed_kl="mode-seeking")
    equation = source = "this test"

    def __call__(self, logp, kl, mask, noise):
        own = (logp * noise + (kl * noise).square()).masked_fill(~mask, 0.0)
        return Loss(own.sum((1, 2)))


def gradients(model: nn.Module, number: torch.Tensor) -> dict[str, torch.Tensor]:
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(number, list(named.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), found, strict=True)}


def apart(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The worst tensor's distance, against its own length or (where that is nearly nothing) a share of the whole's."""
    whole = torch.stack([g.norm() for g in theirs.values()]).norm()
    return max(float((ours[n] - g).norm() / (g.norm() + 1e-3 * whole)) for n, g in theirs.items())


def loss(objective, model, batch: Batch) -> torch.Tensor:
    return (evaluate(objective, model, batch).per_prompt * batch.weight).sum() / 3.0


# transformers computes the norms' squares in float32 whatever the weights are: that is what 1e-6 is for
def close(dtype: torch.dtype) -> float:
    return 1e-6 if dtype == torch.float64 else 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_packed_rows_give_the_padded_rows_numbers(name):
    model = small(name)
    dtype = next(model.parameters()).dtype
    assert why_not(model) is None
    batch, plain = groups(dtype), Plain(model)
    theirs, ours = plain.logp(batch), Packed(model, tile=8).logp(batch)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12 if dtype == torch.float64 else 2e-5)
    total = lambda logp: (logp * batch["noise"]).sum()
    assert apart(gradients(model, total(ours)), gradients(model, total(theirs))) < close(dtype)


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_formed_while_the_tile_is_live_is_the_padded_rows_gradient(name):
    model = small(name)
    dtype = next(model.parameters()).dtype
    batch = groups(dtype)
    ours, theirs = (loss(Curved(), m, batch) for m in (Fast(model, tile=8), Plain(model)))
    torch.testing.assert_close(ours, theirs, rtol=close(dtype), atol=0)
    assert apart(gradients(model, ours), gradients(model, theirs)) < 3 * close(dtype)


@pytest.mark.parametrize("objective", [DPO(), SFT()], ids=repr)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_an_objective_cannot_tell_the_paths_apart(objective, temperature):
    model, batch = small("Llama"), pairs()
    fast, plain = Fast(model, tile=8, temperature=temperature), Plain(model, temperature)
    ours, theirs = evaluate(objective, fast, batch), evaluate(objective, plain, batch)
    torch.testing.assert_close(ours.per_prompt, theirs.per_prompt)
    assert ours.metrics.keys() == theirs.metrics.keys()
    for metric in theirs.metrics:
        torch.testing.assert_close(ours.metrics[metric], theirs.metrics[metric])
    weighted = lambda x: (x.per_prompt * batch.weight).sum()
    assert apart(gradients(model, weighted(ours)), gradients(model, weighted(theirs))) < 1e-6


@pytest.mark.parametrize("name", ["Llama", "Gemma3", "Phi"])
def test_entropy_and_its_gradient_come_from_the_same_tiles(name):
    model, batch = small(name), groups()
    plain, fast = Plain(model, 0.8), Fast(model, tile=5, temperature=0.8)
    torch.testing.assert_close(fast.entropy(batch), plain.entropy(batch))
    theirs = loss(Spread(), plain, batch)
    known = gradients(model, theirs)
    for ours in (loss(Spread(), fast, batch), loss(Spread(), Fast(model, tile=64, temperature=0.8), batch)):
        torch.testing.assert_close(ours, theirs)
        assert apart(gradients(model, ours), known) < 1e-6
    total = lambda m: (m.entropy(batch) * batch["noise"]).sum()
    assert apart(gradients(model, total(fast)), gradients(model, total(plain))) < 1e-6


@pytest.mark.parametrize("tile", [5, 64])
@pytest.mark.parametrize("kind", ["beside", "base", "base, head adapted"])
def test_kl_to_the_reference_is_exact_with_its_gradient(kind, tile):
    batch = groups()
    if kind == "beside":
        model, reference = small("Phi"), small("Phi")
        with torch.no_grad():
            for p in reference.parameters():
                p += 0.1 * torch.randn_like(p)
    else:
        model, reference = adapted(["v_proj", "lm_head"] if "head" in kind else ["v_proj"]), None
    plain, fast = Plain(model, 0.8, reference), Fast(model, tile=tile, temperature=0.8, reference=reference)
    torch.testing.assert_close(fast.kl(batch), plain.kl(batch), atol=1e-9, rtol=1e-6)
    theirs, ours = loss(Pull(), plain, batch), loss(Pull(), fast, batch)
    torch.testing.assert_close(ours, theirs)
    assert apart(gradients(model, ours), gradients(model, theirs)) < 1e-6
    total = lambda m: (m.kl(batch) * batch["noise"]).sum()
    assert apart(gradients(model, total(fast)), gradients(model, total(plain))) < 1e-6


def test_kl_without_a_reference_is_refused():
    with pytest.raises(ValueError, match="needs a reference model"):
        evaluate(Pull(), Fast(_LLAMA), groups())


@settings(max_examples=15, deadline=None)
@given(tile=st.integers(1, 40), budget=st.one_of(st.none(), st.integers(1, 60)), seed=st.integers(0, 99))
def test_neither_tile_nor_budget_nor_order_changes_anything(tile, budget, seed):
    model, batch = _LLAMA, groups()
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
    fast = Fast(model, tile=tile, token_budget=budget)
    said = evaluate(Curved(), fast, batch.prompts(order))
    torch.testing.assert_close(said.per_prompt, _PER_PROMPT[order], rtol=1e-9, atol=1e-12)
    ours = gradients(model, (said.per_prompt * batch.weight[order]).sum())
    assert apart(ours, _GRADIENT) < 1e-6


_LLAMA = small("Llama")
_PER_PROMPT = evaluate(Curved(), Fast(_LLAMA), groups()).per_prompt
_GRADIENT = gradients(_LLAMA, (_PER_PROMPT * groups().weight).sum())


def test_microbatches_add_up():
    whole = groups()
    fast = Fast(_LLAMA, tile=8)
    parts = [loss(Curved(), fast, part) for size in (1, 3) for part in whole.split(size)]
    added = [gradients(_LLAMA, part) for part in parts]
    twice = {n: sum(g[n] for g in added) for n in added[0]}
    assert apart(twice, {n: 2 * g / 3.0 for n, g in _GRADIENT.items()}) < 1e-6  # type: ignore[arg-type]


@pytest.mark.parametrize("tile", [4, 64])
def test_a_gradient_that_is_not_the_loops_is_still_right(tile):
    batch, odd = groups(), torch.tensor([0.3, -1.0, 0.0, 5.0])
    ours, theirs = (evaluate(Curved(), m, batch).per_prompt for m in (Fast(_LLAMA, tile=tile), Plain(_LLAMA)))
    assert apart(gradients(_LLAMA, (ours * odd).sum()), gradients(_LLAMA, (theirs * odd).sum())) < 1e-6


def test_prompts_of_no_weight_teach_nothing():
    batch = dataclasses.replace(groups(), weight=torch.zeros(4))
    ours = gradients(_LLAMA, loss(Curved(), Fast(_LLAMA), batch))
    assert all((g == 0).all() for g in ours.values())


@pytest.mark.parametrize("poisoned", [0, 1, 2])
@pytest.mark.parametrize("name", ["Llama", "Gemma2", "Mistral, window"])
def test_a_poisoned_neighbour_never_shows(name, poisoned):
    model, batch = small(name), groups(torch.float32)
    poison, others = V - 1, [p for p in range(4) if p != poisoned]
    ids = lambda x: x.clone().clamp(max=poison - 1)  # nobody else says the poisoned token
    batch = dataclasses.replace(batch, prompt=ids(batch.prompt), response=ids(batch.response))
    healthy = evaluate(Curved(), Fast(model, tile=8), batch).per_prompt
    batch.prompt[poisoned] = poison
    with torch.no_grad():
        table = model.get_input_embeddings()
        if model.config.tie_word_embeddings:
            model.config.tie_word_embeddings = False
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())
        table.weight[poison] = float("nan")
    sick = evaluate(Curved(), Fast(model, tile=8), batch).per_prompt
    assert sick[poisoned].isnan() == bool(batch.mask[poisoned].any())
    assert torch.equal(sick[others], healthy[others])
    seen = gradients(model, sick[others].sum())  # the poisoned prompt's share is a zero that meets a NaN
    rows = next(g for n, g in seen.items() if g is not None and n.endswith("embed_tokens.weight"))
    words = lambda p: set((batch.prompt[p][batch.prompt_mask[p]].tolist()) + batch.response[p][batch.mask[p]].tolist())
    well = set[int]().union(*(words(p) for p in others)) - words(poisoned)
    assert rows[sorted(well)].isfinite().all() and rows[poison].isnan().any()


def test_what_stands_in_the_padding_is_never_read():
    batch = groups()
    noisy = dataclasses.replace(
        batch,
        prompt=batch.prompt.where(batch.prompt_mask, torch.tensor(V - 1)),
        response=batch.response.where(batch.mask, torch.tensor(V + 1000)),
    )
    fast = Packed(_LLAMA)
    assert torch.equal(fast.logp(batch), fast.logp(noisy))


def test_a_batch_in_which_nothing_is_said_has_a_gradient_of_zero():
    batch = Batch.of([[1, 2], [3]], [[[], []], [[]]], noise=torch.zeros(2, 2, 0, dtype=torch.float64))
    number = loss(Curved(), Fast(_LLAMA), batch)
    assert number == 0
    assert all((g == 0).all() for g in gradients(_LLAMA, number).values())


def test_an_absent_place_is_left_out_even_where_its_mask_is_not():
    batch = groups()
    there = batch.present.clone()
    there[0, 1] = False
    left = Packed(_LLAMA).logp(dataclasses.replace(batch, present=there))
    whole = Packed(_LLAMA).logp(batch)
    assert (left[0, 1] == 0).all() and (whole[0, 1] != 0).any()
    torch.testing.assert_close(left[0, 0], whole[0, 0])


@pytest.mark.parametrize("k", [1, 16])
def test_groups_of_one_and_of_sixteen(k):
    rng = torch.Generator().manual_seed(3)
    ids = lambda n: torch.randint(0, V, (n,), generator=rng).tolist()
    batch = Batch.of([ids(4), ids(2)], [[ids(1 + (3 * i) % 5) for i in range(k)] for _ in range(2)])
    torch.testing.assert_close(Packed(_LLAMA).logp(batch), Plain(_LLAMA).logp(batch))


# ---------------------------------------------------------------- what it costs


class Watching(TorchDispatchMode):
    """Every tensor that an operation made, and every product in which the vocabulary took part."""

    def __init__(self):
        super().__init__()
        self.widest, self.products = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor) and x.ndim == 2 and x.shape[1] == V:
                self.widest = max(self.widest, len(x))
        if func in (torch.ops.aten.mm.default, torch.ops.aten.mm.out, torch.ops.aten.addmm_.default):
            shapes = [x.shape for x in args if isinstance(x, torch.Tensor)]
            self.products += any(V in shape for shape in shapes)
        return out


def test_no_tensor_of_tokens_by_vocabulary_is_larger_than_a_tile():
    batch, fast = pairs(8), Fast(_LLAMA, tile=16)
    with Watching() as seen:
        gradients(_LLAMA, loss(DPO(), fast, batch))
        gradients(_LLAMA, fast.logp(batch).sum())
    assert int(batch.mask.sum()) > 2 * 16 and 0 < seen.widest <= 16


@pytest.mark.parametrize(("frozen", "products"), [(False, 3), (True, 2)])
def test_a_live_tile_costs_three_products_and_two_where_the_head_is_frozen(frozen, products):
    model, batch = small("Llama"), pairs()
    model.lm_head.weight.requires_grad_(not frozen)
    with Watching() as seen:
        gradients(model, loss(DPO(), Fast(model), batch))
    assert seen.products == products
    with Watching() as seen, torch.no_grad():
        loss(DPO(), Fast(model), batch)
    assert seen.products == 1


def checkpoint(model: hf.PreTrainedModel, reentrant: bool) -> None:
    switch = "activation_checkpointing_enable"  # its name since transformers 5.2x
    getattr(model, switch if hasattr(model, switch) else "gradient_checkpointing_enable")({"use_reentrant": reentrant})
    model.train()


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", ["Llama", "GPT-NeoX", "Qwen3-MoE"])
def test_beyond_its_attention_the_last_layer_computes_only_what_is_read(name, checkpointed):
    model, batch = small(name), groups()
    if checkpointed:
        checkpoint(model, reentrant=False)
    layers, seen = model.base_model.layers, {}
    note = lambda n: lambda module, inputs: seen.setdefault(n, []).append(inputs[0].shape[-2])
    inner = lambda layer: (
        next(m for m in layer.mlp.modules() if isinstance(m, nn.Linear)) if name != "Qwen3-MoE" else layer.mlp
    )
    handles = [inner(layers[i]).register_forward_pre_hook(note(i)) for i in (0, -1)]
    loss(Curved(), Fast(model), batch).backward()
    for handle in handles:
        handle.remove()
    # rows of 7+5+9, 1+3+2 and 4+1 tokens; both first tokens of a group are predicted from its prompt's last
    whole, read = 32, 18 if name != "Qwen3-MoE" else 32
    assert seen == {0: [whole] * (1 + checkpointed), -1: [read] * (1 + checkpointed)}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in layers.modules())


@pytest.mark.parametrize("name", ["Llama", "GPT-NeoX", "Qwen3-MoE"])
def test_in_the_last_layer_only_what_is_read_asks(name, monkeypatch):
    asked, calls = [], attention._calls
    monkeypatch.setattr(attention, "_calls", lambda segments, *, read: asked.append(read) or calls(segments, read=read))
    model = small(name)
    loss(Curved(), Fast(model), groups()).backward()
    layers = [False] * (model.config.num_hidden_layers - 1) + [name == "Llama"]
    assert asked == [*layers, *reversed(layers)]


# ---------------------------------------------------------------- adapters, precision, checkpointing


def adapted(targets: list[str]) -> peft.PeftModel:
    torch.manual_seed(0)
    model = peft.get_peft_model(small("Llama"), peft.LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_B" in n:
                p += 0.1 * torch.randn_like(p)
    return model.double().eval()


@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], ["v_proj", "lm_head"]], ids=str)
def test_adapters_learn_the_same_on_the_head_too(targets):
    model, batch = adapted(targets), groups()
    assert why_not(model) is None
    fast, plain = Fast(model, tile=8), Plain(model)
    ours, theirs = loss(Curved(), fast, batch), loss(Curved(), plain, batch)
    torch.testing.assert_close(ours, theirs)
    assert apart(gradients(model, ours), gradients(model, theirs)) < 1e-6
    with model.disable_adapter():
        torch.testing.assert_close(fast.logp(batch), plain.logp(batch))
        assert not torch.allclose(fast.logp(batch).sum(), evaluate(SFT(), plain, batch).per_prompt.sum())


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_layer_recomputes_with_packed_attention(reentrant):
    model, batch = small("Llama"), groups()
    theirs = loss(Curved(), Plain(model), batch)
    expected = gradients(model, theirs)
    checkpoint(model, reentrant)
    ways = [m._gradient_checkpointing_func for m in model.model.layers]
    loss(Curved(), Fast(model, tile=8), batch).backward()
    assert apart({n: p.grad for n, p in model.named_parameters()}, expected) < 1e-6  # type: ignore[misc]
    assert [m._gradient_checkpointing_func for m in model.model.layers] == ways


def test_outside_a_packed_pass_the_model_is_as_it_was():
    model = small("Llama", torch.float32)
    before = model.config._attn_implementation
    tokens = torch.tensor([[1, 5, 9]])
    said = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=4, do_sample=False)
    loss(Curved(), Fast(model), groups(torch.float32)).backward()
    assert model.config._attn_implementation == before and "modeseek" not in model.config.to_json_string()
    again = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=4, do_sample=False)
    assert torch.equal(said, again)


def test_bf16_autocast_errs_no_more_than_it_does_on_padded_rows():
    truth, single, batch = small("Llama"), small("Llama", torch.float32), groups()
    expected = loss(Curved(), Plain(truth), batch)
    exact = gradients(truth, expected)
    batch = groups(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (loss(Curved(), m, batch) for m in (Fast(single, tile=8), Plain(single)))
    errors = []
    for number in (ours, theirs):
        found = {n: g.double() for n, g in gradients(single, number).items()}
        assert all(g.dtype == torch.float32 for g in gradients_of(single))
        errors.append(torch.stack([(found[n] - g).norm() for n, g in exact.items()]).norm())
        number.detach_()
    assert errors[0] < 1.2 * errors[1]


def gradients_of(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def test_a_bf16_model_says_float32_log_probabilities():
    model, batch = small("Llama", torch.bfloat16), groups(torch.float32)
    ours, theirs, truth = (m.logp(batch) for m in (Fast(model), Plain(model), Plain(small("Llama"))))
    assert ours.dtype == theirs.dtype == torch.float32
    assert (ours - truth).abs().mean() < 1.2 * (theirs - truth).abs().mean()
    assert why_not(model) is None


# ---------------------------------------------------------------- what is refused


def test_models_that_cannot_share_a_prompt_say_why():
    tiny = dict(vocab_size=V, hidden_size=16, num_hidden_layers=2)
    mamba = hf.MambaForCausalLM(hf.MambaConfig(**tiny, state_size=4))
    assert "keeps state across tokens" in str(why_not(mamba))
    bloom = hf.BloomForCausalLM(hf.BloomConfig(vocab_size=V, hidden_size=16, n_layer=2, n_head=2))
    assert "does not let its attention be replaced" in str(why_not(bloom))
    lfm = hf.Lfm2ForCausalLM(hf.Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"]))
    assert "a kind that cannot be shared: conv" in str(why_not(lfm))
    stretched = hf.LlamaConfig(**SHAPE, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    assert "rope_type: dynamic" in str(why_not(hf.LlamaForCausalLM(stretched)))
    assert "not a transformers model" in str(why_not(nn.Linear(2, 2)))
    prompted = peft.get_peft_model(small("Llama"), peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    assert "virtual tokens" in str(why_not(prompted))


def test_the_trial_finds_an_unknown_head(monkeypatch):
    model = small("Llama")
    told = model.forward
    odd = lambda *a, **k: (lambda said: dataclasses.replace(said, logits=said.logits.sigmoid()))(told(*a, **k))
    monkeypatch.setattr(model, "forward", odd)
    assert "other log-probabilities" in str(why_not(model))


def test_the_trial_finds_attention_that_looks_ahead():
    model = small("Llama")
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    assert "other log-probabilities" in str(why_not(model))


def test_the_trial_finds_a_window_that_does_not_reach_attention():
    model = small("Mistral, window")
    windowless = copy.deepcopy(model.config)
    windowless.sliding_window = None
    for layer in model.model.layers:
        layer.self_attn.config = windowless
    assert "sliding window" in str(why_not(model))


def test_the_trial_leaves_the_model_in_the_mode_it_found():
    model = small("Llama").train()
    model.model.layers[0].eval()
    why_not(model)
    assert model.training and not model.model.layers[0].training


def test_attention_dropout_is_refused_by_name():
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**SHAPE, attention_dropout=0.1)).train()
    with pytest.raises(ValueError, match=r"attention_dropout: 0.1.*set it to 0"):
        Packed(model).logp(groups())


def test_what_it_cannot_say_is_refused_by_name():
    with pytest.raises(ValueError, match="cannot say value; it says entropy, logp"):
        Packed(_LLAMA).evaluate(groups(), frozenset({"logp", "value"}), lambda part, live: None)
    with pytest.raises(ValueError, match="temperature: 0"):
        Packed(_LLAMA, temperature=0.0)


def test_split_keeps_groups_whole_and_within_the_budget():
    batch = groups()
    assert pack.tokens(batch).tolist() == [7 + 14, 1 + 5, 4 + 1, 5]
    assert [len(p) for p in pack.split(batch, 27)] == [2, 2]  # 21 + 6 fit, then 5 + 5
    assert [len(p) for p in pack.split(batch, 1)] == [1, 1, 1, 1]
    assert [len(p) for p in pack.split(batch, None)] == [4]
