"""Hidden states from the forward that gives log-probabilities: the same on every path."""

import itertools

import pytest
import torch

from conftest import EOS, VOCAB, every
from modeseek.batch import Batch
from modeseek.policies.bandit import Bandit
from modeseek.policies.features import see
from modeseek.policies.gpt import gpt_policy


@pytest.fixture(scope="module")
def models(tiny):
    """The tiny Llama on packed rows and on the plain path."""
    from modeseek.policies.hf import HFPolicy
    from modeseek.policies.load import load_model

    make = lambda fast: HFPolicy(load_model(str(tiny), dtype="float64"), eos=[2], max_new=8, fast=fast)
    packed, plain = make(True), make(False)
    assert packed.paths["logp"].startswith("packed")
    return packed, plain


BATCH = Batch.of([[5, 6, 7], [8, 9], [4]], [[[10, 11, 12], [13]], [[14, 15], [16, 17, 18, 19]], [[20, 3], [21]]])


def test_packed_and_plain_say_the_same(models):
    a, b = (see(policy, BATCH) for policy in models)
    for name in ("logp", "features", "predicting"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-6, atol=1e-8)


def test_states_are_those_that_transformers_gives(models):
    """One row without padding: the mean of the last hidden states at the response, the sum of those one before."""
    policy = models[0]
    with torch.no_grad():
        states = policy.model.base_model(torch.tensor([[8, 9, 14, 15]])).last_hidden_state[0]
    seen = see(policy, BATCH)
    torch.testing.assert_close(seen.features[1, 0], states[2:4].mean(0), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(seen.predicting[1, 0], states[1:3].sum(0), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("tokens", [1, 9, 10_000])
def test_how_many_tokens_are_held_at_once_changes_nothing(models, tokens):
    for policy in models:
        whole, cut = see(policy, BATCH), see(policy, BATCH, tokens=tokens)
        torch.testing.assert_close(cut.features, whole.features, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(cut.logp, whole.logp, rtol=1e-6, atol=1e-8)


def test_an_absent_response_has_zeros_and_the_others_do_not_mind(models):
    ragged = Batch.of([[5, 6, 7], [8, 9]], [[[10, 11, 12], [13]], [[14, 15]]])
    for policy in models:
        seen = see(policy, ragged)
        assert (seen.features[1, 1] == 0).all()
        torch.testing.assert_close(seen.features[1, 0], see(policy, BATCH).features[1, 0], rtol=1e-6, atol=1e-8)


def test_single_tokens_of_a_prompt_are_predicted_from_one_state():
    """Hence CHES is zero for them."""
    torch.manual_seed(0)
    policy = gpt_policy(VOCAB, eos=EOS, max_new=4).double()
    seen = see(policy, every(VOCAB, 1, [3, 4]))
    torch.testing.assert_close(seen.predicting, seen.predicting[:, :1].expand_as(seen.predicting))
    assert seen.features.std(1).max() > 1e-3


def test_a_gpt_says_what_its_logp_says():
    torch.manual_seed(0)
    policy = gpt_policy(VOCAB, eos=EOS, max_new=4).double()
    pairs = list(itertools.product(range(VOCAB), repeat=2))
    batch = Batch.of([[3, 4], [1, 2, 5]], [pairs, pairs])
    torch.testing.assert_close(see(policy, batch, tokens=100).logp, policy.logp(batch).detach())


def test_the_features_of_a_table_are_its_cells():
    batch = Batch.of([[1]], [[[2], [0]]])
    seen = see(Bandit(torch.zeros(2, 3)), batch)
    assert seen.features[0].argmax(-1).tolist() == [5, 3]
    assert seen.predicting[0].tolist() == [[0, 1], [0, 1]]
