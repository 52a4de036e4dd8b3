"""The counterexample of 2406.01462, its numbers worked out by hand, and RLHF's bound beside it."""

import math

import pytest
import torch

from modeseek.studies.worlds import hole
from modeseek.studies.worlds.hole import Hole, blindness, gibbs, kl_bound, random_hole, shifted, without_hole
from modeseek.studies.worlds.linear import Problem


def three(eta: float, beta: float = 0.1) -> Problem:
    """Rewards 1, 0 and, in the hole, 0; half of the reference's mass on each covered response."""
    ref = torch.tensor([[(1 - eta) / 2, (1 - eta) / 2, eta]], dtype=torch.float64)
    reward = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    return Problem(ref=ref, reward=reward, seen=torch.tensor([[True, True, False]]), beta=beta)


@pytest.mark.parametrize(
    ("eta", "kl", "gain"), [(1e-2, 2.51, 0.117), (1e-4, 5.42, -0.174), (1e-8, 11.24, -0.756), (1e-16, 22.89, -1.921)]
)
def test_the_counterexample_has_the_worked_numbers(eta, kl, gain):
    """pi(y3) = 1 - exp(-0.1 / 0.1) = 0.632, pi(y1) = 0.368: KL = .368 ln(.368 / .5) + .632 ln(.632 / eta), and
    J = .368 x 1 - .1 KL. At the optimum J = .1 ln((e^10 + 1) / 2) = 0.9307 but for the leak."""
    problem = three(eta)
    logp = shifted(problem, 0.01)
    assert logp.exp()[0, 2].item() == pytest.approx(1 - math.exp(-1), abs=1e-12)
    assert problem.metrics(logp)["kl"].item() == pytest.approx(kl, abs=0.006)
    assert problem.gain(logp).item() == pytest.approx(gain, abs=0.001)
    assert problem.gain(problem.optimum()).item() == pytest.approx(0.1 * math.log((math.e**10 + 1) / 2), abs=1.1e-3)


@pytest.mark.parametrize("eps", [1e-4, 1e-2, 0.1])
@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_the_error_is_eps_and_the_kl_grows_by_the_mass_in_the_hole(eps, beta):
    problems = [random_hole(range(5), 4, eta, beta) for eta in (1e-6, 1e-12)]
    policies = [shifted(p, eps) for p in problems]
    mass = 1 - math.exp(-math.sqrt(eps) / beta)
    assert policies[0].exp().sum(-1).tolist() == pytest.approx([1] * 5)
    assert blindness(problems[0], eps)["error"].tolist() == pytest.approx([eps] * 5, rel=1e-9)
    assert policies[0].exp()[:, -1].tolist() == pytest.approx([mass] * 5, rel=1e-9)
    few, many = (p.metrics(logp)["kl"] for p, logp in zip(problems, policies, strict=True))
    assert ((many - few) / (6 * math.log(10))).tolist() == pytest.approx([mass] * 5, rel=1e-3)


def test_dpo_cannot_see_the_shift_and_the_kl_of_hypo_can():
    problem = random_hole(range(8), 3, 1e-8, 0.1)
    seen = blindness(problem, 0.01)
    assert seen["dpo_loss_change"].abs().max() < 1e-12
    kl = lambda logp: (logp.exp() * (logp - problem.ref.log())).nan_to_num(0.0).sum(-1)
    by_hand = kl(shifted(problem, 0.01)) - kl(without_hole(problem))
    assert seen["hypo_kl_change"].tolist() == pytest.approx(by_hand.tolist(), rel=1e-12)
    assert (by_hand > 9).all()


def test_a_shift_that_is_not_uniform_is_seen_by_dpo():
    problem = three(1e-8)
    logp = without_hole(problem)
    moved = logp + torch.tensor([[0.0, 0.5, 0.0]], dtype=torch.float64)
    # the margin of y1 over y2 is beta (10 - 0.5), its labels are sigma(1): the loss is -s ln s' - (1 - s) ln(1 - s')
    loss = lambda margin: sum(
        p * math.log1p(math.exp(-m)) for p, m in ((0.7310585786, margin), (0.2689414214, -margin))
    )
    assert (hole._dpo_loss(problem, moved) - hole._dpo_loss(problem, logp)).item() == pytest.approx(
        loss(0.95) - loss(1.0)
    )


def test_no_bounded_reward_has_a_gibbs_policy_beyond_the_bound():
    rng = torch.Generator().manual_seed(0)
    closest = 0.0
    for _ in range(300):
        K = int(torch.randint(2, 8, (), generator=rng))
        beta = float(torch.empty(()).uniform_(-4, 1, generator=rng).exp())
        ref = (torch.randn(20, K, generator=rng, dtype=torch.float64) * 4).softmax(-1)
        reward = 2 * torch.rand(20, K, generator=rng, dtype=torch.float64) - 1
        problem = Problem(ref=ref, reward=reward, seen=torch.ones(20, K, dtype=torch.bool), beta=beta)
        kl = problem.metrics(problem.optimum())["kl"]
        assert (kl <= kl_bound(1.0, beta) + 1e-9).all()
        closest = max(closest, float(kl.max()) / kl_bound(1.0, beta))
    assert closest > 0.8  # the bound is not slack everywhere


def test_rlhf_with_a_bounded_reward_forgets_a_small_hole():
    """With beta 0.1 and bound 1 the hole's weight is eta e^10 against at least half of e^(r / beta) >= 1/2."""
    problem = random_hole(range(20), 5, 1e-16, 0.1)
    assert (gibbs(problem, 1.0).exp()[:, -1] < 1e-11).all()


def test_descent_from_the_reference_finds_the_optimum_and_not_the_counterexample():
    rows = Hole().run("dpo", [0, 1], covered=4, steps=150)
    assert all(row["gap"] < 1e-6 and row["ood_mass"] < 1e-6 for row in rows if row["step"] == 150)


def test_a_dial_without_effect_is_refused():
    with pytest.raises(ValueError, match="eps: rlhf in hole has no such dial; it has covered"):
        Hole().run("rlhf", [0], eps=0.1)
    with pytest.raises(ValueError, match="covered: 1"):
        Hole().run("rlhf", [0], covered=1)
