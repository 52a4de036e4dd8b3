"""Responses that nobody compared: with shared features, with a table, and with too few policies."""

import pytest
import torch

from modeseek.objectives import DPO
from modeseek.studies.worlds import extrapolation, reversal, unseen_mass
from modeseek.studies.worlds.linear import LogLinear, descend, pairs_of, referred, study_rows, table_features


def test_the_minimal_example_has_the_worked_numbers():
    """Features (1, 0), (1/2, 1/2), (0, 1) and one pair, 2 over 1: the policy is (e^-u, 1, e^u) / Z for a rising u."""
    problem, features = extrapolation.minimal()
    policy = LogLinear(problem.ref.log(), features)
    pair = pairs_of(torch.tensor([[1]]), torch.tensor([[0]]))
    path = {}
    descend(
        policy,
        DPO(beta=1.0),
        lambda: referred(pair, problem.ref.log()),
        100,
        0.1,
        lambda step: path.update({step: policy.all_logp().detach().exp()[0]}),
    )
    expected = {0: (1 / 3, 1 / 3, 1 / 3), 100: (0.039, 0.174, 0.787)}
    for step, p in expected.items():
        assert path[step].tolist() == pytest.approx(p, abs=6e-4)
    track = torch.stack([path[step] for step in range(101)])
    assert (track.diff(dim=0)[:, :2] < 0).all() and (track.diff(dim=0)[:, 2] > 0).all()
    assert (track[:, 0] * track[:, 2] / track[:, 1] ** 2).tolist() == pytest.approx([1] * 101)


def test_the_best_five_are_never_compared():
    problem, _ = extrapolation.linear_world(range(10))
    assert (problem.seen.sum(-1) == extrapolation.COMPARED).all()
    assert not problem.seen.gather(-1, problem.reward.topk(5).indices).any()


def test_dpo_and_rlhf_agree_and_only_features_carry_over():
    world = extrapolation.Extrapolation()
    rows = {method: world.run(method, range(4), steps=80) for method in world.methods()}
    at = lambda method, metric, end: [
        row[metric] for row in rows[method] if (row["step"] == 0) != end and row["step"] in (0, 1, 80)
    ]

    def change(method, metric):
        return [b - a for a, b in zip(at(method, metric, False), at(method, metric, True), strict=True)]

    for method in ("dpo", "rlhf"):
        assert sum(change(method, "logp_best_unseen")) > 0 and all(x < 0 for x in change(method, "logp_chosen"))
    for method in ("dpo_table", "rlhf_table"):
        assert all(x < 0 for x in change(method, "logp_best_unseen"))
    for metric in ("reward", "kl", "logp_chosen", "logp_rejected"):
        assert at("dpo", metric, True) == pytest.approx(at("rlhf", metric, True))
        assert at("dpo", metric, False) == pytest.approx(at("rlhf", metric, False), abs=1e-12)


@pytest.mark.parametrize(("reference", "rises"), [("uniform", False), ("correlated", False), ("anti", True)])
def test_mass_outside_the_data_follows_the_law(reference, rises):
    world = unseen_mass.UnseenMass()
    rows = world.run("dpo", range(5), reference=reference, steps=250)
    for seed in range(5):
        mine = [row for row in rows if row["seed"] == seed]
        assert mine[-1]["ood_mass"] == pytest.approx(mine[-1]["ood_predicted"], rel=1e-3)
        assert (mine[-1]["ood_mass"] > mine[0]["ood_mass"]) == rises == bool(mine[-1]["rise"])


def test_the_law_by_hand():
    """Five rewards of 1 and five of -1 with half of the mass, evenly: E[exp(delta)] = (e + 1/e) / 2 = 1.543 at beta 1,
    so the other half becomes 1 / (1 + 1.543)."""
    problem = unseen_mass.tabular([0], "uniform", 1.0)
    pad = lambda *x: torch.cat([torch.tensor(x), torch.zeros(unseen_mass.RESPONSES - len(x))]).double()[None]
    problem = type(problem)(
        ref=pad(*[0.05] * 5, *[0.05] * 5, 0.5),
        reward=pad(*[1.0] * 5, *[-1.0] * 5),
        seen=problem.seen,
        beta=1.0,
    )
    assert unseen_mass.growth(problem).item() == pytest.approx(1.5430806)
    assert unseen_mass.predicted(problem).item() == pytest.approx(1 / 2.5430806)


def test_the_first_step_moves_unseen_responses_as_first_order_says():
    problem = unseen_mass.tabular(range(4), "anti", 0.5)
    pairs = referred(unseen_mass.every_comparison(problem), problem.ref.log())
    policy = LogLinear(problem.ref.log(), table_features(*problem.ref.shape))
    rate = 1e-5
    descend(policy, DPO(beta=0.5), lambda: pairs, 1, rate)
    moved = (policy.all_logp().detach() - problem.ref.log())[:, unseen_mass.COMPARED :] / rate
    expected = unseen_mass.first_order(problem.ref.log(), pairs, 0.5)
    assert moved.mean(-1).tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert (moved.std(-1) < 1e-6).all()  # all of them alike
    assert (expected > 0).all()  # the rejected ones have the mass


@pytest.mark.parametrize(
    ("count", "t", "p", "reward"),
    [
        ((1.0, 1.0, 100.0), 0.911, (0.640, 0.103, 0.257), 0.846),
        ((100.0, 1.0, 1.0), -0.499, (0.187, 0.506, 0.307), 1.199),
    ],
)
def test_the_reversal_has_the_worked_numbers(count, t, p, reward):
    """Policies (e^t, e^-t, 1) / Z with rewards 1, 2, 0; the reference earns 1."""
    problem, features = reversal.one_dimension(1, 1.0)
    policy = LogLinear(problem.ref.log(), features)
    pairs = reversal.compared(problem, torch.tensor([count], dtype=torch.float64))
    rows = study_rows(policy, DPO(beta=1.0), pairs, problem, [0], 150, 1.0)
    assert policy.theta.item() == pytest.approx(t, abs=6e-4)
    assert policy.all_logp().exp()[0].tolist() == pytest.approx(p, abs=6e-4)
    assert rows[0]["reward"] == pytest.approx(1.0) and rows[-1]["reward"] == pytest.approx(reward, abs=6e-4)


def test_two_stage_rlhf_finds_the_best_of_the_few_policies():
    """max_t J(t) over (e^t, e^-t, 1) / Z: the derivative is zero at its t."""
    row = reversal.Reversal().run("rlhf", [0])[-1]
    problem, features = reversal.one_dimension(1, 1.0)
    t = torch.tensor(-0.9, dtype=torch.float64, requires_grad=True)
    for _ in range(100):
        gain = problem.gain((t * features[..., 0]).log_softmax(-1)).sum()
        (slope,) = torch.autograd.grad(gain, t)
        with torch.no_grad():
            t += slope
    p = (t.detach() * features[0, :, 0]).softmax(-1)
    assert row["reward"] == pytest.approx(float(p @ problem.reward[0]), abs=1e-3) and row["reward"] > 1.3


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="reference: 'flat', expected one of uniform, correlated, anti"):
        unseen_mass.UnseenMass().run("dpo", [0], reference="flat")
    with pytest.raises(ValueError, match="often: 'never', expected one of"):
        reversal.Reversal().run("dpo", [0], often="never")
    with pytest.raises(ValueError, match="method: 'ppo', expected one of dpo"):
        extrapolation.Extrapolation().run("ppo", [0])
