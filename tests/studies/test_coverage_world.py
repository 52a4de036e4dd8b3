"""The world of partial coverage, and the log-linear trainer under it."""

import math

import pytest
import torch

from modeseek.objectives import DPO, HyPO
from modeseek.studies.worlds.coverage import (
    FRESH,
    OUTSIDE,
    PAIRS,
    SUPPORTED,
    PartialCoverage,
    own_samples,
    partial,
    preferences,
)
from modeseek.studies.worlds.linear import LogLinear, both_orders, descend, draw, pairs_of, referred, told
from modeseek.train import evaluate

WORLD = PartialCoverage()


def end(rows, metric):
    last = max(row["step"] for row in rows)
    return {row["seed"]: row[metric] for row in rows if row["step"] == last}


def test_the_support_has_all_but_a_thousandth_and_the_reward_is_in_the_class():
    problem, features = partial(range(30), 3.0)
    assert problem.ref.sum(-1).tolist() == pytest.approx([1] * 30)
    assert problem.ref[:, :SUPPORTED].sum(-1).tolist() == pytest.approx([0.999] * 30)
    assert problem.reward[:, SUPPORTED:].mean().item() == pytest.approx(-2, abs=0.1)
    assert problem.reward[:, :SUPPORTED].std().item() == pytest.approx(1, abs=0.05)
    assert features[:, SUPPORTED:, 0].mean().item() == pytest.approx(3, abs=0.1)
    fitted = torch.linalg.lstsq(features, problem.reward[..., None]).solution
    assert ((features @ fitted)[..., 0] - problem.reward).abs().max() < 1e-9


def test_the_gap_is_beta_times_the_kl_to_the_optimum():
    problem, _ = partial(range(10), 1.5)
    logp = torch.randn(10, SUPPORTED + OUTSIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    logp = logp.log_softmax(-1)
    found = problem.metrics(logp)
    kl = (logp.exp() * (logp - problem.optimum())).sum(-1)
    assert found["gap"].tolist() == pytest.approx((0.1 * kl).tolist(), abs=1e-9)
    assert found["identity_error"].abs().max() < 1e-9
    assert problem.metrics(problem.optimum())["gap"].abs().max() < 1e-12


def test_local_pairs_stay_on_the_support_and_global_ones_do_not():
    problem, _ = partial(range(10), 1.5)
    local = preferences(problem, range(10), "local").response
    everywhere = preferences(problem, range(10), "global").response
    assert local.max() < SUPPORTED
    share = (everywhere >= SUPPORTED).double().mean().item()
    assert share == pytest.approx(OUTSIDE / (SUPPORTED + OUTSIDE), abs=0.04)
    assert (local[:, 0] != local[:, 1]).all() and (everywhere[:, 0] != everywhere[:, 1]).all()


def test_labels_follow_bradley_terry():
    """P(first chosen) = sigma(1 - 0) = 0.731; u below it chooses the first."""
    reward = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    first, second = torch.ones(1, 3, dtype=torch.long), torch.zeros(1, 3, dtype=torch.long)
    chosen, rejected = told(reward, first, second, torch.tensor([[0.1, 0.73, 0.74]], dtype=torch.float64))
    assert chosen.tolist() == [[1, 1, 0]] and rejected.tolist() == [[0, 0, 1]]
    pairs = both_orders(reward, first[:, :1], second[:, :1])
    assert pairs.weight.tolist() == pytest.approx([2 / (1 + math.exp(-1)), 2 / (1 + math.e)])  # mean 1


def test_samples_are_where_the_luck_falls_in_the_cumulative_distribution():
    p = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
    assert draw(p, torch.tensor([[0.0, 0.19, 0.21, 0.69, 0.71, 0.9999]], dtype=torch.float64)).tolist() == [
        [0, 0, 1, 1, 2, 2]
    ]


def test_one_step_of_descent_is_the_gradient_by_hand():
    """One pair, feature difference (1, -2): the gradient of -ln sigma(0) is -beta / 2 of it, the rate 0.4."""
    features = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]], dtype=torch.float64)
    policy = LogLinear(torch.full((1, 2), math.log(0.5), dtype=torch.float64), features)
    one = lambda at: torch.tensor([[at]])
    pairs = referred(pairs_of(one(0), one(1)), policy.ref_logp)
    descend(policy, DPO(beta=0.5), lambda: pairs, 1, 0.4)
    assert policy.theta.tolist() == [pytest.approx([0.4 * 0.25, -0.4 * 0.25 * 2])]


def test_the_pull_of_fresh_samples_is_the_gradient_of_the_kl():
    """Averaged over draws, HyPO's gradient less DPO's is `kl` times the exact gradient of KL(pi || pi_ref)."""
    problem, features = partial([0], 1.5)
    policy = LogLinear(problem.ref.log(), features)
    with torch.no_grad():
        policy.theta += 0.6 * torch.randn(1, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logp = policy.all_logp()
    (exact,) = torch.autograd.grad((logp.exp() * (logp - policy.ref_logp)).sum(), policy.theta)
    pairs = referred(preferences(problem, [0], "local"), policy.ref_logp)
    gradient = lambda objective, batch: torch.autograd.grad(
        evaluate(objective, policy, batch).per_prompt.mean(), policy.theta
    )[0]
    fresh = own_samples(policy, [0])
    hypo = HyPO(beta=0.1, kl=1.0, kl_baseline="leave_one_out")
    total = sum(gradient(hypo, pairs.beside(referred(fresh(), policy.ref_logp))) for _ in range(150)) / 150
    pull = (total - gradient(DPO(beta=0.1), pairs))[0]
    assert torch.cosine_similarity(pull, exact[0], 0) > 0.99
    assert (pull.norm() / exact.norm()).item() == pytest.approx(1, abs=0.05)


def test_fresh_samples_stand_behind_their_pairs_and_are_new_each_time():
    problem, features = partial([0, 1], 1.5)
    fresh = own_samples(LogLinear(problem.ref.log(), features), [0, 1])
    a, b = fresh(), fresh()
    assert a.response.shape == (2 * PAIRS, FRESH, 1) and a.fresh.all()
    assert (a.prompt[:, 0] == torch.arange(2).repeat_interleave(PAIRS)).all()
    assert not torch.equal(a.response, b.response)


@pytest.mark.parametrize(("method", "dials"), [("hypo", {}), ("dpo", {}), ("chipo", {}), ("rlhf", {"bound": "data"})])
def test_a_seed_alone_is_the_seed_among_others(method, dials):
    alone = WORLD.run(method, [5], steps=12, **dials)
    among = [row for row in WORLD.run(method, [3, 5], steps=12, **dials) if row["seed"] == 5]
    assert len(alone) == len(among)
    for a, b in zip(alone, among, strict=True):
        assert a == pytest.approx(b, rel=1e-9, abs=1e-12)


def test_all_methods_start_at_the_same_reference():
    starts = [WORLD.run(method, [4], steps=1)[0] for method in WORLD.methods()]
    assert all(row["step"] == 0 and row["kl"] == pytest.approx(0, abs=1e-12) for row in starts)
    assert len({round(row["reward"], 12) for row in starts}) == 1


def test_unbounded_rlhf_is_dpo_where_both_have_the_same_features():
    seeds = range(3)
    dpo = end(WORLD.run("dpo", seeds, beta=0.2, steps=60), "reward")
    rlhf = end(WORLD.run("rlhf", seeds, beta=0.2, steps=60), "reward")
    assert dpo == pytest.approx(rlhf, rel=1e-9)


def test_a_bounded_reward_leaves_less_outside():
    harsh = PartialCoverage(spurious=3.0)
    free, bound = (end(harsh.run("rlhf", range(6), steps=250, bound=b), "ood_mass") for b in ("none", "data"))
    assert sum(bound.values()) < sum(free.values()) / 3


@pytest.mark.slow
def test_hypo_rescues_what_dpo_loses():
    harsh = PartialCoverage(spurious=3.0)
    dpo, hypo = (harsh.run(method, range(5), steps=500) for method in ("dpo", "hypo"))
    assert all(end(hypo, "kl")[s] < end(dpo, "kl")[s] for s in range(5))
    assert sum(end(hypo, "ood_mass").values()) < sum(end(dpo, "ood_mass").values()) / 2


def test_every_dial_of_the_grid_is_one_of_the_method():
    for method in WORLD.methods():
        assert all(len(values) == (6 if method == "chipo" else 5) for values in WORLD.grid(method).values())
        WORLD.run(method, [0], **{name: values[0] for name, values in WORLD.grid(method).items()} | {"steps": 1})
    with pytest.raises(ValueError, match="kl: dpo in partial has no such dial"):
        WORLD.run("dpo", [0], kl=0.1)
    with pytest.raises(ValueError, match="coverage: 'none', expected one of local, global"):
        WORLD.run("dpo", [0], coverage="none")
