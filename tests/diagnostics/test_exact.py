"""On a bandit every number has a true value by enumeration: intervals contain it, and tails are judged rightly."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import softmax

from diagnostics.drift_worlds import look_of
from modeseek.diagnostics import coverage, drift, geometry, on_policyness, risk
from modeseek.diagnostics.tails import Refused, jackknife, pareto_k, ratio

C, A, P, K, DRAWS = 3, 5, 100, 8, 200
TRUTH_SEED = 5


class World:
    """C contexts, A actions; the data's writer is not the model, the reference is neither."""

    def __init__(self):
        rng = np.random.default_rng(TRUTH_SEED)
        self.pi = softmax(rng.normal(size=(C, A)), axis=1)
        self.ref = softmax(np.log(self.pi) + 0.4 * rng.normal(size=(C, A)), axis=1)
        self.mu = softmax(rng.normal(size=(C, A)), axis=1)
        self.reward = rng.normal(size=(C, A))

    def draw(self, seed):
        """Contexts [P], own actions [P, K], data actions [P, 2]."""
        rng = np.random.default_rng(seed)
        x = rng.integers(C, size=P)
        pick = lambda p, k: (rng.random((P, k))[..., None] > p[x].cumsum(1)[:, None]).sum(-1).clip(max=A - 1)
        return x, pick(self.pi, K), pick(self.mu, 2)


WORLD = World()


def contexts(values):
    """A mean over contexts, which are uniform."""
    return float(np.mean(values))


def own_mean(f):
    """E over contexts and own actions of f[c, a]."""
    return contexts((WORLD.pi * f).sum(1))


U = np.log(WORLD.pi) - np.log(WORLD.ref)


def covered(estimate_of, truth):
    """How many of the draws' 95% intervals hold the truth, and the mean of the estimates."""
    found = [estimate_of(*WORLD.draw(seed)) for seed in range(DRAWS)]
    assert not any(isinstance(f, Refused) for f in found)
    return np.mean([f.low <= truth <= f.high for f in found]), np.mean([f.value for f in found])


def at(table, x, actions):
    return table[x[:, None], actions]


def beats(p, q, strict=1.0):
    """P(own < data) + strict/2 P(equal), by enumeration over both, for each context."""
    logp = np.log(WORLD.pi)
    less = (logp[:, :, None] < logp[:, None, :]) + strict / 2 * (logp[:, :, None] == logp[:, None, :])
    return np.einsum("ca,cb,cab->c", p, q, less)


def best_of_truth(n):
    """E max over n own actions, by enumeration."""
    total = 0.0
    for c in range(C):
        for actions in itertools.product(range(A), repeat=n):
            total += np.prod(WORLD.pi[c, list(actions)]) * WORLD.reward[c, list(actions)].max()
    return total / C


def reach_truth(n):
    """1 - E over the chosen action of (1 - P(own >= it))^n."""
    below = (WORLD.reward[:, :, None] < WORLD.reward[:, None, :]) * WORLD.pi[:, :, None]  # [C, own, chosen]
    return contexts((WORLD.mu * (1 - below.sum(1) ** n)).sum(1))


CASES = {
    "kl/k1": (lambda x, own, told: coverage.estimate.kl(at(U, x, own)), own_mean(U)),
    "kl/k2": (lambda x, own, told: coverage.estimate.mean(at(U, x, own) ** 2 / 2), own_mean(U**2 / 2)),
    "kl/k3": (lambda x, own, told: coverage.k3(at(U, x, own)), own_mean(U)),
    "kl/forward": (lambda x, own, told: coverage.forward_kl(at(U, x, own)), contexts((-WORLD.ref * U).sum(1))),
    "ess": (lambda x, own, told: coverage.ess(at(U, x, own)), 1 / own_mean(np.exp(-2 * U))),
    "profile": (lambda x, own, told: coverage.profile(at(U, x, own), 1, name="p"), own_mean(U >= 0)),
    "best_of": (
        lambda x, own, told: coverage.estimate.mean(geometry.best_of(at(WORLD.reward, x, own), 3)),
        best_of_truth(3),
    ),
    "reach": (
        lambda x, own, told: coverage.estimate.share(
            geometry.reach(at(WORLD.reward, x, own), at(WORLD.reward, x, told)[:, 0], 3)
        ),
        reach_truth(3),
    ),
    "pit": (
        lambda x, own, told: coverage.estimate.share(
            on_policyness.rank(
                at(np.log(WORLD.pi), x, own), at(np.log(WORLD.pi), x, told)[:, 0], np.random.default_rng(0)
            )
        ),
        contexts((K * beats(WORLD.pi, WORLD.mu) + 0.5) / (K + 1)),
    ),
    "support_gap": (
        lambda x, own, told: coverage.estimate.mean(
            at(np.log(WORLD.pi), x, own).mean(1) - at(np.log(WORLD.pi), x, told)[:, 0]
        ),
        contexts(((WORLD.pi - WORLD.mu) * np.log(WORLD.pi)).sum(1)),
    ),
    "pessimistic": (
        lambda x, own, told: coverage.estimate.share(
            (at(WORLD.ref, x, told)[:, 0] < at(WORLD.ref, x, told)[:, 1]).astype(float)
        ),
        contexts(np.einsum("ca,cb,cab->c", WORLD.mu, WORLD.mu, WORLD.ref[:, :, None] < WORLD.ref[:, None, :])),
    ),
    "typicality": (
        lambda x, own, told: on_policyness.typicality(
            at(np.log(WORLD.pi), x, own), at(np.log(WORLD.pi), x, told)[:, 0], name="z"
        ),
        contexts(((WORLD.pi - WORLD.mu) * np.log(WORLD.pi)).sum(1))
        / math.sqrt(
            (1 + 1 / K)
            * contexts((WORLD.pi * np.log(WORLD.pi) ** 2).sum(1) - (WORLD.pi * np.log(WORLD.pi)).sum(1) ** 2)
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_nine_intervals_of_ten_hold_the_truth(name):
    estimate_of, truth = CASES[name]
    share, value = covered(estimate_of, truth)
    assert share >= 0.9, (name, share, truth, value)
    assert value == pytest.approx(truth, abs=0.03 + 0.03 * abs(truth)), name


BASIS = np.random.default_rng(1).normal(size=(A, 3))  # features of an action, whatever the context


def moments_of(p):
    """E (f - f')(f - f')' over two independent draws: twice the mean covariance."""
    mean = p @ BASIS
    second = np.einsum("ca,ai,aj->cij", p, BASIS, BASIS)
    return 2 * (second - np.einsum("ci,cj->cij", mean, mean)).mean(0)


OWN, TOLD = moments_of(WORLD.pi), moments_of(WORLD.mu)
LINEAR = {
    "linear_coverage": (coverage.linear_coverage, float(max(np.linalg.eigvals(np.linalg.solve(TOLD, OWN)).real))),
    "leverage": (coverage.leverage, float(np.trace(np.linalg.solve(TOLD, OWN)) / 3)),
}


@pytest.mark.parametrize("name", LINEAR)
def test_nine_intervals_of_ten_hold_what_the_pairs_cover(name):
    of, truth = LINEAR[name]
    moments = lambda actions: coverage.pair_moments(BASIS[actions])
    share, value = covered(lambda x, own, told: of(moments(told), moments(own)), truth)
    assert share >= 0.9, (share, truth, value)
    assert value == pytest.approx(truth, rel=0.08)


def test_nine_intervals_of_ten_hold_the_effective_dimension():
    """(tr S)^2 / tr S^2 of the population's moments."""
    truth = float(np.trace(OWN) ** 2 / (OWN * OWN).sum())
    of = lambda x, own, told: coverage.effective_dimension(coverage.pair_moments(BASIS[own]), name="d")
    share, value = covered(of, truth)
    assert share >= 0.9 and value == pytest.approx(truth, rel=0.03)


def test_nine_intervals_of_ten_hold_the_distance_of_ranks():
    """The ranks' own distribution from 200,000 of them; the interval is a band over all distributions, so wide."""
    rng = np.random.default_rng(0)
    logp = np.log(WORLD.pi)
    u_of = lambda x, own, told: on_policyness.rank(at(logp, x, own), at(logp, x, told)[:, 0], rng)
    many = np.concatenate([u_of(*WORLD.draw(10_000 + s)) for s in range(1000)])
    truth = stats.kstest(many, "uniform").statistic
    share, _ = covered(lambda *drawn: on_policyness.distance(u_of(*drawn)), truth)
    assert share >= 0.9


def test_nine_intervals_of_ten_hold_the_target_of_rl():
    """KL(pi exp(r/beta)/Z || pi) by enumeration, beta 2: the jackknife over samples takes the bias off."""
    w = WORLD.pi * np.exp(WORLD.reward / 2)
    target = w / w.sum(1, keepdims=True)
    kl = contexts((target * np.log(target / WORLD.pi)).sum(1))
    worth = contexts(1 / (target**2 / WORLD.pi).sum(1))
    drawn = [geometry.tilted(at(WORLD.reward, x, own), 2.0) for x, own, _ in map(WORLD.draw, range(100))]
    for place, truth in ((0, kl), (1, worth)):
        found = [both[place] for both in drawn]
        assert np.mean([f.low <= truth <= f.high for f in found]) >= 0.9
        assert np.mean([f.value for f in found]) == pytest.approx(truth, rel=0.05)


def test_four_estimators_of_a_kl_by_hand():
    """pi = (1/2, 1/2), ref = (1/4, 3/4), one sample of each: u = (ln 2, ln 2/3).

    KL(pi||ref) = (ln 2 + ln 2/3) / 2 = .1438, the other way ln(1/2) / 4 + 3 ln(3/2) / 4 = .1308; k2 = .1612.
    """
    u = np.log(np.array([[2.0], [2 / 3]]))
    assert coverage.k3(u).value == pytest.approx(0.5 * np.log(4 / 3))
    assert coverage.forward_kl(u).value == pytest.approx(0.25 * np.log(0.5) + 0.75 * np.log(1.5))
    assert coverage.estimate.mean(u**2 / 2).value == pytest.approx(0.1612, abs=1e-4)


def test_best_of_two_by_hand():
    """Rewards 1, 2, 4: the pairs' best are 2, 4, 4, mean 10/3; of three 4; of one 7/3."""
    reward = np.array([[4.0, 1.0, 2.0]])
    assert [geometry.best_of(reward, n)[0] for n in (1, 2, 3)] == pytest.approx([7 / 3, 10 / 3, 4.0])


def test_reach_by_hand():
    """One of four samples reaches the chosen: 1/4 of singles, 3 of 6 pairs, all of the four."""
    own, chosen = np.array([[0.0, 1.0, 2.0, 5.0]]), np.array([5.0])
    assert [geometry.reach(own, chosen, n)[0] for n in (1, 2, 4)] == pytest.approx([0.25, 0.5, 1.0])


def test_the_peak_is_likely_where_reward_is_log_probability_and_unlikely_where_it_is_not():
    logp = np.random.default_rng(0).normal(size=(50, 6))
    assert geometry.peak(logp, logp).value == 1
    assert geometry.peak(-logp, logp).value == 0


def test_a_linear_reward_is_found_linear_and_noise_is_not():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 4))
    own, pairs = rng.integers(40, size=(96, 8)), rng.integers(40, size=(96, 2))
    look = look_of(features, rng.normal(size=40), pairs, own)
    worth = lambda table: type(look)(**{**vars(look), "own_reward": table[own]})
    assert geometry.linearity(worth(features @ np.array([1.0, -2, 0, 1]))).value > 0.98
    assert abs(geometry.linearity(worth(rng.normal(size=40))).value) < 0.25


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_the_tail_of_a_generalised_pareto_is_found(k):
    """The top 3 sqrt(n) of n draws follow the same k; 20 samples of 4,000, mean within 0.1 (the prior pulls to 1/2)."""
    found = [pareto_k(stats.genpareto.rvs(k, size=4000, random_state=seed) + 1) for seed in range(20)]
    assert np.mean(found) == pytest.approx(k, abs=0.1)


def test_a_number_whose_tail_makes_it_meaningless_is_refused_with_the_reason():
    """u normal with sd 4: weights exp(-u) have log-variance 16, chi^2 of e^16; a nat of sd is told."""
    rng = np.random.default_rng(0)
    wild, tame = (coverage._guarded(sd * rng.normal(size=(128, 8)), "ess", coverage.ess) for sd in (4.0, 0.3))
    assert isinstance(wild, Refused) and "Pareto k" in wild.reason
    assert not isinstance(tame, Refused) and 0.8 < tame.value < 1


def test_weights_that_are_all_alike_have_no_tail():
    assert pareto_k(np.ones(1000)) == -math.inf
    assert pareto_k(np.ones(10)) == math.inf


def test_the_jackknife_takes_the_bias_off_a_variance():
    """The plain variance of 20 points is low by 1/20; pseudo-values give the unbiased one exactly."""
    x = np.random.default_rng(0).normal(size=20)
    assert jackknife(lambda at: float(x[at].var()), 20, name="v").value == pytest.approx(x.var(ddof=1))


def test_a_ratio_of_sums_is_not_a_mean_of_ratios():
    """Sums 6 and 12: 1/2, whatever the prompts' own ratios."""
    found = ratio(np.array([1.0, 2, 3]), np.array([8.0, 3, 1]), name="r")
    assert found.low < 0.5 < found.high


def test_ches_by_hand():
    """S+ = (1, 2), S- = (3, 1): inner 5 less norm 5 = 0; by lengths 2 and 4: 5/8 - 5/4 = -5/8."""
    ches, per_token = risk.hidden_similarity(np.array([[[1.0, 2.0], [3.0, 1.0]]]), np.array([[2.0, 4.0]]))
    assert ches[0] == pytest.approx(0) and per_token[0] == pytest.approx(-0.625)


def test_edit_similarity_by_hand():
    """abcd and bcx share bc: 2 x 2 / 7; equal lists share all; lists apart nothing."""
    found = risk.similarity([[[1, 2, 3, 4], [2, 3, 9]], [[5], [5]], [[1], [2]]])
    assert found == pytest.approx([4 / 7, 1, 0])


def test_a_first_token_that_tells_the_label_is_found_and_one_that_does_not_is_not():
    rng = np.random.default_rng(0)
    told = np.stack([np.full(200, 3), np.full(200, 4)], 1)
    assert risk.first_token_accuracy(told).mean() == 1
    assert risk.first_token_accuracy(told[:, [0, 0]]).mean() == 0.5
    assert risk.first_token_accuracy(rng.integers(6, size=(400, 2))).mean() == pytest.approx(0.5, abs=0.08)


def test_a_first_token_is_judged_by_the_other_pairs():
    """Pairs (1, 2) and (2, 1): without itself each pair knows only its opposite, and is wrong."""
    assert risk.first_token_accuracy(np.array([[1, 2], [2, 1]])).tolist() == [0, 0]


def test_calibrated_margins_have_no_error_and_sure_wrong_ones_have_all():
    """m = ln 3: confidence 3/4, right 3 of 4 times: error 0. m = -10 throughout: confidence about 1, never right."""
    calm = np.tile([np.log(3), np.log(3), np.log(3), -np.log(3)], 50)
    assert risk.calibration_error(calm).value == pytest.approx(0, abs=0.02)
    assert risk.calibration_error(np.full(100, -10.0)).value == pytest.approx(1, abs=1e-3)


def test_the_drift_section_reads_the_look():
    """Data on two actions, own samples on a third: all of them lie outside."""
    pairs = np.tile([0, 1], (32, 1))
    look = look_of(np.eye(3), np.log(np.ones(3) / 3), pairs, np.full((32, 4), 2))
    assert drift.outside(look).value == 1
