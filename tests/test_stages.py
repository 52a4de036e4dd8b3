import copy
import dataclasses
import math

import pytest
import torch

from modeseek.batch import Batch
from modeseek.objectives import DPO, SFT, UnpairedAOT, call
from modeseek.policies.bandit import Bandit
from modeseek.policies.gpt import gpt_policy
from modeseek.sources import offline, on_policy
from modeseek.stages import (
    AdaptiveKL,
    BestRandom,
    Challenge,
    MismatchedKL,
    MovingReference,
    RunningKL,
    RunningMean,
    RunningMidpoint,
    against_own,
    all_pairs,
    best,
    best_second,
    best_sigma,
    best_worst,
    chosen,
    clip_reward,
    duel,
    gae,
    greedy_baseline,
    group_mean,
    group_std,
    high_entropy,
    keep_finished,
    keep_good,
    keep_varied,
    kl_per_token,
    kl_shaped,
    label_pairs,
    leave_one_out,
    mixed_pairs,
    no_baseline,
    on_policy_weight,
    paid_at_end,
    penalise_length,
    penalise_unfinished,
    rank_log_ratios,
    rank_margins,
    ranked,
    recall,
    recall_value,
    refer,
    refer_old,
    reward_to_go,
    reweigh,
    score,
    share_tokens,
    standardise_reward,
    truncated_is,
    whiten,
    whiten_reward,
    win_rate,
)
from modeseek.train import Loop, Steps, fit, run
from wide import WithValue, all_logp


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


def responses(batch):
    return batch.response[..., 0].tolist()


def test_the_second_best_is_the_next_one_that_is_worse():
    assert responses(best_second(group([[3.0, 1.0, 3.0, 2.0], [1.0, 1.0, 1.0, 1.0]]))) == [[0, 3]]


def test_the_rejected_one_is_two_deviations_below_the_mean():
    """Rewards 0, 4, 8, 8 with mean 5 and deviation sqrt(11): one below is 1.68, nearest to 0; half of one is 3.34."""
    batch = group([[8.0, 0.0, 4.0, 8.0]])
    assert responses(best_sigma(1.0)(batch)) == [[0, 1]]
    assert responses(best_sigma(0.5)(batch)) == [[0, 2]]


def test_a_random_rejected_one_is_another_present_one_and_worse():
    batch = group([[3.0, 1.0, 2.0, 9.0]] * 200, [[True, True, True, False]] * 200)
    rejected = [pair[1] for pair in responses(BestRandom(seed=1)(batch))]
    assert set(rejected) == {1, 2} and 70 < rejected.count(1) < 130
    assert len(BestRandom()(group([[1.0, 1.0]]))) == 0
    first, again = BestRandom(seed=1), BestRandom(seed=2)
    first(batch)
    again.restore(first.state())
    assert responses(first(batch)) == responses(again(batch))


def test_all_pairs_share_the_weight_of_their_prompt():
    batch = group([[3.0, 1.0, 2.0], [1.0, 1.0, NAN]], [[True] * 3, [True, True, False]]).fill(place=torch.arange(2))
    pairs = all_pairs()(batch)
    assert responses(pairs) == [[0, 1], [0, 2], [2, 1]]
    assert pairs["margin"].tolist() == [2, 1, 1] and pairs["place"].tolist() == [0, 0, 0]
    torch.testing.assert_close(pairs.weight, torch.full((3,), 1 / 3))
    assert responses(all_pairs(gap=1.5)(batch)) == [[0, 1]]


def test_a_ranking_puts_what_is_absent_last():
    batch = ranked(group([[1.0, NAN, 3.0, 2.0]], [[True, False, True, True]]))
    assert responses(batch)[0][:3] == [2, 3, 0] and batch.present.tolist() == [[True, True, True, False]]


def test_prompts_without_variance_are_left_out():
    kept = keep_varied(group([[1.0, 1.0, 5.0], [1.0, 2.0, 1.0]], [[True, True, False], [True] * 3]))
    assert kept["reward"][:, 1].tolist() == [2]


def test_only_good_and_finished_responses_are_kept():
    batch = group([[1.0, 2.0], [1.0, 2.0]])
    yes = torch.tensor([[False, True], [False, False]])
    for kept in (keep_good(batch.fill(label=yes)), keep_finished(batch.fill(finished=yes))):
        assert kept.present.tolist() == [[False, True]] and kept.mask[..., 0].tolist() == [[False, True]]


def mixed():
    """The data's pair, tokens 0 and 1, with three fresh responses behind, tokens 2 to 4."""
    batch = group([[NAN, NAN, 1.0, 3.0, 2.0], [NAN, NAN, 1.0, 1.0, 1.0]]).fill(place=torch.arange(2))
    return dataclasses.replace(batch, fresh=torch.tensor([[False, False, True, True, True]] * 2))


def test_the_data_is_paired_with_the_policys_own():
    assert responses(against_own(mixed())) == [[0, 2], [0, 2]]


def test_offline_and_fresh_pairs_share_a_prompt():
    both = mixed_pairs(0.25)(mixed())
    assert responses(both) == [[0, 1], [0, 1], [3, 2]] and both["place"].tolist() == [0, 1, 0]
    assert both.weight.tolist() == [0.75, 1.0, 0.25]
    with pytest.raises(ValueError, match="share: 1"):
        mixed_pairs(1.0)


def test_pairs_are_called_good_and_bad():
    assert label_pairs(group([[0.0, 0.0]]))["label"].tolist() == [[True, False]]


def lengths(*tokens, **columns):
    """One prompt with responses of these lengths."""
    batch = Batch.of([[1]], [[[2] * n for n in tokens]])
    return batch.fill(**columns)


def test_the_reward_is_paid_at_the_last_token_and_the_kl_at_each():
    batch = lengths(2, 1, reward=torch.tensor([[1.0, -2.0]]))
    assert paid_at_end(batch)["token_reward"].tolist() == [[[0, 1], [-2, 0]]]
    batch = batch.fill(old_logp=torch.tensor([[[-1.0, -2], [-3, 9]]]), ref_logp=torch.tensor([[[-2.0, -2], [-2, 0]]]))
    charged = kl_per_token(0.5)(batch)
    assert charged["token_reward"].tolist() == [[[-0.5, 1.0], [-2 + 0.5, 0]]]
    torch.testing.assert_close(charged["token_reward"].sum(-1), kl_shaped(0.5)(batch)["reward"])


def test_the_price_of_the_kl_follows_the_target():
    """Log-ratios 3 and 1, mean 2: twice the target of 1, cut to an error of 0.2; two samples of a horizon of 10."""
    batch = lengths(1, 1, reward=torch.tensor([[1.0, 1.0]]))
    batch = batch.fill(old_logp=torch.tensor([[[3.0], [1.0]]]), ref_logp=torch.zeros(1, 2, 1))
    stage = AdaptiveKL(target=1.0, horizon=10.0, beta=0.5, per="response")
    assert stage(batch)["reward"].tolist() == [[1 - 1.5, 1 - 0.5]]
    assert stage.beta == pytest.approx(0.5 * (1 + 0.2 * 2 / 10))
    again = AdaptiveKL(target=1.0)
    again.restore(stage.state())
    assert again.beta == stage.beta
    per_token = AdaptiveKL(target=2.0, beta=0.5)
    assert per_token(batch)["token_reward"].tolist() == [[[-0.5], [0.5]]] and per_token.beta == 0.5


def test_shaping_keeps_the_reward_as_it_was_given():
    batch = lengths(3, 1, 2, reward=torch.tensor([[5.0, 1.0, 3.0]]), finished=torch.tensor([[False, True, True]]))
    cut = penalise_unfinished(2.0)(batch)
    assert cut["reward"].tolist() == [[3, 1, 3]]
    assert clip_reward(0.0, 2.0)(cut)["reward"].tolist() == [[2, 1, 2]]
    assert clip_reward(0.0, 2.0)(cut)["raw_reward"].tolist() == [[5, 1, 3]]
    assert penalise_length(3, 2)(batch)["reward"].tolist() == [[5 - 1, 1, 3 - 0.5]]
    for stage in (lambda: clip_reward(1.0, 1.0), lambda: penalise_length(2, 3)):
        with pytest.raises(ValueError, match="expected"):
            stage()


def test_rewards_are_standardised_by_group_and_whitened_by_round():
    batch = group([[1.0, 3.0, NAN], [0.0, 0.0, 0.0]], [[True, True, False], [True] * 3])
    torch.testing.assert_close(standardise_reward(batch)["reward"], torch.tensor([[-1.0, 1, 0], [0, 0, 0]]))
    white = whiten_reward(batch)["reward"][batch.present]
    torch.testing.assert_close(white.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(white.var(), torch.tensor(1.0))


def test_the_chance_to_win_is_over_the_others():
    """Rewards log 3 and 0 win 3/4 and 1/4 of the time; a third of log 3 ties with the first."""
    log3 = math.log(3)
    wins = win_rate(group([[log3, 0.0, NAN], [log3, 0.0, log3]], [[True, True, False], [True] * 3]))["win_rate"]
    torch.testing.assert_close(wins[0, :2], torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(wins[1], torch.tensor([0.625, 0.25, 0.625]))  # (1/2 + 3/4) / 2
    assert win_rate(group([[7.0]]))["win_rate"].item() == 0.5


def test_a_duel_is_with_the_reference_or_with_oneself():
    log3 = math.log(3)
    batch = group([[log3, 0.0, 0.0]])
    own = duel(dataclasses.replace(batch, fresh=torch.tensor([[True, True, False]])))
    torch.testing.assert_close(own["reward"], torch.tensor([[0.25, 0.0]]))  # against the last one alone
    assert responses(own) == [[0, 1]]
    self_play = duel(dataclasses.replace(batch, fresh=torch.ones(1, 3, dtype=torch.bool)))
    torch.testing.assert_close(self_play["reward"], torch.tensor([[0.25, -0.125, -0.125]]))


def test_rivals_come_from_the_reference_and_are_not_fresh():
    policy = Bandit(torch.tensor([[50.0, 0.0]]))
    stage = Challenge(Bandit(torch.tensor([[0.0, 50.0]])), k=2)
    prompt = torch.zeros(3, 1, dtype=torch.long)
    own = policy.sample(prompt, torch.ones_like(prompt, dtype=torch.bool), 1, torch.Generator())
    batch = stage(own)
    assert responses(batch) == [[0, 1, 1]] * 3 and batch.fresh.tolist() == [[True, False, False]] * 3
    uniform = [Challenge(Bandit(torch.zeros(1, 9)), k=5, seed=s) for s in (0, 1)]
    uniform[0](own)
    uniform[1].restore(uniform[0].state())
    assert responses(uniform[0](own)) == responses(uniform[1](own))


def test_remax_subtracts_the_reward_of_the_greedy_response():
    policy = Bandit(torch.tensor([[0.0, 1.0, 0.5]]))
    batch = group([[5.0, 7.0, 6.0]])
    advantage = greedy_baseline(policy, lambda b: 10.0 * b.response[..., 0].float())(batch)["advantage"]
    assert advantage[..., 0].tolist() == [[-5, -3, -4]]


def test_the_running_mean_of_rewards_is_of_earlier_rounds():
    stage = RunningMean(decay=0.5)
    seen = [stage(group([[r, r + 2]]))["advantage"][0, :, 0].tolist() for r in (0.0, 4.0, 0.0)]
    assert seen == [[-1, 1], [3, 5], [-3, -1]]  # baselines 1 (its own), 1, then 1/2 + 5/2
    again = RunningMean(decay=0.5)
    again.restore(stage.state())
    assert again(group([[2.0]]))["advantage"].item() == 0.0  # 3/2 + 1/2
    assert no_baseline(group([[2.0]]))["advantage"].item() == 2


def test_the_reward_to_go():
    batch = lengths(3, 1).fill(token_reward=torch.tensor([[[1.0, 2.0, 4.0], [8.0, NAN, NAN]]]))
    assert reward_to_go(0.5)(batch)["advantage"].tolist() == [[[1 + 0.5 * (2 + 0.5 * 4), 4, 4], [8, 0, 0]]]


def test_advantages_of_a_critic_by_hand():
    """Rewards 1, 0, 2, values 0.5, 1, 1.5; gamma 0.5, lambda 0.5. Errors: 1, -0.25 and 0.5 at the end.

    1 + 0.5 - 0.5 = 1; 0 + 0.75 - 1 = -0.25; 2 - 1.5 = 0.5. Backwards with a factor of a quarter: 0.5, -0.125, 0.96875.
    """
    columns = {"token_reward": torch.tensor([[[1.0, 0.0, 2.0]]]), "old_value": torch.tensor([[[0.5, 1.0, 1.5]]])}
    batch = lengths(3, **columns, last_value=torch.tensor([[4.0]]), finished=torch.tensor([[True]]))
    done = gae(0.5, 0.5)(batch)
    assert done["advantage"].tolist() == [[[0.96875, -0.125, 0.5]]]
    assert done["returns"].tolist() == [[[1.46875, 0.875, 2.0]]]
    cut = batch.fill(finished=torch.tensor([[False]]))
    assert gae(0.5, 0.5)(cut)["advantage"][0, 0, 2] == 2 + 0.5 * 4 - 1.5  # goes on with the value of what follows
    torch.testing.assert_close(gae(0.5, 0.5, "terminal")(cut)["advantage"], done["advantage"])


def test_with_lambda_one_the_returns_do_not_depend_on_the_critic():
    torch.manual_seed(0)
    batch = lengths(3, 2, 1, token_reward=torch.randn(1, 3, 3), finished=torch.ones(1, 3, dtype=torch.bool))
    batch = batch.fill(last_value=torch.randn(1, 3))
    a, b = (gae(0.9, 1.0)(batch.fill(old_value=torch.randn(1, 3, 3)))["returns"] for _ in range(2))
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(a, reward_to_go(0.9)(batch)["returns"])


def test_the_critic_is_asked_before_each_token_and_after_the_last():
    class Counting(torch.nn.Module):
        def value(self, batch):
            """How many tokens of the response the state has seen: of the places before t that count."""
            return batch.mask.cumsum(-1) - batch.mask.int()

    batch = recall_value(Counting())(lengths(3, 1, 2))
    assert batch["last_value"].tolist() == [[3, 1, 2]]
    assert [x[:n] for x, n in zip(batch["old_value"][0].tolist(), (3, 1, 2), strict=True)] == [[0, 1, 2], [0], [0, 1]]


def test_advantages_are_whitened_over_all_tokens():
    batch = lengths(2, 1, advantage=torch.tensor([[[1.0, 2.0], [3.0, NAN]]]))
    assert whiten(batch)["advantage"].tolist() == [[[pytest.approx(-1), 0], [pytest.approx(1), 0]]]


def test_the_weight_of_another_engine_is_truncated():
    """Ratios 1/10, 1 and 3 between 0.5 and 2."""
    old = torch.tensor([[[0.1, 1.0, 3.0]]]).log()
    batch = lengths(3, old_logp=old, sampler_logp=torch.zeros(1, 1, 3), advantage=torch.full((1, 1, 3), -2.0))
    assert truncated_is(2.0, 0.5)(batch)["advantage"].tolist() == [[[-1, -2, -4]]]
    torch.testing.assert_close(truncated_is(2.0)(batch)["advantage"][0, 0, 0], torch.tensor(-0.2))
    with pytest.raises(ValueError, match="low: 3"):
        truncated_is(2.0, 3.0)


def test_recall_keeps_what_the_sampler_said():
    policy = Bandit(torch.zeros(1, 3))
    batch = recall(policy)(group([[1.0, 2.0, 3.0]]).fill(old_logp=torch.full((1, 3, 1), -7.0)))
    assert batch["sampler_logp"].unique().tolist() == [-7] and refer_old(batch)["ref_logp"] is batch["old_logp"]
    assert recall(policy)(batch)["sampler_logp"].unique().tolist() == [-7]


def test_only_the_least_certain_tokens_keep_their_advantage():
    class Unsure:
        def entropy(self, batch):
            return torch.tensor([[[0.1, 0.9], [0.5, NAN]]])

    batch = lengths(2, 1, advantage=torch.ones(1, 2, 2))
    assert high_entropy(Unsure(), 0.5)(batch)["advantage"].tolist() == [[[0, 1], [1, 0]]]


def test_z0_is_the_log_ratio_with_the_neighbours_responses():
    """Contexts 0 and 1; a response to one is judged under the other. KL (1/4 log 1/2 + 3/4 log 3/2) is not asked."""
    policy, reference = Bandit(torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])), Bandit(torch.zeros(2, 2))
    batch = Batch.of([[0], [1]], [[[0]], [[1]]])
    stage = MismatchedKL(policy, reference)
    # prompt 0 with token 1: log 1/2 - log 1/2 = 0; prompt 1 with token 0: log 3/4 - log 1/2 = log 3/2
    torch.testing.assert_close(stage(batch)["z0"], torch.full((2,), math.log(1.5) / 2))
    below = Batch.of([[0], [1]], [[[1]], [[1]]])
    assert stage(below)["z0"].tolist() == [0, 0]  # (0 + log 1/2) / 2 is below zero
    stage(batch)
    assert stage(batch.prompts(slice(0, 1)))["z0"].item() == pytest.approx(math.log(1.5) / 2)


def test_z0_leaves_out_absent_responses_of_the_neighbour():
    policy, reference = Bandit(torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])), Bandit(torch.zeros(2, 2))
    batch = Batch.of([[0], [1]], [[[0]], [[1], [0]]])  # a second place that prompt 0 does not have
    # prompt 0 with tokens 1 and 0: 0 and 0; prompt 1 with token 0: log 3/2
    torch.testing.assert_close(MismatchedKL(policy, reference)(batch)["z0"][0], torch.tensor(math.log(1.5) / 3))


def test_kto_is_refused_one_prompt_at_a_time():
    stage = MismatchedKL(Bandit(torch.zeros(1, 2)), Bandit(torch.zeros(1, 2)))
    with pytest.raises(ValueError, match="minibatch: 1"):
        stage(Batch.of([[0]], [[[0]]]))


def test_the_midpoint_moves_half_the_way():
    """Log-ratios of a bandit that has moved to (3/4, 1/4): log 3/2 for token 0, log 1/2 for token 1."""
    stage = RunningMidpoint(Bandit(torch.tensor([[math.log(3), 0.0]])), decay=0.5)
    at = lambda a, b: Batch.of([[0]], [[[a], [b]]]).fill(
        ref_logp=torch.full((1, 2, 1), math.log(0.5)), label=torch.tensor([[True, False]])
    )
    up, down = math.log(1.5), math.log(0.5)
    assert stage(at(0, 1))["midpoint"].item() == pytest.approx((up + down) / 2)
    assert stage(at(1, 1))["midpoint"].item() == pytest.approx(((up + down) / 2 + down) / 2)
    again = RunningMidpoint(stage.policy, decay=0.5)
    again.restore(stage.state())
    assert (again.good, again.bad) == (stage.good, stage.bad)


def test_shares_of_tokens_weigh_as_the_loop_does():
    batch = dataclasses.replace(Batch.of([[1], [1]], [[[2, 2]], [[2, 2, 2]]], weight=[1.0, 2.0]))
    share = share_tokens(batch)["token_share"]
    # sum of weight x share x tokens over the sum of weights is one
    torch.testing.assert_close(
        (batch.weight * share * torch.tensor([2, 3])).sum() / batch.weight.sum(), torch.tensor(1.0)
    )


def pairs_of(policy, seed=0):
    rng = torch.Generator().manual_seed(seed)
    batch = Batch.of([[0]] * 4, torch.randint(5, (4, 2, 1), generator=rng).tolist())
    torch.manual_seed(seed)
    return refer(Bandit(torch.randn(1, 5)))(batch)


def test_the_reference_margin_has_the_rank_of_the_policys():
    torch.manual_seed(3)
    policy = Bandit(torch.randn(1, 5))
    batch = rank_margins(policy)(pairs_of(policy))
    total = policy.logp(batch).squeeze(-1).detach()
    margin, told = total[:, 0] - total[:, 1], (batch["ref_logp"][:, 0] - batch["ref_logp"][:, 1]).squeeze(-1)
    order = margin.argsort()
    torch.testing.assert_close(batch["ranked_margin"][order], told.sort().values)


def test_the_gradient_of_unpaired_transport_is_that_of_sorting():
    """The paper's loss, sorted in one piece, has the same gradient; the value counts every pair twice."""
    torch.manual_seed(3)
    policy = Bandit(torch.randn(1, 5).double())
    batch = pairs_of(policy)
    ratio = (policy.logp(batch) - batch["ref_logp"]).squeeze(-1)
    gap = ratio[:, 0].sort().values - ratio[:, 1].sort().values
    whole = -torch.nn.functional.logsigmoid(0.1 * gap).sum()
    want = torch.autograd.grad(whole, policy.logits)[0]
    logp = policy.logp(batch)
    loss = call(UnpairedAOT(0.1), rank_log_ratios(policy)(batch), {"logp": logp}).per_prompt.sum()
    torch.testing.assert_close(torch.autograd.grad(loss, policy.logits)[0], want)
    torch.testing.assert_close(loss, 2 * whole)


def test_a_pair_weighs_what_the_policy_makes_of_it():
    """Tokens of 3/4 and 1/4: plain 3/16; two draws agree with 10/16, so aligned (12/10)(4/10) = 0.48; at most one."""
    policy = WithValue(Bandit(torch.tensor([[math.log(3), 0.0]])), prompts=1)
    batch = Batch.of([[0]], [[[0], [1]]], weight=[2.0])
    assert on_policy_weight(policy, "none")(batch).weight.item() == pytest.approx(2 * 3 / 16)
    assert on_policy_weight(policy)(batch).weight.item() == pytest.approx(2 * 0.48)
    likely = Batch.of([[0]], [[[0], [0]]])
    assert on_policy_weight(policy)(likely).weight.item() == 1
    with pytest.raises(ValueError, match="alignment: sampled"):
        on_policy_weight(policy.policy)


def test_reweighed_old_samples_have_the_gradient_of_fresh_ones():
    """One prompt, two actions a group: the mean over all groups of the old policy, weighed by pi / pi_old, is the
    gradient over groups of the policy of now; the clipped one never weighs more than the old one."""
    old, now = torch.tensor([0.5, 0.3, 0.2]), Bandit(torch.tensor([[0.1, 0.9, -0.4]], dtype=torch.float64))
    pairs = [(a, b) for a in range(3) for b in range(3)]
    drawn = Batch.of([[0]] * 9, [[[a], [b]] for a, b in pairs])
    drawn = dataclasses.replace(drawn, fresh=drawn.present).fill(old_logp=old[drawn.response].double().log())
    pi = now.logits.detach()[0].softmax(-1)
    ratio = torch.stack([pi[a] * pi[b] / (old[a] * old[b]) for a, b in pairs])
    torch.testing.assert_close(reweigh(now, "ratio")(drawn).weight.double(), ratio.double())
    torch.testing.assert_close(reweigh(now)(drawn).weight.double(), ratio.double().clamp(max=1))
    chance = torch.stack([old[a] * old[b] for a, b in pairs])
    cost = torch.tensor([1.0, -2.0, 0.5])  # of the group: the product of its actions' costs
    want = sum(pi[a] * pi[b] * cost[a] * cost[b] for a, b in pairs)
    got = sum(chance * reweigh(now, "ratio")(drawn).weight * torch.stack([cost[a] * cost[b] for a, b in pairs]))
    assert float(got) == pytest.approx(float(want), rel=1e-6)


def test_collision_and_entropy_of_the_test_model_sum_over_the_vocabulary():
    torch.manual_seed(0)
    policy = WithValue(gpt_policy(7, eos=0, max_new=3, width=8).double(), prompts=7)
    batch = Batch.of([[1, 2], [3]], [[[4, 5, 6]], [[5]]])
    every = all_logp(policy.policy, batch)
    torch.testing.assert_close(every.exp().sum(-1)[batch.mask], torch.ones(4).double())
    at = every.gather(-1, batch.response[..., None]).squeeze(-1)
    torch.testing.assert_close(at[batch.mask], policy.logp(batch)[batch.mask])


def test_the_reference_follows_every_second_step():
    policy = Bandit(torch.zeros(1, 2, dtype=torch.float64))
    stage = MovingReference(policy, mix=0.5, every=2)
    batch = Batch.of([[0]], [[[0]]])
    seen = []
    for step in range(5):
        with torch.no_grad():
            policy.logits[0, 0] = float(step)
        stage(batch)
        seen.append(stage._reference.logits[0, 0].item())
    assert seen == [0, 0, 1, 1, 2.5]  # half-way to 2 at step 2, to 4 at step 4
    again = MovingReference(policy, mix=0.5, every=2)
    again.restore(copy.deepcopy(stage.state()))
    assert again._reference.logits[0, 0].item() == 2.5 and again.steps == 5
    with pytest.raises(ValueError, match="mix: 0"):
        MovingReference(policy, mix=0.0)


def test_a_reference_that_follows_at_once_is_the_policy_itself():
    """With the hard update at every step all margins are zero, and the loss stays at log 2."""
    policy, rows = Bandit(torch.zeros(1, 5)), []
    data = pairs_of(policy)
    fit(
        policy,
        DPO(),
        offline(data, 4),
        [],
        Steps(max_steps=5, learning_rate=0.1),
        before=[MovingReference(policy, mix=1.0, every=1)],
        watch=lambda loop, row: rows.append(row["loss"]),
    )
    assert rows == pytest.approx([math.log(2)] * 5)


@pytest.mark.parametrize(
    "stages",
    [
        lambda p: [Challenge(Bandit(torch.zeros(1, 5))), lambda b: b.fill(reward=b.response[..., 0].float()), best],
        lambda p: [lambda b: b.fill(reward=b.response[..., 0].float()), BestRandom(), chosen],
    ],
    ids=["challenge", "best_random"],
)
def test_a_stage_that_draws_is_resumed_where_it_was(stages):
    def loop():
        policy = Bandit(torch.zeros(1, 5))
        source = on_policy(policy, Batch.of([[0]] * 8, [[]] * 8), 8, 3)
        return policy, Loop(policy, SFT(), source, stages(policy), Steps(max_steps=6, learning_rate=0.1))

    state, (policy, whole) = {}, loop()
    run(
        whole,
        lambda now, row: state.update(copy.deepcopy({"l": now.state(), "m": policy.state_dict()})) or now.step == 3,
    )
    run(whole)
    again, rest = loop()
    rest.restore(state["l"])
    again.load_state_dict(state["m"])
    run(rest)
    assert torch.equal(again.logits, policy.logits)


def test_labels_that_the_data_gave_stand():
    from modeseek.stages import label_pairs

    assert label_pairs(group([[0.0, 0.0]]))["label"].tolist() == [[True, False]]
    told = group([[0.0], [0.0]]).fill(label=torch.tensor([[False], [True]]))
    assert label_pairs(told)["label"].tolist() == [[False], [True]]
