"""A text ends a response: against transformers' `stop_strings`, on both ways of sampling."""

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from modeseek.batch import Batch
from modeseek.build import load_policy
from modeseek.collect.plan import Plan, identity
from modeseek.collect.writers import open_writer
from modeseek.commands.evaluate import Evaluate, _trial
from modeseek.config import load
from modeseek.data.template import Template
from modeseek.policies.causal import plain_sample
from modeseek.policies.decode import sample
from modeseek.policies.hf import HFPolicy
from modeseek.policies.load import load_model
from modeseek.policies.stop import Stop
from modeseek.record import read
from modeseek.runs import train
from modeseek.selftest import SelfTestFailed, _ends_once
from small_tokenizers import byte_level, space_before, words

SHARED = Path(__file__).parents[3] / "shared"
TOKENIZERS = {"byte level": byte_level, "space before": space_before}


def tiny_llama(vocab):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=vocab, max_position_embeddings=64, initializer_range=0.3, eos_token_id=1, **shape)
    return LlamaForCausalLM(config).double().eval()


def forward_of(model):
    def forward(tokens, mask, start):
        places = (mask.long().cumsum(1) - 1).clamp(min=0)
        said = model(input_ids=tokens, attention_mask=mask.long(), position_ids=places, use_cache=False)
        return said.logits[:, start:]

    return forward


def written(batch):
    return [[batch.response[p, k][m].tolist() for k, m in enumerate(group)] for p, group in enumerate(batch.mask)]


@pytest.mark.parametrize("kind", ["byte level", "space before"])
def test_a_response_ends_as_generates_does(kind):
    """Greedily, from prompts of several lengths: the texts are what the model is about to say, cut anywhere."""
    tokenizer = TOKENIZERS[kind]()
    model = tiny_llama(len(tokenizer))
    prompts = [[5, 9, 30], [40, 7], [11, 12, 13, 14, 15]]
    told = Batch.of(prompts, [[]] * 3)
    free = sample(model, told.prompt, told.prompt_mask, 1, torch.Generator(), eos=[1], max_new=24, temperature=0.0)
    said = tokenizer.decode(written(free)[1][0][6:12]).strip()
    texts = [said[len(said) // 3 : len(said) // 3 + 3], tokenizer.decode(written(free)[2][0][9:10]).strip() or "zz"]
    stop, rng = Stop(texts, tokenizer, len(tokenizer)), torch.Generator()
    options = {"eos": [1], "max_new": 24, "temperature": 0.0, "stop": stop}
    ours = sample(model, told.prompt, told.prompt_mask, 2, rng, **options)
    plain = plain_sample(forward_of(model), told.prompt, told.prompt_mask, 2, rng, **options)
    assert written(plain) == written(ours) and (plain["finished"] == ours["finished"]).all()
    for p, prompt in enumerate(prompts):
        new = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": 1, "pad_token_id": 0}
        ids = torch.tensor([prompt])
        row = model.generate(ids, attention_mask=ids * 0 + 1, **new, stop_strings=texts, tokenizer=tokenizer)
        assert written(ours)[p] == [row[0, len(prompt) :].tolist()] * 2
    assert ours["finished"].all(1)[1:].all()
    assert ours.mask.sum() < 2 * free.mask.sum()  # something was cut


def test_a_real_model_stops_where_generate_does():
    if not (SHARED / "models/stories260k").exists():
        pytest.skip("../shared/models/stories260k is not beside this checkout")
    folder = str(SHARED / "models/stories260k")
    template, model = Template.load(folder), load_model(folder)
    policy = HFPolicy(
        model, eos=[2], max_new=60, stop=Stop([". ", "named Tim"], template.tokenizer, model.config.vocab_size)
    )
    prompts = [template.prompt_ids(x) for x in ("Once upon a time", "Lily had a dog. He", "The sun was")]
    told = Batch.of(prompts, [[]] * 3)
    ours = policy.sample(told.prompt, told.prompt_mask, 1, torch.Generator(), temperature=0.0)
    for p, prompt in enumerate(prompts):
        row = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=60,
            do_sample=False,
            eos_token_id=2,
            stop_strings=list(policy.stop.texts),
            tokenizer=template.tokenizer,
        )
        assert written(ours)[p][0] == row[0, len(prompt) :].tolist()
        assert any(text in template.decode(written(ours)[p][0]) for text in policy.stop.texts)


def test_a_text_may_be_completed_by_any_token_that_holds_its_end():
    """By hand on words: `w1 w2` reads " w1 w2" behind another word."""
    tokenizer = words()
    w = lambda i: 3 + i
    stop = Stop(["1 w2"], tokenizer, 200)
    assert stop([w(1), w(2)]) and stop([w(5), w(31), w(2)]) and stop([w(1), w(22)])
    assert not stop([w(2), w(1)]) and not stop([w(2)])
    may = stop._may_end
    assert len(may) == 200 and may[w(2)] and may[w(25)] and not may[w(1)] and not may[150:].any()


def test_a_text_of_bytes_and_of_special_tokens_is_found():
    tokenizer = byte_level()
    ids = lambda text: tokenizer.encode(text, add_special_tokens=False)
    stop = Stop(["é", "<|im_start|>"], tokenizer, len(tokenizer))
    assert len(ids("é")) == 2  # two bytes, neither of which reads as a letter alone
    assert stop(ids("sky é")) and not stop(ids("sky e")) and not stop(ids("é")[:1])
    assert stop([*ids("foo"), tokenizer.convert_tokens_to_ids("<|im_start|>")])
    assert stop._may_end[ids("é")[-1]]


@pytest.mark.parametrize("texts", [[], [""], ["a", ""]])
def test_a_text_without_a_character_is_refused(texts):
    with pytest.raises(ValueError, match="at least one character"):
        Stop(texts, words(), 103)


def test_dropping_finished_rows_and_chunks_do_not_change_where_a_text_ends_them(monkeypatch):
    """Sampled: what is written without the text, cut behind its first place."""
    tokenizer = words()
    model = tiny_llama(len(tokenizer))
    told = Batch.of([[5, 9, 30], [40, 7], [11, 12, 13, 14, 15]], [[]] * 3)
    roll = lambda **how: sample(
        model, told.prompt, told.prompt_mask, 6, torch.Generator().manual_seed(3), eos=[1], max_new=20, **how
    )
    stop = Stop(["w7", "w12 "], tokenizer, len(tokenizer))
    free = written(roll())
    cut = [[row[: next((i for i in range(1, len(row) + 1) if stop(row[:i])), len(row))] for row in g] for g in free]
    for budget in (None, 140):
        ours = roll(stop=stop, token_budget=budget)
        assert written(ours) == cut
        ends = [[stop(row) or row[-1] == 1 for row in group] for group in cut]
        assert ours["finished"].tolist() == ends
    assert cut != free and any(len(row) == 20 for group in cut for row in group)


def test_each_prompts_responses_may_have_a_limit_of_their_own():
    model = tiny_llama(50)
    told = Batch.of([[5, 9, 30], [40, 7], [11, 12, 13]], [[]] * 3)
    whole = {"eos": [1], "max_new": 12}
    roll = lambda how=sample, what=model, **more: how(
        what, told.prompt, told.prompt_mask, 4, torch.Generator().manual_seed(1), **(whole | more)
    )
    free = roll()
    for budget in (None, 60):
        ours = roll(limits=[3, 100, 1], token_budget=budget)
        assert written(ours) == [[row[:n] for row in g] for n, g in zip((3, 12, 1), written(free), strict=True)]
        ends = [[row[-1] == 1 for row in group] for group in written(ours)]
        assert ours["finished"].tolist() == ends
    plain = roll(plain_sample, forward_of(model), limits=[3, 100, 1])
    assert plain.mask.sum(-1).amax(1).tolist()[::2] == [3, 1]
    assert [[row[-1] == 1 for row in group] for group in written(plain)] == plain["finished"].tolist()


@pytest.mark.parametrize("fast", [True, False])
def test_a_response_ends_where_the_model_reads_no_further(tiny, fast):
    policy = HFPolicy(load_model(str(tiny)), eos=[2], max_new=9, fast=fast)  # it reads 128 tokens
    told = Batch.of([[5] * 125, [5] * 100], [[], []])
    lengths = policy.sample(told.prompt, told.prompt_mask, 8, torch.Generator().manual_seed(0)).mask.sum(-1)
    assert lengths[0].max() == 3 and lengths[1].max() == 9


def test_a_prompt_that_leaves_no_room_is_refused_by_its_length(tiny):
    policy = HFPolicy(load_model(str(tiny)), eos=[2], max_new=9)
    told = Batch.of([[5], [5] * 128], [[], []])
    with pytest.raises(ValueError, match="prompt 1 has 128 tokens"):
        policy.sample(told.prompt, told.prompt_mask, 2, torch.Generator())


def test_a_budget_bounds_the_plain_path_or_is_refused(tiny, monkeypatch):
    told = Batch.of([[5, 6, 7], [8, 9], [3, 4, 5]], [[[6, 7, 2], [4]], [[5, 2]], [[9, 9], [8, 2]]])
    plain = HFPolicy(load_model(str(tiny)), eos=[2], max_new=4, fast=False, token_budget=24)
    rows, predict = [], plain.predict
    monkeypatch.setattr(plain, "predict", lambda tokens, *more: rows.append(tokens.numel()) or predict(tokens, *more))
    bounded = plain.logp(told)
    assert max(rows) <= 24 and len(rows) == 2  # a prompt is two rows of six tokens
    torch.testing.assert_close(bounded, HFPolicy(plain.model, eos=[2], max_new=4, fast=False).logp(told))
    with pytest.raises(ValueError, match=r"token_budget: 24, .* here 42 tokens"):
        plain.sample(told.prompt, told.prompt_mask, 2, torch.Generator())


def test_a_config_reaches_the_sampler_and_its_reference(tiny):
    run = load("rloo", ["--stop-strings", "fox", "\n\n", "--token-budget", "900"])
    assert run.stop_strings == ("fox", "\n\n")
    policy = load_policy(str(tiny), Template.load(str(tiny)), max_new=5, run=run)
    assert policy.stop.texts == policy.reference().module.stop.texts == ("fox", "\n\n")
    assert policy.token_budget == 900


def test_a_run_with_a_stop_text_passes_its_own_self_test(tiny, fable_pairs, tmp_path):
    words = ["--max-steps", "1", "--prompts-per-round", "4", "--max-completion-length", "40", "--reward", "length"]
    words += ["--eval-prompts", "6", "--max-length", "120", "--stop-strings", "a", "e", "--output-dir", str(tmp_path)]
    card = read(train(load("rloo", [*words, "--model", str(tiny), "--data", str(fable_pairs)]))).card
    assert card["final"]["eval/completions/finished"] > 0.5


def test_without_a_stop_text_a_finished_response_needs_its_end_token():
    batch = Batch.of([[5]], [[[6, 7]]]).fill(finished=torch.tensor([[True]]))
    _ends_once(batch, [2], or_text=True)
    with pytest.raises(SelfTestFailed, match="0 end tokens"):
        _ends_once(batch, [2], or_text=False)


def test_collecting_and_evaluating_can_stop_at_a_text(tiny, fable_pairs, tmp_path):
    plan = Plan(stop_strings=("e",), token_budget=900, label="length", max_completion_length=20)
    writer = open_writer(str(tiny), plan)
    assert writer.policy.stop.texts == ("e",) and writer.policy.token_budget == 900
    said = [one for group in writer.write(["the fox", "a crow"], 4, 0) for one in group]
    assert any("e" in one.text and one.finished for one in said)
    assert all(one.finished or ("e" not in one.text and one.tokens == 20) for one in said)
    words = {"policies": (str(tiny),), "against": (str(tiny),), "prompts": str(fable_pairs), "reward": "length"}
    trial = _trial(Evaluate(**words, stop_strings=("e",), token_budget=900, max_completion_length=20))
    assert trial.reference.stop.texts == trial.opened(str(tiny)).stop.texts == ("e",)
    assert identity(plan, [], "x") != identity(dataclasses.replace(plan, stop_strings=()), [], "x")


@pytest.mark.parametrize("word", ["http://127.0.0.1:1/v1#m", "vllm:http://127.0.0.1:1#m"])
def test_a_server_that_would_cut_the_text_off_is_refused(word):
    with pytest.raises(ValueError, match="stop_strings: .* is answered by a server"):
        open_writer(word, Plan(stop_strings=("e",), label="length"))
