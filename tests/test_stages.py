import pytest
import torch

from modeseek.batch import Batch
from modeseek.policies.bandit import Bandit
from modeseek.stages import (
    RunningKL,
    best,
    best_worst,
    chosen,
    group_mean,
    group_std,
    kl_shaped,
    leave_one_out,
    recall,
    refer,
    score,
)


def group(rewards, present=None):
    """Prompts whose responses are one token each, token k for response k."""
    K = len(rewards[0])
    batch = Batch.of([[0]] * len(rewards), [[[k] for k in range(K)]] * len(rewards))
    if present is not None:
        present = torch.tensor(present)
        batch = Batch.from_tensors(batch.tensors() | {"present": present, "mask": present[..., None]})
    return batch.fill(reward=torch.tensor(rewards))


NAN = float("nan")


def test_the_best_is_kept_and_an_absent_response_never_wins():
    assert best(group([[1.0, 3.0, 2.0]])).response.flatten().tolist() == [1]
    assert best(group([[1.0, NAN, 2.0]], [[True, False, True]])).response.flatten().tolist() == [2]


def test_best_and_worst_make_a_pair_and_ties_are_left_out():
    pairs = best_worst(group([[1.0, 3.0, 2.0], [1.0, 1.0, 1.0]]))
    assert pairs.response[..., 0].tolist() == [[1, 0]]
    pairs = best_worst(group([[1.0, 3.0, -9.0]], [[True, True, False]]))
    assert pairs.response[..., 0].tolist() == [[1, 0]]


def test_chosen_keeps_the_first():
    assert chosen(group([[0.0, 9.0]])).response.flatten().tolist() == [0]


def test_advantages_by_hand():
    batch = group([[1.0, 2.0, 6.0], [1.0, 3.0, NAN]], [[True] * 3, [True, True, False]])
    rows = lambda b: b["advantage"][..., 0].tolist()
    assert rows(group_mean(batch)) == [[-2, -1, 3], [-1, 1, 0]]
    assert rows(leave_one_out(batch)) == [[-3, -1.5, 4.5], [-2, 2, 0]]
    scaled = group_std(group_mean(batch))["advantage"][..., 0]
    torch.testing.assert_close(scaled[0], torch.tensor([-2.0, -1, 3]) / 7**0.5)  # variance (4 + 1 + 9) / 2
    torch.testing.assert_close(scaled[1], torch.tensor([-1.0, 1, 0]) / 2**0.5)


def test_a_group_without_variance_has_no_advantage():
    batch = group([[2.0, 2.0]])
    for stage in (group_mean, leave_one_out):
        assert (stage(batch)["advantage"] == 0).all()
    assert (group_std(group_mean(batch))["advantage"] == 0).all()


def test_a_group_of_one_has_no_advantage():
    for stage in (group_mean, leave_one_out):
        assert (stage(group([[2.0]]))["advantage"] == 0).all()


def test_the_kl_is_charged_to_the_reward():
    batch = group([[1.0, 1.0]])
    batch = batch.fill(old_logp=torch.tensor([[[-1.0], [-2.0]]]), ref_logp=torch.tensor([[[-2.0], [-2.0]]]))
    shaped = kl_shaped(0.5)(batch)
    assert shaped["reward"].tolist() == [[0.5, 1.0]] and shaped["raw_reward"].tolist() == [[1.0, 1.0]]


def test_columns_are_filled_without_a_gradient():
    policy = Bandit(torch.zeros(1, 3))
    batch = recall(policy)(refer(policy)(group([[1.0, 2.0, 3.0]])))
    for name in ("old_logp", "ref_logp"):
        torch.testing.assert_close(batch[name], torch.full((1, 3, 1), 1 / 3).log())
        assert not batch[name].requires_grad


def test_a_nan_reward_names_its_row():
    batch = group([[0.0, 0.0], [0.0, 0.0]]).fill(row=torch.tensor([4, 17]))
    with pytest.raises(ValueError, match="prompt 17, response 1"):
        score(lambda b: torch.tensor([[0.0, 0.0], [0.0, NAN]]))(batch)
    absent = group([[0.0, 0.0]], [[True, False]])
    assert score(lambda b: torch.tensor([[1.0, NAN]]))(absent)["reward"][0, 0] == 1


def test_the_running_mean_lags_by_one_round():
    stage, policy = RunningKL(decay=0.5), Bandit(torch.zeros(1, 3))
    prompt = torch.zeros(1, 1, dtype=torch.long)
    own = policy.sample(prompt, torch.ones_like(prompt, dtype=torch.bool), 2, torch.Generator())
    at = lambda kl: own.fill(old_logp=torch.full((1, 2, 1), kl), ref_logp=torch.zeros(1, 2, 1))
    assert [stage(at(kl))["baseline"].item() for kl in (4.0, 2.0, 0.0)] == [0.0, 4.0, 3.0]
    again = RunningKL(decay=0.5)
    again.restore(stage.state())
    assert again(at(0.0))["baseline"].item() == 1.5
