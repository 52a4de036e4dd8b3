"""Tiny transformers models, made on the spot."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Generator
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPTNeoXConfig,
    GPTNeoXForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from conftest import shared
from modeseek.batch import Batch
from modeseek.objectives import BradleyTerry
from modeseek.rewards import Model, ModelReward, Reply, build_reward, by_tokens
from modeseek.rewards.model import RewardModel, rows
from modeseek.rewards.pretrained import Row, buckets
from modeseek.train import Steps, fit

WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "[SEP]", *"abcdefghijklmnopqrst"]
PAD, BOS, EOS, UNK, SEP = range(5)
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CHAT = (
    "{% for m in messages %}{{ m.role[0] + ' ' + m.content + ' <eos> ' }}{% endfor %}"
    "{% if add_generation_prompt %}a {% endif %}"
)


def tokenizer(chat: str | None = None, **special: Any) -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    if "sep_token" in special:
        words.post_processor = TemplateProcessing(  # type: ignore[assignment]
            single="<bos> $A [SEP]",
            pair="<bos> $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("<bos>", BOS), ("[SEP]", SEP)],
        )
        special["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    named = {"eos_token": "<eos>", "unk_token": "<unk>", **special}
    made = PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=64, **named)
    made.chat_template = chat
    return made


class Words:
    """The policy's tokenizer: it knows the same words."""

    chat = False

    def __init__(self, own: PreTrainedTokenizerFast | None = None):
        if own is not None:
            self.tokenizer = own

    def decode(self, ids: list[int]) -> str:
        return "".join(f" {WORDS[i]}" for i in ids if i > UNK)


def llama(**settings) -> LlamaForSequenceClassification:
    config = LlamaConfig(vocab_size=len(WORDS), num_labels=1, max_position_embeddings=64, **SMALL, **settings)
    return LlamaForSequenceClassification(config).eval()


def spread(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights large enough that every token changes the score."""
    rng = Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=rng) * 0.3
    return model.eval()


def batch() -> Batch:
    """Groups of unlike size, an empty response and a cut-off one among them."""
    made = Batch.of(
        [[BOS, 5, 6], [BOS, 7]],
        [[[8, 9, EOS], [10, EOS], [11, 12, 13, 14]], [[15, EOS], []]],
        pad=PAD,
    )
    return made.fill(finished=torch.tensor([[True, True, False], [True, False, False]]))


def alone(model, ids: list[int]) -> float:
    """What transformers says of one row without padding."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, 0].item()


ROWS = [[BOS, 5, 6, 8, 9, EOS], [BOS, 5, 6, 10, EOS], [BOS, 5, 6, 11, 12, 13, 14], [BOS, 7, 15, EOS], [BOS, 7]]
FAMILIES = {
    "llama": lambda **kw: llama(**kw),
    "gpt2": lambda **kw: GPT2ForSequenceClassification(
        GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=64, num_labels=1, **kw)
    ),
    "gpt_neox": lambda **kw: GPTNeoXForSequenceClassification(
        GPTNeoXConfig(vocab_size=len(WORDS), max_position_embeddings=64, num_labels=1, **SMALL, **kw)
    ),
}


# The reward model


def test_rows_are_prompt_and_response_with_the_padding_behind():
    tokens, mask = rows(batch())
    assert [ids[there].tolist() for ids, there in zip(tokens, mask, strict=True)] == ROWS
    assert tokens.shape == (5, 7)
    assert (mask.int().diff(dim=1) <= 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_score_is_what_transformers_says_of_each_row_alone(family):
    model = spread(FAMILIES[family](pad_token_id=None))
    scores = RewardModel(model).score(batch())
    wanted = [alone(model, ids) for ids in ROWS]
    torch.testing.assert_close(scores[batch().present], torch.tensor(wanted), rtol=1e-5, atol=1e-5)
    assert scores[1, 2].isnan()
    assert len({round(x, 6) for x in wanted}) == 5


def test_every_response_token_changes_the_score_and_the_end_token_too():
    model = RewardModel(spread(llama(pad_token_id=EOS)))  # the padding is the end token, and no mask knows
    score = lambda ids: model.score(Batch.of([[BOS, 5]], [[ids]]))[0, 0].item()
    assert len({round(score(ids), 4) for ids in ([6, 7, EOS], [6, 7], [8, 7, EOS], [6, 8, EOS], [6, 7, EOS, EOS])}) == 5


def test_padding_and_the_rest_of_the_batch_change_nothing():
    model = RewardModel(spread(llama()).double())
    whole = model.score(batch())
    for p in range(2):
        one = batch().prompts(slice(p, p + 1)).trim()
        torch.testing.assert_close(model.score(one)[0], whole[p], rtol=1e-9, atol=1e-12, equal_nan=True)


def test_a_score_has_a_gradient_that_an_absent_response_does_not_spoil():
    model = RewardModel(spread(llama()))
    scores = model.score(batch())
    scores[batch().present].sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and all(g.isfinite().all() for g in grads) and any(g.abs().sum() > 0 for g in grads)


@pytest.fixture
def language_model(tmp_path) -> str:
    config = LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=64, **SMALL, pad_token_id=EOS)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "lm")
    tokenizer(pad_token="<eos>", bos_token="<bos>").save_pretrained(tmp_path / "lm")
    return str(tmp_path / "lm")


def test_a_language_model_starts_with_a_loss_of_ln_2(language_model):
    scores = RewardModel.load(language_model).score(batch())
    assert scores[0].tolist() == [0, 0, 0]
    assert BradleyTerry()(scores[:1]).per_prompt.item() == pytest.approx(0.693147, abs=1e-6)


def test_a_saved_reward_model_says_the_same_here_and_in_transformers(language_model, tmp_path):
    model = RewardModel.load(language_model)
    spread(model)
    before = model.score(batch())
    model.save(tmp_path / "rm", tokenizer(pad_token="<eos>", bos_token="<bos>"))
    torch.testing.assert_close(RewardModel.load(str(tmp_path / "rm")).score(batch()), before, equal_nan=True)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    assert theirs.config.pad_token_id == BOS  # never the last token, as the end token is
    padded = torch.tensor([ids + [BOS] * (7 - len(ids)) for ids in ROWS])
    with torch.no_grad():
        said = theirs(input_ids=padded, attention_mask=(torch.arange(7) < torch.tensor([[len(r)] for r in ROWS])))
    torch.testing.assert_close(said.logits[:, 0], before[batch().present], rtol=1e-5, atol=1e-5)
    reward = build_reward(Model(str(tmp_path / "rm"), reads="tokens"), Words())
    torch.testing.assert_close(reward(batch()), before.detach(), rtol=1e-5, atol=1e-5, equal_nan=True)


def test_a_reward_model_learns_what_pairs_say_and_the_loop_needs_nothing_new(language_model):
    """The better response holds word 5, anywhere in it."""
    torch.manual_seed(0)

    def source(rng: Generator) -> Batch:
        words = torch.randint(6, len(WORDS), (16, 2, 4), generator=rng)
        at = torch.randint(0, 4, (16,), generator=rng)
        words[torch.arange(16), 0, at] = 5
        replies = [[one + [EOS] for one in group] for group in words.tolist()]
        return Batch.of([[BOS, 20]] * 16, replies)

    model = RewardModel.load(language_model)
    losses = []
    watch = lambda loop, row: losses.append(row["loss"])
    fit(model, BradleyTerry(), source, [], Steps(max_steps=60, learning_rate=0.01), watch=watch)
    assert losses[0] == pytest.approx(0.693147, abs=1e-6)
    held = source(Generator().manual_seed(99))
    with torch.no_grad():
        scores = model.score(held)
    assert (scores[:, 0] > scores[:, 1]).float().mean() > 0.95


def test_a_model_with_another_head_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a decoder of transformers"):
        RewardModel(torch.nn.Linear(1, 1))
    LlamaForSequenceClassification(LlamaConfig(vocab_size=len(WORDS), num_labels=3, **SMALL)).save_pretrained(
        tmp_path / "three"
    )
    with pytest.raises(ValueError, match="has 3 outputs, expected 1"):
        RewardModel.load(str(tmp_path / "three"))


def test_a_real_language_model_becomes_a_reward_model():
    """Its beginning token is its end token, and it has no padding."""
    path = str(shared("models/stories260k"))
    model = RewardModel.load(path)
    torch.nn.init.normal_(model.model.get_submodule("score").weight, generator=Generator().manual_seed(0))
    made = Batch.of([[1, 300, 301], [1, 302]], [[[400, 401, 1], [402, 1]], [[403, 404, 405, 1], [1]]])
    wanted = [alone(model.model, [1, 300, 301, 400, 401, 1]), alone(model.model, [1, 302, 1])]
    scores = model.score(made)
    torch.testing.assert_close(scores[[0, 1], [0, 1]], torch.tensor(wanted), rtol=1e-5, atol=1e-5)


# As a reward


def saved(model: torch.nn.Module, words: PreTrainedTokenizerFast, path: Path) -> str:
    spread(model).save_pretrained(path)  # type: ignore[operator]
    words.save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("pad", [None, PAD, EOS])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_reward_is_what_transformers_says_of_each_row_alone_whatever_its_padding(family, pad, tmp_path):
    """With the end token as padding, transformers reads the token before it; so do we, for it was trained so."""
    model = FAMILIES[family](pad_token_id=pad)
    reward = build_reward(Model(saved(model, tokenizer(), tmp_path), reads="tokens", scale=2.0), Words())
    wanted = 2 * torch.tensor([alone(model, ids) for ids in ROWS])
    scores = reward(batch())
    torch.testing.assert_close(scores[batch().present], wanted, rtol=1e-5, atol=1e-5)
    assert scores[1, 2].isnan()


def test_the_same_tokenizer_reads_tokens_and_another_reads_text(tmp_path):
    model = llama()
    path = saved(model, tokenizer(), tmp_path)
    same = build_reward(Model(path), Words(tokenizer()))
    assert isinstance(same, ModelReward) and same.template is None
    torch.testing.assert_close(same(batch())[0, 0].item(), alone(model, ROWS[0]), rtol=1e-5, atol=1e-5)
    other = build_reward(Model(path), Words())
    assert isinstance(other, ModelReward) and other.template == "joined"
    # no beginning token in the text, and the end token where the response ended
    scores = other(Batch.of([[BOS, 5, 6]], [[[8, EOS], [9, 10]]]).fill(finished=torch.tensor([[True, False]])))
    assert scores[0].tolist() == pytest.approx([alone(model, [5, 6, 8, EOS]), alone(model, [5, 6, 9, 10])], abs=1e-5)


def test_a_chat_template_gets_the_conversation_and_a_cut_off_turn_stays_open(tmp_path):
    model = llama()
    path = saved(model, tokenizer(CHAT), tmp_path)
    decoder = Words()
    reward = build_reward(Model(path), decoder, by_tokens([([BOS, 5], "b c")]))
    scores = reward(Batch.of([[BOS, 5]], [[[8, EOS], [9, 10]]]).fill(finished=torch.tensor([[True, False]])))
    ids = {word: i for i, word in enumerate(WORDS)}
    closed = [ids[w] for w in ["<unk>", "b", "c", "<eos>", "a", "d", "<eos>"]]  # "u" and "a" are the roles
    open_turn = [ids[w] for w in ["<unk>", "b", "c", "<eos>", "a", "e", "f"]]
    assert scores[0].tolist() == pytest.approx([alone(model, closed), alone(model, open_turn)], abs=1e-5)


def test_text_of_a_chat_policy_needs_the_prompts_as_they_were(tmp_path):
    decoder = Words()
    decoder.chat = True
    with pytest.raises(ValueError, match="text needs the prompts as they stood in the data"):
        build_reward(Model(saved(llama(), tokenizer(), tmp_path)), decoder)


def bert(labels: int = 1) -> BertForSequenceClassification:
    return BertForSequenceClassification(
        BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, num_labels=labels, pad_token_id=PAD, **SMALL)
    )


def test_a_pair_model_gets_prompt_and_response_apart(tmp_path):
    model = bert()
    path = saved(model, tokenizer(sep_token="[SEP]", pad_token="<pad>"), tmp_path)
    reward = build_reward(Model(path), Words())
    assert isinstance(reward, ModelReward) and reward.template == "pair"
    one = [BOS, 5, 6, SEP, 8, 9, SEP]
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([one]), token_type_ids=torch.tensor([[0, 0, 0, 0, 1, 1, 1]])).logits[0, 0]
    assert reward(batch())[0, 0].item() == pytest.approx(wanted.item(), abs=1e-5)


def test_one_of_several_outputs_must_be_named(tmp_path):
    model = bert(3)
    path = saved(model, tokenizer(sep_token="[SEP]", pad_token="<pad>"), tmp_path)
    with pytest.raises(ValueError, match="reward.output: .* has 3 outputs"):
        build_reward(Model(path), Words())
    with pytest.raises(ValueError, match="reward.output: found 3, expected 0 to 2"):
        build_reward(Model(path, output=3), Words())
    both = [build_reward(Model(path, output=i), Words())(batch())[0, 0].item() for i in (0, 2)]
    assert both[0] != both[1]


def test_what_was_scored_is_remembered_and_the_same_text_is_scored_once(tmp_path):
    reward = build_reward(Model(saved(llama(), tokenizer(), tmp_path), reads="tokens"), Words())
    assert isinstance(reward, ModelReward)
    twice = Batch.of([[BOS, 5]] * 2, [[[6, EOS], [7, EOS]], [[6, EOS], [6, EOS]]])
    scores = reward(twice)
    assert reward.counts["computed"] == 2
    assert scores[0, 0] == scores[1, 0] == scores[1, 1]
    assert reward(twice).tolist() == scores.tolist()
    assert reward.counts["computed"] == 2 and reward.counts["scored"] == 8


def test_only_so_many_scores_are_remembered(tmp_path):
    reward = build_reward(Model(saved(llama(), tokenizer(), tmp_path), reads="tokens", cache_size=2), Words())
    assert isinstance(reward, ModelReward)
    for i in range(5, 10):
        reward(Batch.of([[BOS]], [[[i, EOS], [i + 1, EOS]]]))
        assert len(reward.remembered) == 2


def test_batches_have_rows_of_like_length_and_keep_to_the_limit(tmp_path):
    items = [(bytes([n]), Row((1,) * n)) for n in (3, 9, 1, 4, 4, 20, 2)]
    parts = [[len(row.ids) for _, row in part] for part in buckets(items, 12)]
    assert parts == [[20], [9], [4, 4, 3], [2, 1]]
    path = saved(llama(), tokenizer(), tmp_path)
    small, large = (build_reward(Model(path, reads="tokens", batch_tokens=n), Words()) for n in (1, 10_000))
    torch.testing.assert_close(small(batch()), large(batch()), rtol=1e-5, atol=1e-5, equal_nan=True)


def test_a_row_that_is_too_long_loses_the_prompts_left_side_and_is_counted(tmp_path):
    model = llama()
    path = saved(model, tokenizer(), tmp_path)
    reward = build_reward(Model(path, reads="tokens", max_length=4), Words())
    assert isinstance(reward, ModelReward)
    scores = reward(batch())
    assert scores[0, 0].item() == pytest.approx(alone(model, [6, 8, 9, EOS]), abs=1e-5)
    assert reward.counts["cut"] == 3
    with pytest.raises(ValueError, match="reward.max_length: found 65, but .* reads at most 64"):
        build_reward(Model(path, reads="tokens", max_length=65), Words())


def test_a_pair_that_is_too_long_keeps_its_response(tmp_path):
    path = saved(bert(), tokenizer(sep_token="[SEP]", pad_token="<pad>"), tmp_path)
    reward = build_reward(Model(path, max_length=6), Words())
    assert isinstance(reward, ModelReward)
    assert reward._pair(Reply("b c d", "e f", True, 3)).ids == (BOS, 8, SEP, 9, 10, SEP)
    with pytest.raises(ValueError, match="a response makes 8 tokens, but the reward model reads at most 6"):
        reward._pair(Reply("b", "c d e f g", True, 3))


def test_a_cut_off_response_gets_what_unfinished_says(tmp_path):
    path = saved(llama(), tokenizer(), tmp_path)
    reward = build_reward(Model(path, reads="tokens", unfinished=-7.0), Words())
    assert isinstance(reward, ModelReward)
    scores = reward(batch())
    assert scores[0, 2] == -7 and scores[1, 1] == -7 and scores[0, 0] != -7
    assert reward.counts["unfinished"] == 2 and reward.counts["computed"] == 3


def test_a_language_model_is_no_reward(language_model):
    with pytest.raises(ValueError, match="is a LlamaForCausalLM, expected a sequence-classification model"):
        build_reward(Model(language_model), Words())


def test_tokens_of_another_vocabulary_are_refused(tmp_path):
    reward = build_reward(Model(saved(llama(), tokenizer(), tmp_path), reads="tokens"), Words())
    with pytest.raises(ValueError, match="token 25 is outside the reward model's vocabulary of 25"):
        reward(Batch.of([[BOS]], [[[25]]]))
