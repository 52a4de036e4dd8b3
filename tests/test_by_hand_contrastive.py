"""One pair: sums of log-probabilities -3 and -3, of the reference -4 and -2, so log-ratios +1 and -1; lengths 2 and 1.

Every number worked out here. `SWAPPED` is the same pair the other way round.
"""

import math

import pytest
import torch

from modeseek.objectives import (
    AOT,
    APO,
    BCO,
    CPO,
    DPO,
    DPOP,
    EXO,
    FDPO,
    IPO,
    KTO,
    LDDPO,
    NCA,
    ORPO,
    REBEL,
    RWR,
    SPPO,
    XPO,
    BradleyTerry,
    ChiPO,
    DiscoPOP,
    Hinge,
    HybridDPO,
    HyPO,
    LengthDPO,
    NegativeBoN,
    OffsetDPO,
    PlackettLuce,
    RobustDPO,
    SimPO,
    SLiC,
    SquaredPO,
    UnpairedAOT,
    WithKL,
    WithSFT,
    reads,
)
from modeseek.objectives.base import one_of
from test_by_hand import BOTH, LOGP, MASK, REF, is_, t

SWAPPED = LOGP.flip(1), REF.flip(1), MASK.flip(1)
E = math.e


def nls(x):
    """-log sigma(x)"""
    return math.log1p(math.exp(-x))


def sig(x):
    return 1 / (1 + math.exp(-x))


def test_length_normalised_dpo():
    dpo = DPO(0.5, logp_reduction="mean")(LOGP, REF, MASK)
    is_(dpo, nls(0.5 * (1 / 2 - -1 / 1)))
    assert dpo.metrics["rewards/chosen"].item() == 0.25  # the metrics speak of the same reward as the loss


def test_robust_dpo():
    is_(RobustDPO(0.5, 0.1)(LOGP, REF, MASK), (0.9 * nls(1) - 0.1 * nls(-1)) / 0.8)


def test_robust_dpo_on_flipped_labels_averages_to_dpo_on_clean_ones():
    right, wrong = RobustDPO(0.5, 0.2)(LOGP, REF, MASK), RobustDPO(0.5, 0.2)(*SWAPPED)
    mean = 0.8 * right.per_prompt + 0.2 * wrong.per_prompt
    torch.testing.assert_close(mean, DPO(0.5)(LOGP, REF, MASK).per_prompt)


def test_hinge():
    is_(Hinge(0.25)(LOGP, REF, MASK), 1 - 0.25 * 2)
    is_(Hinge(1.0)(LOGP, REF, MASK), 0)
    is_(Hinge(0.5)(*SWAPPED), 1 + 0.5 * 2)


def test_slic():
    is_(SLiC(margin=1.0, nll=0.1)(LOGP, MASK), (1 + 3 - 3) + 0.1 * 3)
    is_(SLiC(margin=1.0, nll=0.1)(t([[-1], [-9]]), torch.ones(1, 2, 1, dtype=torch.bool)), 0 + 0.1 * 1)


def test_simpo():
    margin = 2 * (-3 / 2 - -3 / 1) - 0.5
    is_(SimPO(2.0, gamma=0.5)(LOGP, MASK), nls(margin))
    is_(SimPO(2.0, gamma=0.5, label_smoothing=0.1)(LOGP, MASK), 0.9 * nls(margin) + 0.1 * nls(-margin))
    assert SimPO(2.0)(LOGP, MASK).metrics["rewards/margins"].item() == 3


def test_orpo():
    odds = lambda mean: mean - math.log(1 - math.exp(mean))
    is_(ORPO(0.1)(LOGP, MASK), 1.5 + 0.1 * nls(odds(-1.5) - odds(-3)))


def test_orpo_is_finite_where_a_response_is_certain():
    logp = t([[0.0, 0.0], [-3, 9]]).requires_grad_()
    ORPO()(logp, MASK).per_prompt.sum().backward()
    assert logp.grad.isfinite().all()


def test_cpo():
    is_(CPO(0.5)(LOGP, MASK), nls(0.5 * (-3 - -3)) + 3)
    is_(CPO(0.5, nll=2.0, nll_reduction="mean")(LOGP, MASK), nls(0) + 2 * 3 / 2)


def test_dpop():
    is_(DPOP(0.5, penalty=5.0)(LOGP, REF, MASK), nls(0.5 * 2))  # the chosen response has gained
    is_(DPOP(0.5, penalty=5.0)(*SWAPPED), nls(0.5 * (-2 - 5 * 1)))


def test_ld_dpo():
    """The common length is 1: of the first response's log-ratio 1/2 + 1/2 the second half counts alpha."""
    is_(LDDPO(0.5, alpha=0.4)(LOGP, REF, MASK), nls(0.5 * (0.5 + 0.4 * 0.5 - -1)))
    is_(LDDPO(0.5, alpha=0.0)(*SWAPPED), nls(0.5 * (-1 - 0.5)))


def test_exo():
    p = sig(1)
    want = p * math.log(p / 0.9) + (1 - p) * math.log((1 - p) / 0.1)
    is_(EXO(0.5, label_smoothing=0.1)(LOGP, REF, MASK), want)


def test_exo_is_zero_where_the_policy_is_the_smoothed_label():
    is_(EXO(math.log(9) / 2, label_smoothing=0.1)(LOGP, REF, MASK), 0)  # sigma(log 9) = 0.9


def test_nca():
    is_(NCA(0.5)(LOGP, REF, MASK), nls(0.5) + (nls(-0.5) + nls(0.5)) / 2)


def test_apo():
    is_(APO(0.5, anchor="zero")(LOGP, REF, MASK), (1 - sig(0.5)) + sig(-0.5))
    is_(APO(0.5, anchor="down")(LOGP, REF, MASK), sig(0.5) + 1 - sig(0.5 - -0.5))


def test_sppo():
    is_(SPPO(0.25)(LOGP, REF, MASK, BOTH), ((1 - 2) ** 2 + (-1 + 2) ** 2) / 2)  # asked for +-(1/2) / (1/4)
    is_(SPPO(0.25)(LOGP, REF, MASK, BOTH, t([0.75, 0.5])), ((1 - 1) ** 2 + (-1 - 0) ** 2) / 2)
    third = t([[-1, -2], [-3, 9], [-7, 0]]), t([[-1.5, -2.5], [-2, 9], [0, 0]])
    there = torch.tensor([[[True, True], [True, False], [True, False]]])
    is_(SPPO(0.5)(*third, there, torch.ones(1, 3, dtype=torch.bool)), 0)  # without win rates a pair, no more


def test_disco_pop():
    g = sig(1 / 0.5)
    is_(DiscoPOP(0.5, tau=0.5)(LOGP, REF, MASK), (1 - g) * nls(1) + g * math.exp(-1))


def test_disco_pop_turns_where_its_paper_says():
    """At beta = tau = 0.05 the loss rises between log-ratios of -2.3714 and 1.44012: a pair that starts at 0 falls."""
    gap = t(-2.3715, -2.3713, 1.4400, 1.4403, 0).requires_grad_()
    logp = torch.stack([gap, torch.zeros_like(gap)], 1)[..., None]
    loss = DiscoPOP(0.05, 0.05)(logp, torch.zeros_like(logp), torch.ones_like(logp, dtype=torch.bool))
    loss.per_prompt.sum().backward()
    assert (gap.grad > 0).tolist() == [False, True, True, False, True]


def test_disco_pop_is_finite_far_from_the_data():
    far = t([[-400, -400], [-3, 9]])
    assert DiscoPOP(1.0)(far, REF, MASK).per_prompt.isfinite()


def test_squared_po():
    is_(SquaredPO(0.5)(LOGP, REF, MASK), nls(0.5 * (1 / E - -1 * E)))


def test_chipo():
    margin = 0.5 * ((E + 1) - (1 / E - 1))
    is_(ChiPO(0.5)(LOGP, REF, MASK), nls(margin))
    is_(ChiPO(0.5, clip=0.2)(LOGP, REF, MASK), nls(0.2))
    is_(ChiPO(0.5, clip=0.2)(*SWAPPED), nls(-0.2))


def test_f_dpo():
    """Jensen-Shannon: log sigma(1) - log sigma(-1) = 1. Forward KL: -e^-1 + e. alpha 1/2: 2 (e^(1/2) - e^(-1/2))."""
    is_(FDPO(0.5)(LOGP, REF, MASK), nls(0.5 * 1))
    is_(FDPO(0.5, divergence="alpha", alpha=1.0)(LOGP, REF, MASK), nls(0.5 * (E - 1 / E)))
    is_(FDPO(0.5, divergence="alpha", alpha=0.5)(LOGP, REF, MASK), nls(0.5 * 2 * (E**0.5 - E**-0.5)))


def test_a_small_alpha_is_dpo():
    near = FDPO(0.5, divergence="alpha", alpha=1e-6)(LOGP, REF, MASK).per_prompt
    torch.testing.assert_close(near, DPO(0.5)(LOGP, REF, MASK).per_prompt)


def test_offset_dpo():
    is_(OffsetDPO(0.5, offset=2.0)(LOGP, REF, MASK, t(0.25)), nls(0.5 * 2 - 2 * 0.25))


def test_length_dpo():
    is_(LengthDPO(0.5, alpha=0.1)(LOGP, REF, MASK), nls(0.5 * 2 + 0.1 * (2 - 1)))
    is_(LengthDPO(0.3)(t([[-1], [-4]]), t([[-3], [-3]]), torch.ones(1, 2, 1, dtype=torch.bool)), nls(0.3 * (2 - -1)))


def test_options_are_as_precise_as_the_numbers():
    """0.1 and 0.7 in float32 would be wrong in the ninth digit."""
    assert LengthDPO(0.5, alpha=0.1)(LOGP, REF, MASK).per_prompt.item() == pytest.approx(nls(1.1), rel=1e-14)
    assert LDDPO(0.5, alpha=0.7)(LOGP, REF, MASK).per_prompt.item() == pytest.approx(nls(0.925), rel=1e-14)


@pytest.mark.parametrize("name, value, choices", [("anchor", "up", ("zero", "down")), ("losers", "", ("worst",))])
def test_a_choice_that_there_is_not_is_refused(name, value, choices):
    with pytest.raises(ValueError, match=f"{name}: '{value}', expected one of {', '.join(choices)}"):
        one_of(name, value, dict.fromkeys(choices))


def test_hybrid_dpo():
    """The reference has the pair the wrong way round, -4 against -2, and counts as neutral; swapped it counts."""
    is_(HybridDPO(0.5)(LOGP, REF, MASK), nls(0.5 * (0 - 0)))
    is_(HybridDPO(0.5)(*SWAPPED), nls(0.5 * (0 - 2)))
    assert HybridDPO()(LOGP, REF, MASK).metrics["pessimistic"].item() == 1


def test_rebel():
    is_(REBEL(eta=2.0)(LOGP, REF, t([0.5, 0.25]), MASK), ((1 - -1) / 2 - 0.25) ** 2)


def test_plackett_luce():
    """Implied rewards 2, 1 and 0."""
    logp, ref = t([[2], [1], [0]]), t([[0], [0], [0]])
    there = torch.ones(1, 3, 1, dtype=torch.bool)
    want = math.log(E**2 + E + 1) - 2 + math.log(E + 1) - 1
    is_(PlackettLuce(1.0)(logp, ref, there, there[..., 0]), want)
    two = torch.tensor([[True, True, False]])
    is_(PlackettLuce(1.0)(logp, ref, two[..., None], two), math.log(E**2 + E) - 2)
    torch.testing.assert_close(
        PlackettLuce(0.5)(LOGP, REF, MASK, BOTH).per_prompt, DPO(0.5)(LOGP, REF, MASK).per_prompt
    )


def test_kto():
    label = torch.tensor([[True, False]])
    good, bad = 1 - sig(0.5 * (1 - 0.5)), 1 - sig(0.5 * (0.5 - -1))
    is_(KTO(0.5)(LOGP, REF, MASK, BOTH, label, t(0.5)), (good + bad) / 2)
    is_(KTO(0.5, 2.0, 3.0)(LOGP, REF, MASK, BOTH, label, t(0.5)), (2 * good + 3 * bad) / 2)
    one = torch.tensor([[True, False]])
    is_(KTO(0.5)(LOGP, REF, MASK, one, label, t(0.5)), good)


def test_bco():
    label = torch.tensor([[True, False]])
    is_(BCO(0.5)(LOGP, REF, MASK, BOTH, label, t(0.5)), (nls(0.5 * (1 - 0.5)) + nls(0.5 * (0.5 - -1))) / 2)


def test_aot():
    is_(AOT(0.5)(LOGP, MASK, t(-2)), nls(0.5 * (-3 - -3 + 2)))
    is_(AOT(0.5, label_smoothing=0.1)(LOGP, MASK, t(-2)), 0.9 * nls(1) + 0.1 * nls(-1))


def test_unpaired_aot():
    is_(UnpairedAOT(0.5)(LOGP, REF, MASK, t([0.25, 0.5])), nls(0.5 * (1 - 0.25)) + nls(0.5 * (0.5 - -1)))


def test_xpo():
    fresh = torch.tensor([[True, False]])
    is_(XPO(0.5, alpha=0.1)(LOGP, REF, MASK, fresh, BOTH), nls(1) + 0.1 * -3)
    with pytest.raises(ValueError, match="challenge"):
        XPO()(LOGP, REF, MASK, BOTH, BOTH)


def test_best_of_n_with_losers():
    """Log-probabilities -1, -2, -4 of the responses, best first; then with the last one absent."""
    logp, three = t([[-1], [-2], [-4]]), torch.ones(1, 3, dtype=torch.bool)
    two = torch.tensor([[True, True, False]])
    loss = lambda losers, there: NegativeBoN(0.5, losers)(logp, there[..., None], there)
    is_(loss("worst", three), 1 + 0.5 * -4)
    is_(loss("worst", two), 1 + 0.5 * -2)
    is_(loss("mean", three), 1 + 0.5 * (-2 - 4) / 2)
    is_(loss("sum", three), 1 + 0.5 * (-2 - 4))
    is_(loss("complement", three), 1 - 0.5 * (math.log(1 - math.exp(-2)) + math.log(1 - math.exp(-4))))
    is_(loss("mean", torch.tensor([[True, False, False]])), 1)  # a group of one has no losers


def test_with_sft():
    is_(WithSFT(DPO(0.5), nll=0.2)(LOGP, MASK, ref_logp=REF), nls(1) + 0.2 * 3 / 2)
    is_(WithSFT(SimPO(2.0, gamma=0.5), nll=0.2, nll_reduction="sum")(LOGP, MASK), nls(2.5) + 0.2 * 3)


def test_rwr_with_a_token_mean():
    is_(RWR(0.5, logp_reduction="mean")(LOGP, t([1, 0]), MASK, BOTH), (E**2 * 3 / 2 + 1 * 3 / 1) / 2)


def test_a_margin_a_tie_and_a_centre_of_the_reward_model():
    is_(BradleyTerry(margin_weight=0.5)(t([2, 1]), t(3)), nls(1 - 1.5))
    is_(BradleyTerry(ties=True)(t([2, 1]), t(0)), (nls(1) + nls(-1)) / 2)
    is_(BradleyTerry(ties=True)(t([2, 1]), t(3)), nls(1))
    is_(BradleyTerry(centre=0.1)(t([2, 1])), nls(1) + 0.1 * 9)
    is_(BradleyTerry()(t([2, 1]), t(0)), nls(1))  # a margin nobody asked for changes nothing
    with pytest.raises(ValueError, match="margin"):
        BradleyTerry(ties=True)(t([2, 1]))


HYBRID = {  # [chosen, rejected, fresh, fresh]; the fresh log-ratios are 2 and 4, of log-probabilities -1 and -5
    "logp": t([[-1, -2], [-3, 9], [-1, 0], [-2, -3]]),
    "ref_logp": t([[-1.5, -2.5], [-2, 9], [-3, 0], [-4, -5]]),
    "mask": torch.tensor([[[True, True], [True, False], [True, False], [True, True]]]),
    "fresh": torch.tensor([[False, False, True, True]]),
    "present": torch.ones(1, 4, dtype=torch.bool),
}


def test_rao_blackwell_weighs_a_token_by_what_comes_after_it():
    """Exact KLs 0.5, then 0.25 and 1: the second response's first token is charged 1, no other token anything."""
    kl = t([[7, 7], [7, 7], [0.5, 7], [0.25, 1.0]])
    pull = (0.5 + (0.25 + 1.0 + 1.0 * -2)) / 2
    loss = HyPO(0.5, kl=0.1, kl_estimator="rao_blackwell")(**HYBRID, kl=kl)
    is_(loss, nls(1) + 0.1 * pull)
    assert loss.metrics["kl"].item() == (0.5 + 1.25) / 2
    # With the other's cost at the same place taken off: 0 - 1 of log-probability -1, and 1 - 0 of -2.
    loo = (0.5 + -1 * -1 + 1.25 + 1 * -2) / 2
    objective = HyPO(0.5, kl=0.1, kl_baseline="leave_one_out", kl_estimator="rao_blackwell")
    is_(objective(**HYBRID, kl=kl), nls(1) + 0.1 * loo)


@pytest.mark.parametrize("kind", ["none", "leave_one_out", "running_mean"])
def test_the_pull_around_dpo_is_hypo(kind):
    mine = WithKL(DPO(0.5), kl=0.1, kl_baseline=kind)(**HYBRID, baseline=t(3))
    torch.testing.assert_close(mine.per_prompt, HyPO(0.5, kl=0.1, kl_baseline=kind)(**HYBRID, baseline=t(3)).per_prompt)


def test_the_pull_around_ipo():
    is_(WithKL(IPO(0.25), kl=0.1)(**HYBRID), (2 - 2) ** 2 + 0.1 * (2 * -1 + 4 * -5) / 2)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: RobustDPO(label_smoothing=0.0), "label_smoothing: 0.0"),
        (lambda: RobustDPO(label_smoothing=0.5), "label_smoothing: 0.5"),
        (lambda: EXO(label_smoothing=0.0), "label_smoothing: 0.0"),
        (lambda: SimPO(label_smoothing=0.5), "label_smoothing: 0.5"),
        (lambda: AOT(label_smoothing=-0.1), "label_smoothing: -0.1"),
        (lambda: LDDPO(alpha=1.0), "alpha: 1.0"),
        (lambda: FDPO(alpha=0.5), "alpha: 0.5 with divergence: jensen_shannon"),
        (lambda: FDPO(divergence="alpha"), "alpha: None with divergence: alpha"),
        (lambda: FDPO(divergence="alpha", alpha=0.0), "alpha: 0.0"),
        (lambda: CPO(nll=0.0), "nll: 0.0"),
        (lambda: WithSFT(nll=0.0), "nll: 0.0"),
        (lambda: NegativeBoN(beta=0.0), "beta: 0.0"),
        (lambda: HyPO(kl_baseline="running_mean", kl_estimator="rao_blackwell"), "kl_baseline: running_mean"),
        (lambda: WithKL(kl_baseline="running_mean", kl_estimator="rao_blackwell"), "kl_baseline: running_mean"),
    ],
)
def test_an_option_without_an_effect_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


UNEVEN = {  # one token each: log-probabilities -1 and -4, log-ratios 2 and -1/2
    "logp": t([[-1], [-4]]),
    "ref_logp": t([[-3], [-3.5]]),
    "mask": torch.ones(1, 2, 1, dtype=torch.bool),
}


@pytest.mark.parametrize(
    ("objective", "want"),
    [
        (DPO(0.3), nls(0.3 * 2.5)),
        (IPO(0.1), (2.5 - 5) ** 2),
        (AOT(0.3), nls(0.3 * (-1 - -4 - 7))),
        (APO(0.3), sig(-0.6) + sig(-0.15)),
        (APO(0.3, anchor="down"), sig(0.6) + sig(-0.15 - 0.6)),
        (CPO(0.3), nls(0.3 * 3) + 1),
        (DPOP(0.3, penalty=2.0), nls(0.3 * 2.5)),
        (EXO(0.3, 0.2), sig(0.75) * math.log(sig(0.75) / 0.8) + sig(-0.75) * math.log(sig(-0.75) / 0.2)),
        (FDPO(0.3), nls(0.3 * (2 - math.log(1 + E**2) + 0.5 + math.log(1 + E**-0.5)))),
        (FDPO(0.3, divergence="alpha", alpha=0.5), nls(0.3 * 2 * (E**0.25 - E**-1))),
        (Hinge(0.3), 1 - 0.75),
        (HybridDPO(0.3), nls(0.3 * (3 - 0.5))),
        (LengthDPO(0.3, alpha=9.0), nls(0.75)),  # of equal length
        (LDDPO(0.3, alpha=0.1), nls(0.75)),
        (NCA(0.3), nls(0.6) + (nls(-0.6) + nls(0.15)) / 2),
        (OffsetDPO(0.3, offset=0.5), nls(0.75 - 0.5 * 0.25)),
        (ORPO(0.3), 1 + 0.3 * nls(-1 - math.log(1 - 1 / E) + 4 + math.log(1 - E**-4))),
        (RobustDPO(0.3, 0.2), (0.8 * nls(0.75) - 0.2 * nls(-0.75)) / 0.6),
        (SimPO(0.3, gamma=0.5), nls(0.3 * 3 - 0.5)),
        (SLiC(margin=4.0, nll=0.2), (4 - 3) + 0.2),
        (SquaredPO(0.3), nls(0.3 * (2 * E**-2 + 0.5 * E**0.5))),
        (ChiPO(0.3), nls(0.3 * (E**2 + 2 - E**-0.5 + 0.5))),
        (DiscoPOP(0.3, tau=0.5), sig(-1.5) * nls(0.75) + sig(1.5) * math.exp(-0.75)),
        (SPPO(0.3), ((2 - 1 / 0.6) ** 2 + (-0.5 + 1 / 0.6) ** 2) / 2),
        (KTO(0.3, 2.0, 3.0), (2 * sig(-0.3 * 1.6) + 3 * sig(0.3 * -0.9)) / 2),
        (BCO(0.3), (nls(0.3 * 1.75) + nls(0.3 * 0.75)) / 2),
        (UnpairedAOT(0.3), nls(0.3 * (2 - 1)) + nls(0.3 * (3 + 0.5))),
        (REBEL(0.5), (2.5 / 0.5 - 3) ** 2),
        (NegativeBoN(0.3), 1 - 0.3 * 4),
    ],
    ids=lambda x: repr(x) if not isinstance(x, float) else "",
)
def test_numbers_in_which_no_two_are_alike(objective, want):
    """Nothing here is its own negative, square or inverse, so that a wrong sign or operation shows."""
    columns = {"ranked_margin": t(7), "margin": t(0.25), "label": torch.tensor([[True, False]]), "z0": t(0.4)}
    columns |= {"midpoint": t(0.25), "partner": t([1, 3]), "reward": t([5, 2]), "old_logp": UNEVEN["ref_logp"]}
    given = UNEVEN | columns | {"present": BOTH}
    is_(objective(**{name: given[name] for name in reads(objective)}), want)


def test_accuracies_count_what_is_on_the_right_side():
    label = torch.tensor([[True, True]])
    given = UNEVEN["logp"], UNEVEN["ref_logp"], UNEVEN["mask"], BOTH, label
    for loss in (KTO()(*given, t(0)), BCO()(*given, t(0))):
        assert loss.metrics["rewards/accuracies"].item() == 0.5  # both called good, one below the line
    given = UNEVEN["logp"], UNEVEN["ref_logp"], UNEVEN["mask"], BOTH, torch.tensor([[True, False]])
    for loss in (KTO()(*given, t(0)), BCO()(*given, t(0))):
        assert loss.metrics["rewards/accuracies"].item() == 1
    assert ORPO()(UNEVEN["logp"], UNEVEN["mask"]).metrics["rewards/accuracies"].item() == 1
    assert BradleyTerry()(t([1, 2])).metrics["rewards/accuracies"].item() == 0
    bon = NegativeBoN()(UNEVEN["logp"], UNEVEN["mask"], BOTH).metrics
    assert (bon["logps/chosen"].item(), bon["logps/rejected"].item()) == (-1, -4)


def test_leave_one_out_of_three():
    """Log-ratios 1, 3 and 8 with log-probabilities -1, -2 and -4: less the means of the others, 5.5, 4.5 and 2."""
    fresh = torch.tensor([[False, False, True, True, True]])
    logp = t([[-1], [-4], [-1], [-2], [-4]])
    ref = t([[-3], [-3.5], [-2], [-5], [-12]])
    there = torch.ones(1, 5, dtype=torch.bool)
    pull = ((1 - 5.5) * -1 + (3 - 4.5) * -2 + (8 - 2) * -4) / 3
    hypo = HyPO(0.3, kl=0.1, kl_baseline="leave_one_out")
    is_(hypo(logp, ref, there[..., None], fresh, there), nls(0.75) + 0.1 * pull)
