"""A language model's problem in the shape of a world, and the race's bookkeeping."""

import numpy as np
import pytest
import torch

from modeseek.advise.belief import Belief
from modeseek.advise.lm import atypical, spanned, twin_of
from modeseek.advise.methods import ARMS
from modeseek.advise.trial import Pool, Standing, _reference, against_reference, heard, winner
from modeseek.batch import Batch
from modeseek.diagnostics.look import Look


def look(reward: bool = True, P: int = 6, K: int = 3) -> Look:
    rng = np.random.default_rng(0)
    ones = lambda k: np.full((P, k), 10.0)
    told = -np.array([[10.0, 40.0]] * P)
    return Look(
        own_logp=-10.0 + 5 * (np.arange(P * K).reshape(P, K) % K - 1.0),
        told_logp=told,
        own_length=ones(K),
        told_length=ones(2),
        own_features=rng.normal(size=(P, K, 5)),
        told_features=rng.normal(size=(P, 2, 5)),
        told_predicting=rng.normal(size=(P, 2, 5)),
        told_tokens=[[[1], [2]]] * P,
        told_rare=np.zeros((P, 2)),
        own_reward=rng.normal(size=(P, K)) if reward else None,
        told_reward=rng.normal(size=(P, 2)) if reward else None,
    )


def test_a_data_response_counts_less_by_its_distance_in_standard_deviations():
    # own nats a token: -1.5, -1, -0.5, sd 0.5; told -1 is the mean: nothing off; told -4 is six sd below: 36 / 2
    assert atypical(look())[0].tolist() == pytest.approx([0.0, 18.0], rel=1e-4)


def test_the_twin_stands_own_samples_first_and_pairs_the_data():
    twin = twin_of(look())
    assert twin.base.shape == (1, 6, 5) and twin.pairs[0, 1].tolist() == [5 + 3, 5 + 4]
    assert bool(twin.given[0]) and int(twin.count[0]) == 6
    mass = twin.mass(twin.still())[0].view(6, 5)
    assert torch.allclose(mass[:, 0], mass[:, 1]) and bool((mass[:, 4] < mass[:, 3]).all())
    assert not bool(twin_of(look(reward=False)).given[0])


def test_a_prompts_own_part_is_no_feature():
    x = np.random.default_rng(1).normal(size=(8, 5, 6))
    shifted = x + np.random.default_rng(2).normal(size=(8, 1, 6)) * 100
    a, b = spanned(x), spanned(shifted)
    assert torch.allclose(a @ a.T, b @ b.T, atol=1e-6)


def test_responses_of_two_looks_are_seen_in_the_same_directions():
    x, y = (np.random.default_rng(i).normal(size=(4, 3, 6)) for i in (3, 4))
    apart, together = spanned(x, y), spanned(np.concatenate([x, y]))
    assert apart.shape == (24, 6)
    assert torch.allclose(apart @ apart.T, together @ together.T, atol=1e-8)


def pool() -> Pool:
    """Two prompts, a reference and two candidates of two answers each; two places of pairs before them."""
    batch = Batch.of([[1], [1]], [[[10 + k] for k in range(6)], [[20 + k] for k in range(6)]])
    M = 2 + 12
    return Pool(batch, torch.zeros(1, 3, M).double(), torch.eye(M, dtype=torch.float64)[None], [0.0] * 3, 2, 2)


def test_an_answer_is_read_against_the_references_to_the_same_prompt():
    worth = lambda batch: batch.response[..., 0].double()
    # the second answer of the second candidate to prompt 1 is 25, the reference's second is 21
    assert against_reference(pool(), worth, 11) == 4.0
    assert [_reference(pool(), place) for place in (2, 5, 0, 1, 8)] == [0, 1, 1, 0, 6]


def test_the_unit_of_a_judge_is_found():
    some = pool()
    mean = torch.zeros(1, 14).double()
    mean[0, 4], mean[0, 6], mean[0, 10] = 2.0, 1.0, 1.5
    start = Belief(mean, 0.01 * torch.eye(14, dtype=torch.float64)[None])
    # places in the pool: 2 -> 4, 4 -> 6, 8 -> 10, each 100 times what is believed of it
    some.readings = [(2, 200.0), (4, 100.0), (8, 150.0)] * 4
    _, unit, _ = heard(start, some)
    assert 50 <= unit <= 200


def test_the_winner_of_a_race_surely_gains_or_there_is_none():
    at = lambda arm, gain, low: Standing(
        arm=arm, steps=1, gain=gain, low=low, high=2 * gain - low, best=0.5, kl=0.0, answers=1
    )
    nothing, unsure, sure = at(ARMS[0], 0.0, 0.0), at(ARMS[1], 3.0, -0.1), at(ARMS[2], 1.0, 0.1)
    assert winner([unsure, sure, nothing]) is sure
    assert winner([unsure, nothing]) is nothing


def test_a_place_in_the_pool_is_somebodys_answer_to_a_prompt():
    some = pool()
    assert [some.where(place) for place in range(12)] == [(a, p, k) for p in (0, 1) for a in (0, 1, 2) for k in (0, 1)]
    assert all(some.place(*some.where(place)) == place for place in range(12))
