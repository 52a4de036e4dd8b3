"""Small enough to enumerate, so exact."""

import itertools

import pytest
import torch

from conftest import EOS, POLICIES, VOCAB, every
from modeseek.batch import Batch


@pytest.fixture(params=["gpt"])
def causal(request):
    torch.manual_seed(0)
    return POLICIES[request.param]().double()


def test_probabilities_of_all_responses_sum_to_one(causal):
    """Only if the logits line up with the tokens."""
    total = causal.logp(every(VOCAB, 2, [3, 4])).sum(-1).exp().sum()
    torch.testing.assert_close(total, torch.tensor(1.0, dtype=torch.float64))


def test_the_second_token_hears_the_first(causal):
    second = causal.logp(every(VOCAB, 2, [3, 4]))[0, :, 1].view(VOCAB, VOCAB).exp()
    torch.testing.assert_close(second.sum(1), torch.ones(VOCAB, dtype=torch.float64))
    assert (second[0] - second[1]).abs().max() > 1e-4


def test_left_padding_changes_nothing(causal):
    """One batch in which the prompt is padded by a longer neighbour, one in which it is not."""
    alone = causal.logp(every(VOCAB, 2, [3, 4]))
    pairs = list(itertools.product(range(VOCAB), repeat=2))
    padded = causal.logp(Batch.of([[3, 4], [1, 2, 3, 4, 5]], [pairs, pairs], pad=7))
    torch.testing.assert_close(padded[:1], alone)


def test_right_padding_and_pad_tokens_change_nothing(causal):
    short = causal.logp(Batch.of([[3, 4]], [[[5]]]))
    wide = causal.logp(Batch.of([[3, 4]], [[[5], [6, 7, 8]]], pad=EOS))
    torch.testing.assert_close(wide[:, :1, :1], short)
    assert (wide[0, 0, 1:] == 0).all()


@pytest.mark.parametrize("kind", POLICIES)
def test_it_samples_what_it_says(kind):
    """A chi-square of 20,000 first tokens against the enumerated probabilities; 99.9% quantile of 10 is 29.6."""
    torch.manual_seed(0)
    policy = POLICIES[kind]()
    prompt = torch.tensor([[3]]) if kind == "bandit" else torch.tensor([[3, 4]])
    batch = policy.sample(prompt, torch.ones_like(prompt, dtype=torch.bool), 20_000, torch.Generator().manual_seed(0))
    with torch.no_grad():
        said = policy.logp(batch)
    torch.testing.assert_close(batch["old_logp"], said, rtol=1e-4, atol=1e-5)
    vocab = 7 if kind == "bandit" else VOCAB
    counts = torch.bincount(batch.response[0, :, 0], minlength=vocab).double()
    p = torch.zeros(vocab).scatter(0, batch.response[0, :, 0], said[0, :, 0].exp()).double()
    torch.testing.assert_close(p.sum(), torch.tensor(1.0, dtype=torch.float64), atol=1e-5, rtol=0)
    assert ((counts - 20_000 * p).square() / (20_000 * p)).sum() < 29.6


def test_a_response_ends_at_its_first_end_token(causal):
    prompt = torch.tensor([[3, 4]])
    batch = causal.sample(prompt, torch.ones_like(prompt, dtype=torch.bool), 500, torch.Generator().manual_seed(0))
    ends = (batch.response == EOS) & batch.mask
    assert (ends.sum(-1) <= 1).all()
    assert (ends.any(-1) == batch["finished"]).all()
    assert (batch.mask.sum(-1)[~batch["finished"]] == 4).all()
    last = batch.mask.sum(-1) - 1
    assert ends.gather(-1, last[..., None])[batch["finished"]].all()


def test_temperature_and_truncation_are_in_the_reported_log_probability(causal):
    """Two tokens kept of eleven at temperature 0.5: the two squared probabilities, renormalised."""
    prompt = torch.tensor([[3, 4]])
    logp = causal.logp(every(VOCAB, 1, [3, 4]))[0, :, 0]
    two = (logp / 0.5).softmax(-1).topk(2)
    want = dict(zip(two.indices.tolist(), (two.values / two.values.sum()).log().tolist(), strict=True))
    ones = torch.ones_like(prompt, dtype=torch.bool)
    batch = causal.sample(prompt, ones, 200, torch.Generator().manual_seed(0), temperature=0.5, top_k=2)
    for token, said in zip(batch.response[0, :, 0].tolist(), batch["old_logp"][0, :, 0].tolist(), strict=True):
        assert said == pytest.approx(want[token], abs=1e-9)
    nucleus = causal.sample(prompt, ones, 200, torch.Generator().manual_seed(0), top_p=1e-6)
    assert set(nucleus.response[0, :, 0].tolist()) == {int(logp.argmax())}
    greedy = causal.sample(prompt, ones, 3, torch.Generator().manual_seed(0), temperature=0.0)
    assert set(greedy.response[0, :, 0].tolist()) == {int(logp.argmax())}
