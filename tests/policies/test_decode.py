"""Fast rollouts against transformers' own generate() and forward."""

import re
from functools import cache as cache_calls

import pytest
import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from scipy import stats
from torch import nn

from modeseek.batch import Batch
from modeseek.policies.base import pick, uniform
from modeseek.policies.decode import body, cache, lean, rollout, sample, why_not

VOCAB = 61
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CPU, bucket = torch.device("cpu"), cache.Bucket
GQA = {"num_key_value_heads": 2}
EAGER = {"experts_implementation": "eager"}  # the grouped product knows no float64
MODELS = {
    "llama": ("Llama", GQA),
    "llama-tied-bias": ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama3-rope": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 100.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "mistral": ("Mistral", GQA | {"sliding_window": 6}),
    "qwen2": ("Qwen2", GQA),
    "qwen2-window": ("Qwen2", GQA | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("Qwen3", GQA | {"head_dim": 16}),
    "gemma2": (
        "Gemma2",
        GQA | {"head_dim": 16, "sliding_window": 5, "attn_logit_softcapping": 2.0, "attn_implementation": "eager"},
    ),
    "gemma3": ("Gemma3", GQA | {"head_dim": 16, "sliding_window": 5, "sliding_window_pattern": 2}),
    "phi": ("Phi", {}),
    "phi3": ("Phi3", GQA | {"sliding_window": 7}),
    "olmo2": ("Olmo2", GQA),
    "gpt-neox": ("GPTNeoX", {}),
    "gpt2": ("GPT2", {"n_inner": 48}),
    "gpt-oss": (
        "GptOss",
        GQA | {"head_dim": 16, "sliding_window": 5, "num_local_experts": 2, "num_experts_per_tok": 2} | EAGER,
    ),
    "mixtral": ("Mixtral", GQA | {"num_local_experts": 2} | EAGER),
}
CONFIG = {"gemma3": "Gemma3TextConfig"}
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [3], [12, 0, 4], [2, 2], [20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30]]


def build(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    kind, extra = MODELS[name]
    config = getattr(transformers, CONFIG.get(name, f"{kind}Config"))(**(SMALL | extra))
    torch.manual_seed(0)
    model = getattr(transformers, {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM"))(config)
    for p in model.parameters():  # biases, norms and sinks are born at zero or one, where nothing shows
        p.data += 0.1 * torch.randn_like(p)
    return model.to(dtype).eval()


QUICK = {"llama", "mistral", "qwen2-window", "qwen3", "gemma2", "gemma3", "gpt-neox", "gpt2"}


@pytest.fixture(
    scope="module", params=[pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in MODELS]
)
def model(request):
    return build(request.param)


@pytest.fixture(scope="module")
def llama():
    return build("llama")


@pytest.fixture(params=["shared", "repeated"])
def prompts_are(request, monkeypatch):
    """A prompt's keys once for its group, or once for each response: which one is a matter of size."""
    monkeypatch.setattr(rollout, "_share", lambda *sizes: request.param == "shared")
    return request.param


def roll(model: nn.Module, prompts: list[list[int]], k: int, max_new: int, *, eos=(), seed=0, **options) -> Batch:
    batch = Batch.of(prompts, [[] for _ in prompts])
    rng = torch.Generator().manual_seed(seed)
    return sample(model, batch.prompt, batch.prompt_mask, k, rng, eos=eos, max_new=max_new, **options)


@cache_calls
def generate(model, prompt: tuple[int, ...], max_new: int, eos: tuple[int, ...]) -> list[int]:
    ids = torch.tensor([prompt])
    ones = torch.ones_like(ids)
    new = {"max_new_tokens": max_new, "do_sample": False, "eos_token_id": list(eos), "pad_token_id": 0}
    return model.generate(ids, attention_mask=ones, **new)[0, len(prompt) :].tolist()


def written(batch: Batch, p: int, k: int) -> list[int]:
    return batch.response[p, k][batch.mask[p, k]].tolist()


@torch.no_grad()
def forward_logits(model, batch: Batch, p: int, k: int) -> torch.Tensor:
    """Of one response's tokens [T, V]: alone, unpadded, in the model's own attention."""
    prompt, said = batch.prompt[p][batch.prompt_mask[p]], batch.response[p, k][batch.mask[p, k]]
    row = torch.cat([prompt, said])[None]
    return model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits[0, len(prompt) - 1 : -1]


def forward_logp(model, batch: Batch) -> torch.Tensor:
    out = torch.zeros_like(batch["old_logp"])
    for p, group in enumerate(batch.mask):
        for k, mask in enumerate(group):
            logp = forward_logits(model, batch, p, k).to(out.dtype).log_softmax(-1)
            out[p, k][mask] = logp.gather(-1, batch.response[p, k][mask][:, None]).squeeze(-1)
    return out


def assert_same(a: Batch, b: Batch, **close: float) -> None:
    assert (a.response == b.response).all() and (a.mask == b.mask).all()
    assert (a["finished"] == b["finished"]).all()
    torch.testing.assert_close(a["old_logp"], b["old_logp"], **(close or {"rtol": 1e-6, "atol": 1e-6}))


def test_every_listed_architecture_takes_the_path(model):
    assert why_not(model) is None


def test_greedy_is_what_generate_writes(model, prompts_are):
    """Ragged prompts, one of a single token, pad and end tokens within; every sample of a group is the same."""
    eos = [2, 17, 33]
    batch = roll(model, PROMPTS, 3, 14, eos=eos, temperature=0.0)
    for p, prompt in enumerate(PROMPTS):
        want = generate(model, tuple(prompt), 14, tuple(eos))
        assert [written(batch, p, k) for k in range(3)] == [want] * 3
        assert batch["finished"][p].tolist() == [want[-1] in eos] * 3


def test_old_logp_is_the_plain_forward_s(model, prompts_are):
    """Closer than 1e-6 no two ways of float64 agree: transformers computes its norms in float32 all the same."""
    batch = roll(model, PROMPTS, 3, 12, eos=[2, 17])
    torch.testing.assert_close(batch["old_logp"], forward_logp(model, batch), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 16])
def test_any_number_of_samples_keeps_the_law(llama, k, prompts_are):
    batch = roll(llama, PROMPTS, k, 9, eos=[2, 17, 40, 41, 42, 43])
    assert batch.response.shape[:2] == (5, k)
    torch.testing.assert_close(batch["old_logp"], forward_logp(llama, batch), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "llama3-rope", "mistral", "qwen2", "qwen2-window", "qwen3"])
@pytest.mark.parametrize("weights", ["transposed", "head in blocks", "head as it lies", "for so many rows"])
def test_the_hand_driven_body_says_what_the_modules_say(name, weights, prompts_are, monkeypatch):
    if weights.startswith("head"):
        monkeypatch.setattr(lean, "WIDE", 0)
    if weights == "head as it lies":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    if weights == "for so many rows":
        monkeypatch.setattr(lean, "SMALL", 0)
    model = build(name, torch.float32)
    assert lean.fits(model)
    by_hand = roll(model, PROMPTS, 3, 12, eos=[2, 17, 33])
    torch.testing.assert_close(by_hand["old_logp"], forward_logp(model, by_hand), rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(lean, "fits", lambda model: False)
    assert_same(by_hand, roll(model, PROMPTS, 3, 12, eos=[2, 17, 33]), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not lean.MKL, reason="torch without MKL")
def test_the_weights_are_laid_out_for_as_many_rows_as_there_are(monkeypatch):
    """Fifteen, to which rows are added as responses end; for a chunk of more rows anew; for 25 in another way."""
    monkeypatch.setattr(lean, "SMALL", 0)
    model, eos, laid = build("llama", torch.float32), list(range(2, 9)), []
    lay_out = lean.Lean._lay_out
    monkeypatch.setattr(lean.Lean, "_lay_out", lambda self, n: laid.append((n, lay_out(self, n))) or laid[-1][1])
    batch = roll(model, PROMPTS, 3, 12, eos=eos)
    torch.testing.assert_close(batch["old_logp"], forward_logp(model, batch), rtol=1e-5, atol=1e-5)
    assert {rows for _, rows in laid} == {15} and min(n for n, _ in laid) < 8
    laid.clear()
    assert_same(batch, roll(model, PROMPTS, 3, 12, eos=eos, token_budget=80), rtol=1e-5, atol=1e-5)
    assert {rows for _, rows in laid} == {3, 6}
    laid.clear()
    roll(model, PROMPTS, 5, 12, eos=eos)
    assert laid[0] == (25, 25) and all(n == rows for n, rows in laid)


def test_what_is_not_plain_is_not_driven_by_hand():
    assert not lean.fits(build("llama-tied-bias", torch.float32))
    assert not lean.fits(build("llama"))
    assert not lean.fits(build("gemma2", torch.float32))
    hooked = build("llama", torch.float32)
    hooked.model.layers[0].mlp.register_forward_hook(lambda module, args, out: out * 2)
    assert not lean.fits(hooked)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_bfloat16_is_as_near_as_the_model_s_own(name):
    """Errors against float32 of our log-probabilities and of the plain forward's, both in bfloat16."""
    exact, model = build(name, torch.float32), build(name, torch.bfloat16)
    batch = roll(model, PROMPTS, 4, 12)
    assert batch["old_logp"].dtype == torch.float32
    want = forward_logp(exact, batch)
    ours, theirs = ((x - want).square().mean().sqrt() for x in (batch["old_logp"], forward_logp(model, batch)))
    assert ours < 1.5 * theirs


def test_autocast_is_heard():
    """Under bfloat16 autocast the log-probabilities are those of the plain forward under it, to its precision."""
    model = build("llama", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        batch = roll(model, PROMPTS, 3, 8)
        want = forward_logp(model, batch)
    torch.testing.assert_close(batch["old_logp"], want, rtol=0.05, atol=0.05)
    exact = forward_logp(model, batch)
    assert (batch["old_logp"] - exact).abs().max() > 1e-3


def test_dropping_finished_rows_changes_nothing(llama, prompts_are, monkeypatch):
    eos = list(range(2, 30))  # about half of the vocabulary: rows end at every step
    dropped = roll(llama, PROMPTS, 16, 10, eos=eos)
    monkeypatch.setattr(rollout, "ALIVE", -1.0)
    assert_same(dropped, roll(llama, PROMPTS, 16, 10, eos=eos))


def test_chunks_change_nothing(llama, prompts_are):
    """11 + 3 x 8 tokens for the longest prompt: 35 takes them one by one, 105 three at a time."""
    whole = roll(llama, PROMPTS, 3, 8, eos=[2, 17])
    for budget in (35, 105):
        assert_same(whole, roll(llama, PROMPTS, 3, 8, eos=[2, 17], token_budget=budget))


def test_a_chunk_holds_no_more_than_the_budget(llama, monkeypatch):
    held = []

    class Watched(cache.Cache):
        def next(self):
            super().next()
            held.append(0)
            for bucket in self.buckets:
                _, groups, _, width, room, _ = bucket.layers[0].own.shape
                held[-1] += groups * width * room + bucket.groups * bucket.S * bucket.share

    monkeypatch.setattr(rollout, "Cache", Watched)
    for worth in (0, 1000):
        monkeypatch.setattr(rollout, "WORTH", worth)
        roll(llama, PROMPTS * 3, 2, 8, token_budget=100)
    assert 50 < max(held) <= 100


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])  # float32 is driven by hand
def test_buckets_of_similar_length_change_nothing(dtype, prompts_are, monkeypatch):
    llama, eos = build("llama", dtype), [2, 17, 30, 31, 32, 33, 34, 35]
    one = roll(llama, PROMPTS, 6, 10, eos=eos)
    made = []
    monkeypatch.setattr(rollout, "WORTH", 0)
    monkeypatch.setattr(cache, "Bucket", lambda *args, **kw: made.append(args[0]) or bucket(*args, **kw))
    assert_same(one, roll(llama, PROMPTS, 6, 10, eos=eos), rtol=1e-5, atol=1e-6)
    assert made == [[11, 7], [3, 2], [1]]


def test_a_bucket_opens_only_where_it_spares_enough():
    """Lengths 40, 30, 20, 9: halves end at 20 and 10; two prompts of at most 20 spare 2 x 20 tokens, one 11."""
    made = lambda worth: [b.lengths for b in cache.Cache([40, 30, 20, 9], 1, 1, CPU, share=False, worth=worth).buckets]
    assert made(None) == [[40, 30, 20, 9]] == made(40)
    assert made(39) == [[40, 30], [20, 9]]
    assert made(10) == [[40, 30], [20], [9]]


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 1, 4, 9])
@pytest.mark.parametrize("asking", [1, 3, 7])
def test_the_last_tokens_of_a_prompt_hear_what_they_hear_among_all(asking, window, softcap, monkeypatch):
    monkeypatch.setattr(cache, "QUERIES", 2)
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 7, 8, generator=rng, dtype=torch.float64) for heads in (4, 2, 2))
    scores = q @ k.repeat_interleave(2, 1).mT * 0.3
    scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
    seen = torch.ones(7, 7).tril().triu(1 - (window or 7))
    want = scores.masked_fill(seen == 0, float("-inf")).softmax(-1) @ v.repeat_interleave(2, 1)
    got = cache._causal(q[:, :, -asking:], k, v, cache.Law(0.3, window, softcap))
    torch.testing.assert_close(got, want[:, :, -asking:])


@pytest.mark.parametrize("share", [True, False])
def test_values_may_be_narrower_than_keys(share):
    rng = torch.Generator().manual_seed(0)
    drawn = lambda n: [torch.randn(1, 2, n, d, generator=rng, dtype=torch.float64) for d in (8, 8, 4)]
    held, layer = cache.Cache([3], 2, 1, CPU, share=share), torch.nn.Identity()
    layer.layer_idx = 0
    token = body._cache.set(held)
    q, k, v = drawn(3)
    read, _ = body.attention(layer, q, k, v, None)
    torch.testing.assert_close(read.transpose(1, 2), F.scaled_dot_product_attention(q, k, v, is_causal=True))
    held.start()
    q, own_k, own_v = drawn(2)  # a token of each of two responses
    step, _ = body.attention(layer, q, own_k, own_v, None)
    body._cache.reset(token)
    for row in range(2):
        at = slice(row, row + 1)
        seen = (torch.cat([x, own[:, :, at]], 2) for x, own in ((k, own_k), (v, own_v)))
        torch.testing.assert_close(step[:, row], F.scaled_dot_product_attention(q[:, :, at], *seen)[:, :, 0])


def test_the_neighbours_of_a_prompt_do_not_matter(llama, prompts_are):
    together = roll(llama, PROMPTS, 2, 8, temperature=0.0)
    for p, prompt in enumerate(PROMPTS):
        alone = roll(llama, [prompt], 2, 8, temperature=0.0)
        assert (alone.response[0] == together.response[p]).all()


def test_what_stands_under_the_padding_is_never_read(llama):
    batch = Batch.of(PROMPTS, [[] for _ in PROMPTS])
    poisoned = batch.prompt.masked_fill(~batch.prompt_mask, 10**9)
    rng = torch.Generator().manual_seed(0)
    got = sample(llama, poisoned, batch.prompt_mask, 2, rng, eos=[2], max_new=6)
    assert_same(got, roll(llama, PROMPTS, 2, 6, eos=[2]))


def test_the_same_generator_writes_the_same_responses(llama):
    assert_same(roll(llama, PROMPTS, 4, 8, seed=3), roll(llama, PROMPTS, 4, 8, seed=3))
    assert (roll(llama, PROMPTS, 4, 8, seed=3).response != roll(llama, PROMPTS, 4, 8, seed=4).response).any()


def test_a_response_stops_at_the_limit_or_behind_its_end_token(llama):
    batch = roll(llama, PROMPTS, 16, 7, eos=[2, 17, 33, 40, 41])
    ends = torch.isin(batch.response, torch.tensor([2, 17, 33, 40, 41])) & batch.mask
    length = batch.mask.sum(-1)
    assert (ends.any(-1) == batch["finished"]).all() and batch["finished"].any() and not batch["finished"].all()
    assert (ends.sum(-1) <= 1).all()
    assert (length[~batch["finished"]] == 7).all() and batch.response.shape[2] == 7
    last = batch.response.gather(-1, length[..., None] - 1).squeeze(-1)
    assert torch.isin(last[batch["finished"]], torch.tensor([2, 17, 33, 40, 41])).all()
    assert (batch["old_logp"][~batch.mask] == 0).all() and (batch.response[~batch.mask] == 0).all()


def test_no_column_is_longer_than_the_longest_response(llama):
    batch = roll(llama, PROMPTS, 2, 50, eos=list(range(VOCAB)))
    assert batch.response.shape == (5, 2, 1) and batch["finished"].all()


@pytest.mark.parametrize("heads", [2, 4])
def test_one_prompt_has_any_number_of_samples(heads, prompts_are, monkeypatch):
    """Its keys are shared by a group of one: with a key for each query head, what it hears lies head by head."""
    monkeypatch.setitem(MODELS, "llama", ("Llama", {"num_key_value_heads": heads}))
    model = build("llama", torch.float32)
    assert lean.fits(model)
    batch = roll(model, [PROMPTS[0] * 3], 5, 7, seed=2)
    torch.testing.assert_close(batch["old_logp"], forward_logp(model, batch), rtol=1e-4, atol=1e-4)


def test_one_token_is_enough(llama):
    assert roll(llama, PROMPTS, 2, 1).response.shape == (5, 2, 1)


def test_no_prompts_give_no_responses(llama):
    none = torch.zeros(0, 4, dtype=torch.long)
    batch = sample(llama, none, none.bool(), 2, torch.Generator(), eos=[2], max_new=4)
    assert batch.response.shape == (0, 2, 0)


@pytest.mark.parametrize("vocab", [7, 512, 513, 1100])
def test_tokens_come_up_as_often_as_their_probability_says(vocab):
    """Chi-square over 30,000 draws, places of fewer than ten expected joined; small, edge and blocked vocabularies."""
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(1)) * 2
    logits[0, ::5] = float("-inf")
    draws = 30_000
    u = uniform((draws,), torch.Generator().manual_seed(0), logits.device)
    token = torch.cat([pick(logits.expand(len(part), -1), part, 1.0, 1.0, 0)[0] for part in u.split(10_000)])
    p = logits[0].double().softmax(-1)
    counts, rare = torch.bincount(token, minlength=vocab).double(), p * draws < 10
    assert counts[p == 0].sum() == 0
    got = torch.cat([counts[~rare], counts[rare].sum()[None]])
    want = torch.cat([p[~rare], p[rare].sum()[None]]) * draws
    used = want > 0
    assert stats.chisquare(got[used], want[used]).pvalue > 1e-3


def test_the_unit_interval_is_cut_at_the_running_sums():
    """p = .1 .2 .3 .4: edges .1 .3 .6 1. Then each token's share is cut in 300."""
    p = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    at = torch.tensor([0.0, 0.0501, 0.1501, 0.2901, 0.3101, 0.5901, 0.6101, 1 - 2.0**-52], dtype=torch.float64)
    token, logp = pick(p.log().expand(8, -1), at, 1.0, 1.0, 0)
    assert token.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    torch.testing.assert_close(logp, p.log()[token])
    wide = (p / 300).repeat_interleave(300).log()
    token, _ = pick(wide.expand(8, -1), at, 1.0, 1.0, 0)
    assert token.tolist() == [0, 150, 300 + 75, 300 + 285, 600 + 10, 600 + 290, 900 + 7, 1199]


def test_a_token_without_probability_is_never_drawn():
    """Zeros at both ends and within, u at its extremes."""
    for vocab in (9, 1000):
        logits = torch.full((2, vocab), float("-inf"))
        logits[:, [vocab // 3, vocab // 2]] = 0.0
        token, logp = pick(logits, torch.tensor([0.0, 1 - 2.0**-52], dtype=torch.float64), 1.0, 1.0, 0)
        assert token.tolist() == [vocab // 3, vocab // 2]
        torch.testing.assert_close(logp, torch.tensor([0.5, 0.5]).log())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_tokens_come_up_as_often_as_the_model_says(dtype, monkeypatch):
    """All 25 responses of two tokens over a vocabulary of five, enumerated; 40,000 samples, by both bodies."""
    monkeypatch.setitem(MODELS, "tiny", ("Llama", GQA | {"vocab_size": 5, "eos_token_id": 2}))
    model = build("tiny", dtype)
    batch = roll(model, [[3, 4]], 40_000, 2)
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    rows = torch.cat([torch.tensor([[3, 4]]).expand(25, -1), pairs], 1)
    with torch.no_grad():
        logp = model(input_ids=rows).logits.double().log_softmax(-1)[:, 1:3].gather(-1, pairs[..., None]).sum((1, 2))
    counts = torch.bincount(batch.response[0] @ torch.tensor([5, 1]), minlength=25)
    assert stats.chisquare(counts, logp.exp() / logp.exp().sum() * 40_000).pvalue > 1e-3


def test_temperature_and_truncation_are_in_the_reported_log_probability(llama):
    batch = roll(llama, [[5, 6, 7], [8]], 4, 6, temperature=0.5, top_k=2)
    for p in range(2):
        for k in range(4):
            best = (forward_logits(llama, batch, p, k) / 0.5).softmax(-1).topk(2)
            said = batch.response[p, k]
            want = (best.values / best.values.sum(-1, keepdim=True))[best.indices == said[:, None]].log()
            torch.testing.assert_close(batch["old_logp"][p, k], want, rtol=1e-6, atol=1e-6)
    greedy = roll(llama, PROMPTS, 2, 6, temperature=0.0)
    assert (roll(llama, PROMPTS, 2, 6, top_p=1e-9).response == greedy.response).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adapters_are_heard_and_switching_them_off_silences_them(dtype, prompts_are):
    torch.manual_seed(0)
    plain = build("llama", dtype)
    adapted = get_peft_model(build("llama", dtype), LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    for name, p in adapted.named_parameters():
        if "lora_" in name:
            nn.init.normal_(p, std=0.3)
    adapted.eval()
    assert why_not(adapted) is None
    batch = roll(adapted, PROMPTS, 3, 8, eos=[2])
    torch.testing.assert_close(batch["old_logp"], forward_logp(adapted, batch), rtol=1e-5, atol=1e-5)
    with adapted.disable_adapter():
        assert_same(roll(adapted, PROMPTS, 3, 8), roll(plain, PROMPTS, 3, 8), rtol=1e-5, atol=1e-5)


def test_an_optimiser_step_is_heard_at_once(prompts_are):
    """Nothing of the weights is kept between two rollouts."""
    model = build("llama", torch.float32)
    before = roll(model, PROMPTS, 2, 6)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.data.mul_(-3)
    after = roll(model, PROMPTS, 2, 6)
    assert (before["old_logp"] != after["old_logp"]).any()
    torch.testing.assert_close(after["old_logp"], forward_logp(model, after), rtol=1e-5, atol=1e-5)


def test_the_model_is_left_as_it_was(llama):
    before = llama.config._attn_implementation
    roll(llama, PROMPTS, 2, 3)
    why_not(llama)
    with pytest.raises(ValueError):
        roll(llama, PROMPTS, 2, 3, eos=[VOCAB])
    assert llama.config._attn_implementation == before
    ids = torch.tensor([PROMPTS[0]])
    llama(input_ids=ids).logits.sum().backward()
    assert llama.model.embed_tokens.weight.grad is not None
    llama.zero_grad()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_returned_can_meet_a_gradient(dtype):
    """Tensors of inference mode could not."""
    model = build("llama", dtype)
    batch = roll(model, PROMPTS, 2, 4, eos=[2])
    scale = torch.ones((), dtype=dtype, requires_grad=True)
    (batch["old_logp"] * scale).exp().sum().backward()
    assert not any(x.is_inference() for x in batch.tensors().values())


def test_dropout_while_sampling_is_refused():
    MODELS["dropout"] = ("Llama", {"attention_dropout": 0.5})
    model = build("dropout").train()
    with pytest.raises(ValueError, match=r"attention_dropout: 0.5.*model.eval\(\)"):
        roll(model, PROMPTS, 2, 3)
    del MODELS["dropout"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"token_budget": 26}, "token_budget: 26 is too small.*at least 27"),
        ({"eos": [VOCAB]}, "eos: .61. are not all tokens of the model, which has 0 to 60"),
        ({"k": 0}, "k: 0"),
        ({"max_new": 0}, "max_new: 0"),
    ],
)
def test_what_cannot_be_honoured_is_refused(llama, asked, said):
    options = {"k": 2, "max_new": 8, "eos": [2]} | asked
    batch = Batch.of(PROMPTS, [[] for _ in PROMPTS])
    k = options.pop("k")
    with pytest.raises(ValueError, match=said):
        sample(llama, batch.prompt, batch.prompt_mask, k, torch.Generator(), **options)


def test_a_prompt_without_tokens_is_refused(llama):
    with pytest.raises(ValueError, match="prompt 1 has no token"):
        roll(llama, [[3], []], 2, 3)


REFUSED = {
    "mamba": ("Mamba", {"state_size": 4}, "layers"),
    "bloom": ("Bloom", {"n_layer": 3, "n_head": 4}, "0 of its 3 layers|shared cache"),
    "dynamic-rope": (
        "Llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        "dynamic",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_share_says_why(name, monkeypatch):
    kind, extra, reason = REFUSED[name]
    monkeypatch.setitem(MODELS, name, (kind, extra))
    said = why_not(build(name, torch.float32))
    assert said is not None and re.search(reason, said), said


def test_prompt_tuning_cannot_share(llama):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    assert why_not(get_peft_model(build("llama"), config).eval()) is not None


def test_a_model_that_ignores_positions_is_found_out(llama):
    """A planted bug: the same weights, every token believed to stand where it lies in the packed row."""
    model = build("llama")
    forward = model.forward

    def careless(position_ids=None, **rest):
        return forward(**rest)

    model.forward = careless
    said = why_not(model)
    assert said is not None and "differ" in said


def test_a_window_that_is_not_passed_on_is_found_out():
    """A planted bug: the layer is declared sliding, but its attention does not say how far."""
    model = build("qwen2-window")
    for layer in model.model.layers:
        layer.self_attn.sliding_window = None
    said = why_not(model)
    assert said is not None and "sliding windows" in said
