"""The race and its rivals."""

import dataclasses

import torch

from modeseek.advise.belief import Belief
from modeseek.advise.race import contested, halve, race, race_whole, schedule


def flat(W: int, M: int) -> Belief:
    return Belief(torch.zeros(W, M).double(), 4 * torch.eye(M, dtype=torch.float64).repeat(W, 1, 1))


def test_a_schedule_spends_all_labels_and_no_more():
    for labels in (3, 50, 203, 800):
        assert sum(schedule(labels)) == labels


def test_labels_go_where_the_leader_and_its_rivals_differ():
    moved = torch.zeros(1, 3, 6, dtype=torch.float64)
    moved[0, 1, 1], moved[0, 2, 1] = 1.0, 1.0  # both give response 1
    moved[0, 1, 2], moved[0, 2, 3] = 1.0, 1.0
    moved[..., 0] = -moved.sum(-1)
    held = dataclasses.replace(flat(1, 6), mean=torch.tensor([[-9.0, 3, 3, 3, 3, 3]], dtype=torch.float64))
    places = contested(held, moved, 1.0, 20, torch.Generator().manual_seed(0))
    assert set(places[0].tolist()) == {2, 3}  # 1 would tell nothing of who is better, 4 and 5 of nobody


def test_the_response_is_read_whose_reading_takes_most_off_the_variance():
    """Two arms apart by .8 of response 0 and .6 of response 1: variance s0 .64 + s1 .36, a reading of sd 1 takes
    (.8 s0)^2 / (s0 + 1) or (.6 s1)^2 / (s1 + 1) off it."""
    moved = torch.tensor([[[0.0, 0.0, 0.0], [0.8, 0.6, -1.4]]], dtype=torch.float64)
    read = lambda s0, s1, n: contested(
        Belief(torch.zeros(1, 3).double(), torch.diag(torch.tensor([s0, s1, 1e-9])).double()[None]),
        moved,
        1.0,
        n,
        torch.Generator().manual_seed(0),
    )[0].tolist()
    assert read(1.0, 1.0, 1) == [0]  # .32 against .18
    assert read(1.0, 2.0, 1) == [1]  # .32 against .48
    assert read(1.0, 1.4, 1) == [0]  # .32 against .294: the larger .84^2 is of a reading that varies more
    # after one reading of 0 its variance is 1/2: (.8 / 2)^2 / (3 / 2) = .107 is less than .18
    assert read(1.0, 1.0, 2) == [0, 1]


def test_what_may_be_read_is_read_once_and_nothing_else():
    held, moved = flat(1, 4), torch.tensor([[[0.0, 0, 0, 0], [1, 0, 0, -1]]], dtype=torch.float64)
    unread = torch.tensor([[False, True, True, True]])
    places = contested(held, moved, 1.0, 3, torch.Generator().manual_seed(0), unread=unread)[0].tolist()
    assert places[0] == 3 and sorted(places) == [1, 2, 3]
    offers = torch.tensor([[[0.0, 1, -1, 0], [1, 0, 0, -1]]], dtype=torch.float64)
    assert contested(held, moved, 1.0, 1, torch.Generator().manual_seed(0), offers=offers).tolist() == [[1]]


def test_a_race_finds_the_better_arm_and_its_belief_the_truth():
    rng = torch.Generator().manual_seed(1)
    worth = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64).repeat(50, 1)
    moved = torch.tensor([[[0.0, 0, 0], [-1, 1, 0], [-1, 0, 1]]], dtype=torch.float64).repeat(50, 1, 1)
    noisy = lambda place: worth.gather(1, place) + torch.randn(place.shape, generator=rng, dtype=torch.float64)
    *_, (spent, held) = race(flat(50, 3), moved, noisy, 1.0, schedule(100), rng)
    assert spent == 100
    mean, _ = held.of(moved)
    assert (mean.argmax(1) == 2).double().mean() > 0.9
    assert abs(float((mean[:, 2] - mean[:, 1]).mean()) - 1) < 0.2


def test_a_judge_of_whole_candidates_is_heard_by_their_kin():
    mean, covariance = torch.zeros(1, 2).double(), torch.tensor([[[1.0, 0.9], [0.9, 1.0]]], dtype=torch.float64)
    rng = torch.Generator().manual_seed(0)
    [(spent, now, left)] = race_whole(mean, covariance, lambda arm: torch.ones(1, 1).double(), 1.0, 1, rng)
    # the arm that was read: 1 / (1 + 1) of the reading; the other: 0.9 / 2
    assert spent == 1 and sorted(now[0].tolist()) == [0.45, 0.5]
    assert sorted(left[0].diagonal().tolist()) == [0.5, 1 - 0.9**2 / 2]


def test_halving_without_noise_finds_the_best_and_spends_what_it_may():
    gain = torch.rand(20, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.equal(halve(gain, 0.0, 60, torch.Generator().manual_seed(0)), gain.argmax(1))
