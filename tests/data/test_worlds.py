import math

import pytest
import torch

from modeseek.data import worlds
from modeseek.data.worlds import World, bandit, bump

SMALL = World(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64))


def delta(arm):
    return torch.eye(worlds.ARMS, dtype=torch.float64)[arm]


def test_the_reference_has_the_papers_masses():
    p = bandit("R1").reference
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    for arm, mass in {0: 0.0781, 99: 0.0422, 16: 0.0268, 20: 0.0243, 70: 0.0021, 81: 0.00189}.items():
        assert p[arm].item() == pytest.approx(mass, abs=6e-5)
    assert p.argmin() == 81
    assert -(p * p.log()).sum().item() == pytest.approx(4.117, abs=6e-4)


def test_the_first_bin_is_the_mass_below_its_edge():
    # P(tanh x < -0.98) = P(x < -2.29756) = 1/2 + atan((-2.29756 + 0.7) / 0.4) / pi
    assert bandit().reference[0].item() == pytest.approx(0.5 + math.atan(-1.59756 / 0.4) / math.pi, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "mean", "best_of_10", "nats"), [("R1", 0.039, 0.314, 6.16), ("R2", 0.377, 0.940, 3.72)]
)
def test_the_world_has_the_papers_expectations(name, mean, best_of_10, nats):
    world = bandit(name)
    assert world.expected(world.reference) == pytest.approx(mean, abs=6e-4)
    assert world.best_of(10) == pytest.approx(best_of_10, abs=6e-4)
    assert world.kl(delta(worlds.PEAKS[name])) == pytest.approx(nats, abs=6e-3)


def test_the_bump_is_one_at_its_peak_and_one_over_e_a_width_away():
    r = bump(70)
    assert r[70] == 1 and r[60].item() == pytest.approx(math.exp(-1)) and r[80] == r[60]


def test_the_best_of_two_is_counted_by_hand():
    # worst of {0, 1, 2} with masses .5, .3, .2: best is 0 with .25, 1 with .8^2 - .25 = .39, 2 with .36
    assert SMALL.best_of(2) == pytest.approx(0.39 + 2 * 0.36)
    assert SMALL.best_of(1) == pytest.approx(SMALL.expected(SMALL.reference))


def test_the_tilted_reference_is_weighed_by_hand():
    # .5, .3 e, .2 e^2 with beta 1
    raw = torch.tensor([0.5, 0.3 * math.e, 0.2 * math.e**2], dtype=torch.float64)
    torch.testing.assert_close(SMALL.tilted(1.0), raw / raw.sum())
    assert SMALL.gain(SMALL.tilted(1.0), 1.0) == pytest.approx(math.log(raw.sum()))  # beta log Z


@pytest.mark.parametrize("beta", [0.02, 0.1, 1.0])
def test_no_policy_gains_more_than_the_tilted_reference(beta):
    world, rng = bandit(), torch.Generator().manual_seed(0)
    best = world.tilted(beta)
    for scale in (0.01, 0.1, 1.0):
        noise = torch.randn(worlds.ARMS, generator=rng, dtype=torch.float64)
        assert world.gain((best.log() + scale * noise).softmax(-1), beta) < world.gain(best, beta)


@pytest.mark.parametrize("nats", [0.5, 2.0, 5.0])
def test_the_best_policy_within_some_nats_spends_them_all(nats):
    assert bandit().kl(bandit().best_at(nats)) == pytest.approx(nats, abs=1e-6)


def test_no_nats_buy_nothing_and_many_buy_the_best_arm():
    world = bandit()
    torch.testing.assert_close(world.best_at(0.0), world.reference, atol=1e-5, rtol=0)
    assert world.expected(world.best_at(50.0)) == pytest.approx(1)
    with pytest.raises(ValueError, match="kl: -1"):
        world.best_at(-1.0)


@pytest.mark.parametrize("beta", [0.02, 0.1])
def test_a_nash_policy_is_the_best_answer_to_itself(beta):
    world = bandit()
    wins = (world.reward[:, None] > world.reward).double() + 0.5 * (world.reward[:, None] == world.reward).double()
    p = world.nash(wins, beta)
    answer = (world.reference.log() + wins @ p / beta).softmax(-1)
    torch.testing.assert_close(p, answer, atol=1e-8, rtol=0)


def test_preferences_that_are_differences_of_rewards_have_the_tilted_reference_as_nash():
    # wins = 1/2 + c (r_i - r_j): wins @ p = c r_i + a constant, whatever p is
    world = bandit()
    wins = 0.5 + 0.4 * (world.reward[:, None] - world.reward)
    torch.testing.assert_close(world.nash(wins, 0.02), world.tilted(0.05), atol=1e-8, rtol=0)


def test_an_unknown_reward_is_refused():
    with pytest.raises(ValueError, match="reward: 'R3', expected one of R1, R2"):
        bandit("R3")
