"""Cases from other projects' tests, through the public names."""

import json
import math
from pathlib import Path

import pytest
import torch

from conftest import reference_cases, shared
from modeseek.batch import Batch
from modeseek.objectives import CISPO, DPO, IPO, PPO, SFT, Hinge, PolicyGradient, SimPO, WithSFT
from modeseek.ops import kl_k1, kl_k3, masked_mean, masked_var, masked_whiten, seq_mean
from modeseek.stages import gae, group_mean, group_std, kl_per_token, leave_one_out, paid_at_end, truncated_is
from modeseek.stages.returns import discounted_returns, generalised_advantage, high_entropy_mask, truncated_ratio


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


def test_hinge():
    for case in reference_cases("rso_hinge"):
        close(Hinge(case["params"]["gamma"])(*pairs(case)).per_prompt, case["expected"]["losses"], case)


def test_simpo():
    for case in reference_cases("simpo"):
        x, p = case["inputs"], case["params"]
        logp = torch.stack([column(x["policy_chosen_logps"]), column(x["policy_rejected_logps"])], 1)
        objective = SimPO(p["beta"], p["gamma"], p["label_smoothing"])
        close(objective(logp, torch.ones(logp.shape, dtype=torch.bool)).per_prompt, case["expected"]["losses"], case)


def test_dpo_with_beta_zero_plus_sft():
    for case in reference_cases("dpo_sigmoid_plus_sft"):
        logp = torch.full((1, 2, 2), -torch.tensor(16.0).double().log().item(), dtype=torch.float64)
        mask = torch.ones(1, 2, 2, dtype=torch.bool)
        dpo = DPO(case["params"]["beta"])(logp, torch.zeros_like(logp), mask).per_prompt.sum()
        sft = SFT()(logp[:, :1], mask[:, :1], torch.ones(1, 1, dtype=torch.bool)).per_prompt.sum()
        close(dpo, case["expected"]["preference_loss"], case)
        close(sft, case["expected"]["sft_loss_sum_over_tokens"], case)
        close(dpo + case["params"]["sft_weight"] * sft, case["expected"]["total"], case)
        both = WithSFT(DPO(case["params"]["beta"]), nll=case["params"]["sft_weight"], nll_reduction="sum")
        close(both(logp, mask, ref_logp=torch.zeros_like(logp)).per_prompt[0], case["expected"]["total"], case)


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


def responses(rows):
    """A Batch of prompts with one response each, of as many tokens as the row has numbers."""
    return Batch.of([[0]] * len(rows), [[[0] * len(row)] for row in rows])


def test_advantages_of_a_critic():
    for case in reference_cases("gae"):
        x, p, want = case["inputs"], case["params"], case["expected"]
        if "discount_t" in x:  # discounts per step, so the sum itself
            reward, discount, value = (t(x[n])[:, None] for n in ("r_t", "discount_t", "values_with_bootstrap"))
            mask = torch.ones(reward.shape, dtype=torch.bool)
            got = generalised_advantage(reward, value[..., :-1], discount, p["lambda"], value[..., -1], mask)
            close(got[:, 0], want["advantages"], case)
            continue
        value = t(x["values"])[:, None]
        batch = responses(x["values"])
        batch = batch.fill(old_value=value, finished=batch.present, last_value=torch.zeros_like(value[..., 0]))
        if "rewards" in x:
            batch = batch.fill(token_reward=t(x["rewards"])[:, None])
        else:
            batch = paid_at_end(batch.fill(reward=t([[x["terminal_reward"]]])))
        got = gae(p["gamma"], p["lambda"])(batch)
        for name, column_name in (("advantages", "advantage"), ("returns", "returns")):
            if name in want:
                close(got[column_name][:, 0], want[name], case)


def test_discounted_returns():
    for case in reference_cases("discounted_returns"):
        x = case["inputs"]
        reward, discount = t(x["r_t"])[:, None], t(x["discount_t"])[:, None]
        mask = torch.ones(reward.shape, dtype=torch.bool)
        got = discounted_returns(reward, discount, t(x["bootstrap_v"])[:, None], mask)
        close(got[:, 0], case["expected"]["returns"], case)


def test_the_kl_charged_at_each_token():
    for case in reference_cases("ppo_kl_shaped_reward"):
        x = case["inputs"]
        batch = responses(x["logprobs"]).fill(reward=t(x["scores"])[:, None])
        batch = batch.fill(old_logp=t(x["logprobs"])[:, None], ref_logp=t(x["ref_logprobs"])[:, None])
        close(kl_k1(batch["old_logp"], batch["ref_logp"])[:, 0], case["expected"]["kl"], case)
        shaped = kl_per_token(case["params"]["kl_coeff"])
        close(shaped(batch)["token_reward"][:, 0], case["expected"]["rewards"], case)
        unpaid = shaped(batch.fill(reward=torch.zeros_like(batch["reward"])))
        close(unpaid["token_reward"][:, 0], case["expected"]["kl_rewards"], case)


def test_cispo():
    for case in reference_cases("cispo"):
        logp, old, advantage, mask, there = row(case, "logps", "old_logps", "advantages")
        objective = CISPO(clip=case["params"]["eps"], clip_high=case["params"]["eps"])
        close(objective(logp, old, advantage, mask, there).per_prompt[0], case["expected"]["loss"], case)


def test_truncated_importance_sampling():
    for case in reference_cases("truncated_is"):
        logp, sampler, advantage, mask, there = row(case, "logps", "generation_logps", "advantages")
        low, high = case["params"]["min"] or 0.0, case["params"]["max"]
        weight, outside = truncated_ratio(logp, sampler, mask, low, high)
        close(weight[0, 0], case["expected"]["weights"], case)
        close(outside.double().mean(), case["expected"]["out_of_bounds_fraction"], case)
        batch = responses([[0] * logp.shape[2]]).fill(old_logp=logp, sampler_logp=sampler, advantage=advantage)
        weighed = truncated_is(high, low)(batch)["advantage"]
        loss = PPO(logp_reduction="mean")(logp, logp, weighed, mask, there).per_prompt[0]
        close(loss, case["expected"]["loss"], case)


def test_entropy():
    """The entropy itself is torch's here; the policies' own is tested where they are."""
    spread = lambda logits: torch.distributions.Categorical(logits=logits).entropy()
    for case in reference_cases("entropy"):
        close(spread(t(case["inputs"]["log_probs"])) / math.log(2), case["expected"]["entropy_bits"], case)
    for case in reference_cases("entropy_loss"):  # a bonus whose weight stands on each prompt
        logits, weight = t(case["inputs"]["logits"]), t(case["inputs"]["weights"])
        entropy = spread(logits).view(-1, 1, 1)
        zero, there = torch.zeros_like(entropy), torch.ones(len(entropy), 1, dtype=torch.bool)
        loss = PPO(entropy=1.0)(zero, zero, zero, there[..., None], there, entropy=entropy).per_prompt
        close((loss.view(weight.shape) * weight).mean(-1), case["expected"]["loss"], case)


def test_tokens_of_high_entropy():
    for case in reference_cases("high_entropy_token_mask"):
        entropy, mask = t(case["inputs"]["entropies"])[:, None], t(case["inputs"]["mask"]).bool()[:, None]
        got = high_entropy_mask(entropy, mask, case["params"]["quantile"])
        assert got[:, 0].int().tolist() == case["expected"]["mask"]


ELSEWHERE = {  # kinds that are about data and evaluation; their tests stand with that code
    "collate_paired",
    "collate_reward_model",
    "extract_prompt",
    "unpair",
    "length_bias_statistic",
}


def test_no_kind_of_case_is_passed_over():
    source = Path(__file__).read_text()
    kinds = {case["kind"] for case in json.loads(shared("data/loss_reference/dev_cases.json").read_text())}
    assert {kind for kind in kinds if f'"{kind}"' not in source} == set()
