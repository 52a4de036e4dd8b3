"""Cases from other projects' tests, through the public names."""

import pytest
import torch

from conftest import reference_cases
from modeseek.batch import Batch
from modeseek.objectives import DPO, IPO, PPO, SFT, PolicyGradient
from modeseek.ops import kl_k1, kl_k3, masked_mean, masked_var, masked_whiten, seq_mean
from modeseek.stages import group_mean, group_std, leave_one_out


def t(x):
    return torch.tensor(x, dtype=torch.float64)


def column(values):
    """[P] sums of log-probabilities as responses of one token."""
    return t(values)[:, None]


def close(got, want, case):
    tolerance = {"atol": 0.0, "rtol": 0.0} | case["tolerance"]
    torch.testing.assert_close(got, t(want), **tolerance)


def pairs(case):
    """logp and ref_logp [P, 2, 1] and their mask."""
    x = case["inputs"]
    logp = torch.stack([column(x["policy_chosen_logps"]), column(x["policy_rejected_logps"])], 1)
    ref = torch.stack([column(x["ref_chosen_logps"]), column(x["ref_rejected_logps"])], 1)
    return logp, ref, torch.ones(logp.shape, dtype=torch.bool)


def grouped(case):
    """A Batch of groups from flat lists, ragged where a sample is marked invalid."""
    x = case["inputs"]
    rewards = t(x["rewards"])
    size = case["params"].get("num_generations")
    group = t(x["group"]).long() if "group" in x else torch.arange(len(rewards)) // size
    order = group.argsort(stable=True)
    P = int(group.max()) + 1
    shape = (P, len(rewards) // P)
    valid = t(x.get("valid_mask", [1] * len(rewards)))[order].bool().view(shape)
    batch = Batch.of([[0]] * P, [[[0]] * shape[1]] * P).fill(reward=rewards[order].view(shape))
    batch = Batch.from_tensors(batch.tensors() | {"present": valid, "mask": valid[..., None]})
    return batch, order, valid


def row(case, *names):
    """Per-token numbers as one prompt with one response."""
    values = [t(case["inputs"][n]).view(1, 1, -1) for n in names]
    return *values, torch.ones(values[0].shape, dtype=torch.bool), torch.ones(1, 1, dtype=torch.bool)


def test_dpo():
    for case in reference_cases("dpo_sigmoid"):
        objective = DPO(case["params"]["beta"], label_smoothing=case["params"]["label_smoothing"])
        x = case["inputs"]
        if "policy_chosen_logps" in x:
            close(objective(*pairs(case)).per_prompt, case["expected"]["losses"], case)
        else:
            logp = torch.stack([t(x["per_token_logps_chosen"]), t(x["per_token_logps_rejected"])], 1)
            mask = torch.ones(logp.shape, dtype=torch.bool)
            assert x["completion_mask"] == "all ones"
            first = torch.zeros_like(logp)  # the reference's sums stand at the first token
            first[..., 0] = torch.stack([t(x["ref_chosen_logps"]), t(x["ref_rejected_logps"])], 1)
            close(objective(logp, first, mask).per_prompt.mean(), case["expected"]["loss"], case)


def test_ipo():
    for case in reference_cases("ipo"):
        close(IPO(case["params"]["tau"])(*pairs(case)).per_prompt, case["expected"]["losses"], case)


def test_dpo_with_beta_zero_plus_sft():
    for case in reference_cases("dpo_sigmoid_plus_sft"):
        logp = torch.full((1, 2, 2), -torch.tensor(16.0).double().log().item(), dtype=torch.float64)
        mask = torch.ones(1, 2, 2, dtype=torch.bool)
        dpo = DPO(case["params"]["beta"])(logp, torch.zeros_like(logp), mask).per_prompt.sum()
        sft = SFT()(logp[:, :1], mask[:, :1], torch.ones(1, 1, dtype=torch.bool)).per_prompt.sum()
        close(dpo, case["expected"]["preference_loss"], case)
        close(sft, case["expected"]["sft_loss_sum_over_tokens"], case)
        close(dpo + case["params"]["sft_weight"] * sft, case["expected"]["total"], case)


@pytest.mark.parametrize("kind", ["rloo_advantage", "rloo_baseline"])
def test_leave_one_out(kind):
    for case in reference_cases(kind):
        batch, order, valid = grouped(case)
        advantage = leave_one_out(batch)["advantage"][..., 0]
        if kind == "rloo_advantage":
            close(advantage.flatten(), case["expected"]["advantages"], case)
        else:  # of an invalid sample nobody needs the baseline, and the sources' own differ
            want = t(case["expected"]["baseline"])[order].view(valid.shape)
            close((batch["reward"] - advantage)[valid], want[valid].tolist(), case)


def test_grpo_advantages():
    for case in reference_cases("grpo_advantage"):
        batch, order, _ = grouped(case)
        got = group_std(group_mean(batch))["advantage"].flatten()
        close(got, t(case["expected"]["advantages"])[order].tolist(), case)


def test_ppo():
    for case in reference_cases("ppo_clip"):
        logp, old, advantage, mask, there = row(case, "logps", "old_logps", "advantages")
        p = case["params"]
        objective = PPO(p.get("epsilon", p.get("eps_low")), clip_high=p.get("eps_high"), logp_reduction="mean")
        loss = objective(logp, old, advantage, mask, there).per_prompt[0]
        close(loss, case["expected"].get("policy_loss_mean", case["expected"].get("loss")), case)


def test_reinforce():
    for case in reference_cases("reinforce"):
        logp, advantage, mask, there = row(case, "logps", "advantages")
        loss = PolicyGradient()(logp, advantage, mask, there).per_prompt[0] / mask.sum()  # the case's token mean
        close(loss, case["expected"]["loss"], case)


def test_grpo_losses():
    for case in reference_cases("grpo_loss", "kl_penalty_loss"):
        logp, ref, advantage, mask, there = row(case, "logps", "ref_logps", "advantages")
        objective = PPO(kl=case["params"].get("beta", 0.1), logp_reduction="mean")
        close(objective(logp, logp, advantage, mask, there, ref).per_prompt[0], case["expected"]["loss"], case)
    for case in reference_cases("grpo_loss_aggregation"):  # two sequences of 3 and 1 tokens
        flat = t(case["inputs"]["advantages_per_token_packed"])[0]
        segment = t(case["inputs"]["segment_ids"])[0]
        mask = torch.stack([segment == 1, segment == 2])[None]
        there, zero = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, 4, dtype=torch.float64)
        loss = PPO(logp_reduction="mean")(zero, zero, flat.expand(1, 2, 4), mask, there).per_prompt[0]
        close(loss, case["expected"]["loss"], case)


def test_kl_estimators():
    for case in reference_cases("kl_estimator_k1", "kl_estimator_k3"):
        estimate = kl_k1 if case["kind"].endswith("k1") else kl_k3
        got = estimate(t(case["inputs"]["logps"]), t(case["inputs"]["ref_logps"]))
        close(got, case["expected"]["kl"], case)


def test_masked_statistics():
    for case in reference_cases("masked_mean", "masked_whiten"):
        x, mask, want = t(case["inputs"]["x"]), t(case["inputs"]["mask"]).bool(), case["expected"]
        close(masked_mean(x, mask), want.get("mean", want.get("mean_all")), case)
        if "mean_axis1" in want:
            close(masked_mean(x, mask, 1), want["mean_axis1"], case)
        if "var_unbiased" in want:
            close(masked_var(x, mask), want["var_unbiased"], case)
        if "whitened_at_mask" in want:
            close(masked_whiten(x, mask)[mask], want["whitened_at_mask"], case)


def test_sequence_mean_of_token_means():
    for case in reference_cases("loss_aggregation"):
        x, mask = t(case["inputs"]["loss"])[None], t(case["inputs"]["mask"]).bool()[None]
        if case["params"]["mode"].startswith("sequence"):
            close(seq_mean(x, mask).mean(), case["expected"]["loss"], case)
        else:
            close(masked_mean(x, mask), case["expected"]["global_token_mean"], case)
