import copy
import dataclasses
import pickle

import pytest
import torch
from torch import nn

from modeseek.batch import Batch
from modeseek.config import load
from modeseek.objectives import DPO, PPO, SFT, HyPO, PolicyGradient
from modeseek.ops import seq
from modeseek.policies.bandit import Bandit
from modeseek.policies.gpt import gpt_policy
from modeseek.runs.doubts import Doubts
from modeseek.sources import hybrid, offline, on_policy
from modeseek.stages import (
    AdaptiveKL,
    best_worst,
    chosen,
    clip_reward,
    group_mean,
    kl_shaped,
    leave_one_out,
    no_baseline,
    penalise_unfinished,
    recall,
    refer,
    score,
)
from modeseek.train import Loop, NotFinite, Steps, describe, evaluate, fit, run
from modeseek.train.finite import in_forward
from wide import DAPO, KTO, ActorCriticPPO, WithValue, kl_of_mismatched, share_tokens

VOCAB = 11


def told(n=12, seed=0):
    """Pairs of unequal lengths from a small language."""
    rng = torch.Generator().manual_seed(seed)
    word = lambda low, high: torch.randint(
        1, VOCAB, (int(torch.randint(low, high, (1,), generator=rng)),), generator=rng
    )
    prompts = [word(1, 5).tolist() for _ in range(n)]
    pairs = [[[*word(1, 4).tolist(), 0], [*word(0, 4).tolist(), 0]] for _ in range(n)]
    weight = [1.0 + (i % 3) for i in range(n)]
    return Batch.of(prompts, pairs, weight=weight).fill(row=torch.arange(n))


def policy(seed=0):
    torch.manual_seed(seed)
    return gpt_policy(VOCAB, eos=0, max_new=4, width=16).double()


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def reward(batch):
    return seq((batch.response == 5).double(), batch.mask)


def trained(objective, make_source, make_stages, **steps):
    model = policy()
    reference = copy.deepcopy(model).requires_grad_(False)
    steps = {"max_steps": 4, "learning_rate": 1e-2, "max_grad_norm": 0.05} | steps
    fit(model, objective, make_source(model), make_stages(model, reference), Steps(**steps))
    return weights(model)


@pytest.mark.parametrize("microbatch", [1, 3, 5])
def test_micro_batches_change_memory_and_never_the_result(microbatch):
    args = DPO(), lambda m: offline(told(), 6), lambda m, r: [refer(r)]
    torch.testing.assert_close(trained(*args, microbatch=microbatch), trained(*args), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("microbatch", [1, 2])
def test_ties_left_out_by_a_stage_do_not_change_the_divisor(microbatch):
    """With most prompts tied, the gradient is the sum over the rest divided by all the prompts drawn."""
    args = DPO(), lambda m: on_policy(m, told(), 6, 2), lambda m, r: [score(reward), best_worst, refer(r)]
    torch.testing.assert_close(trained(*args, microbatch=microbatch), trained(*args), rtol=1e-9, atol=1e-12)


def test_the_divisor_is_the_weight_of_the_prompts_drawn():
    """SGD by hand on a bandit: three prompts of weights 1, 2 and 5, the last one dropped by a stage."""
    model = Bandit(torch.zeros(3, 2, dtype=torch.float64))
    data = Batch.of([[0], [1], [2]], [[[0]], [[0]], [[0]]], weight=[1, 2, 5])
    steps = Steps(max_steps=1, learning_rate=1.0, max_grad_norm=100.0)
    loop = Loop(model, SFT(), lambda rng: data, [lambda b: b.prompts(b.prompt[:, 0] < 2)], steps, (), sgd)
    run(loop)
    # d(-log p_0) / d logits = (p_0 - 1, p_1) = (-1/2, 1/2), weighted and divided by 8
    want = torch.tensor([[1, -1], [2, -2], [0, 0]], dtype=torch.float64) / 2 / 8
    torch.testing.assert_close(model.logits.detach(), want)


def sgd(params, lr, betas, weight_decay):
    return torch.optim.SGD(params, lr=lr)


def test_each_pass_visits_every_prompt_once_in_a_new_order():
    seen = []

    def watch_rows(batch):
        seen.append(sorted(batch["row"].tolist()))
        return batch

    model = policy()
    steps = Steps(max_steps=6, minibatch=2, passes=3)
    fit(model, SFT(), offline(told(4), 4), [], steps, before=[watch_rows])
    passes = [seen[i] + seen[i + 1] for i in (0, 2, 4)]
    assert all(sorted(p) == [0, 1, 2, 3] for p in passes)
    assert len({tuple(map(tuple, (seen[i], seen[i + 1]))) for i in (0, 2, 4)}) > 1


def test_an_epoch_is_without_replacement_and_its_last_round_may_be_short():
    source, rng = offline(told(5), 2), torch.Generator().manual_seed(0)
    rounds = [source(rng)["row"].tolist() for _ in range(6)]
    assert [len(r) for r in rounds] == [2, 2, 1, 2, 2, 1]
    first, second = [i for r in rounds[:3] for i in r], [i for r in rounds[3:] for i in r]
    assert sorted(first) == sorted(second) == list(range(5))
    assert rounds[:3] != rounds[3:]


def test_the_first_ppo_step_has_ratio_one():
    rows = []
    model = policy()
    stages = [score(reward), recall(model), group_mean]
    steps = Steps(max_steps=3, passes=3, learning_rate=0.1)
    fit(model, PPO(0.05), on_policy(model, told(), 6, 4), stages, steps, watch=lambda loop, row: rows.append(row))
    assert rows[0]["clip_fraction"] == 0
    assert rows[2]["clip_fraction"] > 0 and [r["sample_age"] for r in rows] == [0, 1, 2]


def test_what_is_too_old_is_refused_or_left():
    model = policy()
    own = on_policy(model, told(), 6, 2)
    with pytest.raises(ValueError, match="at most 0 steps old"):
        fit(model, PolicyGradient(), own, [score(reward), group_mean], Steps(passes=2))
    with pytest.raises(ValueError, match="HyPO takes samples at most 0"):
        fit(model, HyPO(), hybrid(model, told(), 6, 1), [refer(copy.deepcopy(model))], Steps(minibatch=3, max_age=4))
    rows = []
    stages = [score(reward), recall(model), group_mean]
    steps = Steps(max_steps=6, passes=4, max_age=1)
    fit(model, PolicyGradient("ratio"), own, stages, steps, watch=lambda loop, row: rows.append(row))
    assert [r["sample_age"] for r in rows] == [0, 1, 0, 1, 0, 1]


def test_an_on_policy_objective_refuses_the_responses_of_others():
    model = policy()
    stages = [lambda b: b.fill(advantage=torch.zeros(b.response.shape))]
    with pytest.raises(ValueError, match="on_policy source"):
        fit(model, PolicyGradient(), offline(told(), 4), stages, Steps())


def test_a_column_that_no_stage_filled_is_named():
    with pytest.raises(ValueError, match=r"DPO reads ref_logp, .*frozen reference"):
        fit(policy(), DPO(), offline(told(), 4), [], Steps())


def test_a_model_that_cannot_say_something_is_named():
    from modeseek.objectives import BradleyTerry

    with pytest.raises(ValueError, match="BradleyTerry reads score, which a Bandit cannot say"):
        fit(Bandit(torch.zeros(1, 2)), BradleyTerry(), offline(told(), 4), [], Steps())


def test_nothing_to_train_is_an_error():
    with pytest.raises(ValueError, match="nothing to train"):
        fit(policy().requires_grad_(False), SFT(), offline(told(), 4), [], Steps())


def test_rounds_in_which_all_rewards_tie_end_with_an_error():
    model = policy()
    flat = lambda batch: torch.zeros(batch.fresh.shape)
    with pytest.raises(RuntimeError, match="do all rewards tie"):
        fit(model, DPO(), on_policy(model, told(2), 2, 2), [score(flat), best_worst], Steps())


def test_a_round_in_which_every_prompt_ties_is_passed_over():
    """The stages behind best_worst are not asked about a batch without prompts."""
    model, seen = policy(), []
    flat_at_first = lambda batch: reward(batch) * float(len(seen) > 1)
    asked = lambda batch: seen.append(len(batch)) or batch
    strict = lambda batch: batch.fill(ref_logp=copy.deepcopy(model).logp(batch).detach()) if len(batch) else 1 / 0
    stages = [asked, score(flat_at_first), best_worst, strict]
    loop = fit(model, DPO(), on_policy(model, told(), 6, 3), stages, Steps(max_steps=2))
    assert loop.skipped >= 1 and loop.step == 2


def test_tied_prompts_are_counted():
    rows = []
    model = policy()
    stages = [score(reward), best_worst, refer(copy.deepcopy(model))]
    fit(
        model,
        DPO(),
        on_policy(model, told(), 6, 2),
        stages,
        Steps(max_steps=5),
        watch=lambda loop, row: rows.append(row),
    )
    assert sum(row.get("prompts/dropped", 0) for row in rows) > 0


def charged(reward, *stages):
    """What a round says of two groups with these rewards, KL charged: log-ratios of 1 and 2 nats in each."""
    batch = Batch.of([[0]] * 2, [[[1], [2]]] * 2)
    batch = batch.fill(reward=torch.tensor(reward), finished=torch.tensor([[True, False]] * 2))
    batch = batch.fill(old_logp=torch.tensor([[[-1.0], [-2.0]]] * 2), ref_logp=torch.tensor([[[-2.0], [-4.0]]] * 2))
    for stage in stages:
        batch = stage(batch)
    return describe(batch, 2)["frac_reward_zero_std"]


KL = kl_shaped(0.5)
TIE = [[1.0, 1.0], [1.0, 0.0]]  # the first of two groups ties


@pytest.mark.parametrize("baseline", [group_mean, leave_one_out])
def test_rewards_that_the_kl_unties_are_counted_as_ties(baseline):
    """The KL charges 0.5 and 1: the first group's rewards become 0.5 and 0, and differ by nothing but the charge."""
    assert charged(TIE, KL, baseline) == charged(TIE, baseline) == 0.5
    assert charged([[1.0, 1.0]] * 2, AdaptiveKL(per="response"), baseline) == 1
    assert charged([[1.0, 0.0], [0.0, 1.0]], KL, baseline) == 0


def test_rewards_that_the_kl_ties_are_no_ties():
    """1 less 0.5 and 1.5 less 1 are the same, yet one response was worth more."""
    assert charged([[1.0, 1.5]] * 2, KL, group_mean) == 0


def test_a_penalty_unties_rewards_and_a_limit_ties_them_whether_kl_is_charged_or_not():
    """The second response of each group is cut off; of rewards up to 0 nothing is left of a difference above it."""
    for more in ([], [KL]):
        assert charged(TIE, penalise_unfinished(1.0), *more, group_mean) == 0
        assert charged(TIE, clip_reward(-1.0, 0.0), *more, group_mean) == 1


def test_without_a_baseline_of_the_group_rewards_are_counted_as_they_are():
    """There equal rewards teach: both responses are good, or both are bad."""
    assert charged(TIE, KL, no_baseline) == 0
    assert charged(TIE, no_baseline) == 0.5


@pytest.mark.parametrize("name", ["rloo", "ppo"])
def test_a_run_whose_raw_rewards_all_tie_says_so(name):
    """The policy is not the reference, so the KL unties every group."""
    found, model = load(name, ["--reward", "length"]), policy()
    assert [spec.name for spec in found.stages][:4] == ["score", "refer", "recall", "kl_shaped"]
    flat = lambda batch: torch.ones(batch.fresh.shape, dtype=torch.float64)
    baseline = {"rloo": leave_one_out, "ppo": group_mean}[name]
    assert found.stages[-1].name == baseline.__name__
    stages = [score(flat), refer(policy(seed=1)), recall(model), kl_shaped(0.05), baseline]
    doubts, said = Doubts(found), []
    watch = lambda loop, row: said.extend(doubts(row))
    fit(model, found.objective, on_policy(model, told(), 6, 4), stages, Steps(max_steps=5), watch=watch)
    (text,) = said
    assert text.startswith("100% of the prompts of the first 5 logged steps taught nothing")


def test_the_loss_of_a_row_is_the_weighted_mean():
    rows = []
    model = policy()
    batch = told(4)
    want = evaluate(SFT(), model, chosen(batch)).per_prompt.detach()
    want = float((want * batch.weight).sum() / batch.weight.sum())
    fit(
        model,
        SFT(),
        lambda rng: batch,
        [chosen],
        Steps(max_steps=1, microbatch=3),
        watch=lambda loop, row: rows.append(row),
    )
    assert rows[0]["loss"] == pytest.approx(want)


def test_the_schedule():
    s = Steps(max_steps=10, learning_rate=1.0, warmup_steps=2, schedule="linear")
    assert [s.rate(i) for i in (0, 1, 2, 6)] == [0.5, 1.0, 1.0, 0.5]
    assert Steps(max_steps=10, learning_rate=1.0, schedule="cosine").rate(5) == pytest.approx(0.5)


def test_warm_up_may_be_a_share_of_the_run():
    """A quarter of ten steps is rounded up to three."""
    s = Steps(max_steps=10, learning_rate=1.0, warmup_ratio=0.25, schedule="linear")
    assert [s.rate(i) for i in (0, 1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert s.rate(9) == pytest.approx(1 / 7)
    with pytest.raises(ValueError, match="warmup_steps, warmup_ratio: both given"):
        Steps(warmup_steps=3, warmup_ratio=0.1)
    with pytest.raises(ValueError, match="warmup_ratio: 1"):
        Steps(warmup_ratio=1.0)


def poison(where):
    def stage(batch):
        ref = torch.zeros(batch.response.shape, dtype=torch.float64)
        ref[batch["row"] == where] = float("nan")
        return batch.fill(ref_logp=ref)

    return stage


@pytest.mark.parametrize("microbatch", [None, 1])
def test_a_nan_is_stopped_before_it_reaches_the_weights(microbatch):
    model = policy()
    before = weights(model)
    with pytest.raises(NotFinite, match=r"ref_logp is not finite at step 0 in rows \[3\]") as caught:
        fit(model, DPO(), offline(told(6), 6), [poison(3)], Steps(microbatch=microbatch))
    assert torch.equal(weights(model), before)
    assert 3 in caught.value.batch["row"].tolist()


def test_what_was_not_finite_is_told_across_processes():
    with pytest.raises(NotFinite) as caught:
        fit(policy(), DPO(), offline(told(6), 6), [poison(3)], Steps())
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value) and again.rows == [3]


def test_a_nan_of_the_model_is_called_the_models():
    model = policy()
    nn.init.constant_(model.model.head.weight, float("nan"))
    with pytest.raises(NotFinite, match="the model's logp"):
        fit(model, SFT(), offline(told(6), 6), [], Steps())


def test_an_infinite_gradient_names_its_parameter():
    model = policy()
    model.model.head.weight.register_hook(lambda g: g * float("inf"))
    with pytest.raises(NotFinite, match=r"gradient of model\.head\.weight"):
        fit(model, SFT(), offline(told(6), 6), [], Steps())


METHODS = {
    "dpo": (DPO(), lambda m: offline(told(), 5), lambda m, r: [refer(r)], []),
    "online dpo": (DPO(), lambda m: on_policy(m, told(), 5, 3), lambda m, r: [score(reward), best_worst, refer(r)], []),
    "ppo": (PPO(), lambda m: on_policy(m, told(), 6, 3), lambda m, r: [score(reward), recall(m), group_mean], []),
    "kto": (
        KTO(),
        lambda m: offline(told().fill(label=torch.tensor([[True, False]] * 12)), 6),
        lambda m, r: [refer(r)],
        lambda m, r: [kl_of_mismatched(m, r)],
    ),
    "dapo": (
        DAPO(),
        lambda m: on_policy(m, told(), 6, 3),
        lambda m, r: [score(reward), recall(m), group_mean],
        lambda m, r: [share_tokens],
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_loop_restored_in_the_middle_of_a_round_goes_on_bit_for_bit(name):
    objective, make_source, make_stages, make_before = METHODS[name]
    steps = Steps(max_steps=9, learning_rate=1e-2, passes=2, minibatch=2, schedule="linear")

    def loop():
        model = policy()
        reference = copy.deepcopy(model).requires_grad_(False)
        before = make_before(model, reference) if make_before else []
        return model, Loop(model, objective, make_source(model), make_stages(model, reference), steps, before)

    model, whole = loop()
    state = None

    def keep(now, row):
        nonlocal state
        if now.step == 4:
            state = copy.deepcopy((now.state(), model.state_dict()))

    run(whole, keep)
    again, rest = loop()
    rest.restore(copy.deepcopy(state[0]))
    again.load_state_dict(state[1])
    run(rest)
    assert torch.equal(weights(again), weights(model))
    assert rest.step == 9


def test_a_token_mean_over_the_minibatch_ignores_micro_batches_and_equals_one_mean():
    """DAPO through the loop: with ratio one its loss is minus the token mean of the advantages."""
    model = policy()
    rows = []
    batch = told(6)
    batch = batch.fill(advantage=torch.randn(batch.response.shape, dtype=torch.float64))
    batch = dataclasses.replace(recall(model)(batch), fresh=torch.ones_like(batch.fresh), weight=torch.ones(6))
    for size in (None, 1, 4):
        fit(
            copy.deepcopy(model),
            DAPO(),
            lambda rng: batch,
            [],
            Steps(max_steps=1, microbatch=size),
            before=[share_tokens],
            watch=lambda loop, row: rows.append(row["loss"]),
        )
    want = -batch["advantage"][batch.mask].mean().item()
    assert rows == pytest.approx([want] * 3)


def test_kto_sees_the_weights_of_now():
    """z0 is computed before every optimiser step, so within a round it moves."""
    model = policy()
    seen = []
    stage = kl_of_mismatched(model, copy.deepcopy(model).requires_grad_(False))

    def watched(batch):
        filled = stage(batch)
        seen.append(filled["z0"][0].item())
        return filled

    data = told().fill(label=torch.tensor([[True, False]] * 12))
    ref = copy.deepcopy(model).requires_grad_(False)
    fit(
        model,
        KTO(1.0),
        offline(data, 12),
        [refer(ref)],
        Steps(max_steps=6, passes=6, learning_rate=0.05),
        before=[watched],
    )
    assert seen[0] == 0 and len(set(seen[1:])) > 2


def test_a_critic_learns_in_the_same_step():
    torch.manual_seed(0)
    model = WithValue(policy(), prompts=VOCAB)
    before = model.table.detach().clone()

    def returns(batch):
        return batch.fill(returns=batch["advantage"] + 1.0)

    fit(
        model,
        ActorCriticPPO(),
        on_policy(model.policy, told(), 6, 3),
        [score(reward), recall(model), group_mean, returns],
        Steps(max_steps=30, learning_rate=0.05),
    )
    asked = told().prompt[:, -1].unique()
    assert (model.table.detach()[asked] - 1).abs().mean() < (before[asked] - 1).abs().mean()


def test_a_column_is_blamed_where_the_loss_is_finite_and_a_gradient_is_not():
    pair = Batch.of([[1], [1]], [[[2], [3]], [[2], [3]]]).fill(row=torch.tensor([7, 9]))
    ref_logp = torch.tensor([[[0.0], [0.0]], [[0.0], [float("nan")]]])
    found = in_forward(nn.Linear(1, 1), DPO(), [pair.fill(ref_logp=ref_logp)], None, step=4)
    assert found is not None and (found.tensor, found.step, found.rows) == ("ref_logp", 4, [9])
