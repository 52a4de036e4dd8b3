"""The claims of 2406.01462, and the checks that they need to mean something.

"Understanding preference fine-tuning through the lens of coverage", https://arxiv.org/abs/2406.01462. HyPO is compared
with DPO at the same beta and with DPO whose beta and number of steps are tuned: a claim without those baselines is
about an untuned dial.
"""

from __future__ import annotations

from modeseek.studies.base import Cell, Claim, Contrast, Dial, Part, Study, read
from modeseek.studies.claims.contrasts import between
from modeseek.studies.claims.song_hole import (
    PAPER,
    SMALL,
    blind_to_a_shift,
    bounded_rlhf,
    unbounded_kl,
    what_descent_finds,
)
from modeseek.studies.claims.song_unseen import counts_decide, law_of_the_mass_outside, mass_outside, shared_features
from modeseek.studies.worlds.coverage import PartialCoverage
from modeseek.studies.worlds.extrapolation import Extrapolation
from modeseek.studies.worlds.hole import Hole
from modeseek.studies.worlds.reversal import Reversal
from modeseek.studies.worlds.rounds import Rounds
from modeseek.studies.worlds.unseen_mass import UnseenMass

MILD, HARSH = "partial", "partial_harsh"
BETA = 0.1  # of the comparisons in which DPO and HyPO share it
TIE = 0.15  # reward: 6% of what the optimum earns
STILL = 5e-4  # nats a step: a quarter of a nat over the 500 steps of the final third
TUNED = "HyPO's weight of the KL and DPO's dials are tuned on other seeds, with five values each; 25 for both."


def study() -> Study:
    """Every claim, with the worlds that it needs."""
    worlds = (
        Hole(),
        PartialCoverage(name=MILD, spurious=1.5),
        PartialCoverage(name=HARSH, spurious=3.0),
        Extrapolation(),
        UnseenMass(),
        Reversal(),
        Rounds(),
    )
    claims = (
        *(unbounded_kl(), what_descent_finds(), blind_to_a_shift(), bounded_rlhf(), identity()),
        *(claim(world) for world in (MILD, HARSH) for claim in (levels_off, more_reward, beats_tuned, tied_with_tuned)),
        *(global_coverage(), unbounded_reward(), chi_squared()),
        *(shared_features(), mass_outside(), law_of_the_mass_outside(), counts_decide()),
        *(on_policy_labels(), optimal_design()),
    )
    return Study("song", worlds, claims)


def identity() -> Claim:
    return Claim(
        "S0",
        "J(pi*) - J(pi) = beta KL(pi || pi*).",
        "ours: an identity, which checks every gap that is reported",
        (
            Part("in the hole", read(SMALL, "identity_error"), "equal", 1e-9),
            Part("after DPO", read(Cell.of(MILD, "dpo", beta=BETA), "identity_error"), "equal", 1e-9),
        ),
    )


def levels_off(world: str) -> Claim:
    """S5a in the mild world, S5b in the harsh one. Slopes are nats a step, by least squares over the last third."""
    dpo, hypo = _at_one_beta(world)
    return Claim(
        f"S5{_letter(world)}",
        f"DPO's KL goes on growing while HyPO's levels off ({_where(world)}).",
        f"{PAPER}, figure of KL over training",
        (
            Part("DPO's KL still rises in the final third", read(dpo, "kl", "slope"), "greater", 0.0),
            Part("HyPO's does not", read(hypo, "kl", "slope"), "equal", STILL),
            Part("DPO's rises faster", between(dpo, hypo, "kl", "slope"), "greater", 0.0),
        ),
        f"Equal means within {STILL} nats a step.",
    )


def more_reward(world: str) -> Claim:
    """S6a in the mild world, S6b in the harsh one: both at beta 0.1, HyPO's weight of the KL tuned. KL is in nats a
    response; the third part's numbers are 1 for a seed with most of its mass outside the support and 0 for another."""
    dpo, hypo = _at_one_beta(world)
    return Claim(
        f"S6{_letter(world)}",
        f"At the same beta HyPO earns more than DPO, with less KL and fewer ruined seeds ({_where(world)}).",
        f"{PAPER}, table 1",
        (
            Part("more reward", between(hypo, dpo, "reward"), "greater", 0.0),
            Part("less KL", between(hypo, dpo, "kl"), "less", 0.0),
            Part("fewer seeds with most mass outside", between(hypo, dpo, "catastrophe"), "less", 0.0),
        ),
        TUNED,
    )


def beats_tuned(world: str) -> Claim:
    """S7a in the mild world, S7b in the harsh one: S6's reward against DPO with beta, steps or both tuned, all three
    of which HyPO must beat."""
    _, hypo = _at_one_beta(world)
    tuned = {
        "beta tuned": Cell.of(world, "dpo"),
        "steps tuned": Cell.of(world, "dpo_stopped", beta=BETA),
        "beta and steps tuned": Cell.of(world, "dpo_tuned"),
    }
    return Claim(
        f"S7{_letter(world)}",
        f"HyPO earns more than DPO with its own dials tuned ({_where(world)}).",
        "ours: the baselines that the paper leaves out",
        tuple(
            Part(f"more than DPO, {how}", between(hypo, cell, "reward"), "greater", 0.0) for how, cell in tuned.items()
        ),
        TUNED,
    )


def tied_with_tuned(world: str) -> Claim:
    _, hypo = _at_one_beta(world)
    return Claim(
        f"S8{_letter(world)}",
        f"HyPO is tied with DPO whose beta and steps are tuned ({_where(world)}).",
        "ours",
        (Part(f"within {TIE} of reward", between(hypo, Cell.of(world, "dpo_tuned"), "reward"), "equal", TIE),),
        f"The margin {TIE} is 6% of the optimum's reward.",
    )


def global_coverage() -> Claim:
    """Pairs from the reference's support against pairs from everywhere."""
    loss = lambda method, **dials: between(_local(method, **dials), _local(method, coverage="global", **dials), "gap")
    dpo, hypo, ipo = loss("dpo", beta=BETA), loss("hypo", beta=BETA), loss("ipo")
    gibbs = _local("rlhf", beta=BETA, bound="data")
    return Claim(
        "S9",
        "DPO and IPO need global coverage; HyPO and bounded RLHF make do with local.",
        f"{PAPER}, section 4",
        (
            Part("DPO loses J where coverage is local", dpo, "greater", 0.0),
            Part("IPO loses J where coverage is local", ipo, "greater", 0.0),
            Part("HyPO loses less than DPO", hypo - dpo, "less", 0.0),
            Part("HyPO loses nothing", hypo, "less", 0.0),
            Part(
                "bounded RLHF loses less J than DPO with local pairs",
                between(gibbs, _local("dpo", beta=BETA), "gap"),
                "less",
                0.0,
            ),
            Part(
                "bounded RLHF loses less J than HyPO with local pairs",
                between(gibbs, _local("hypo", beta=BETA), "gap"),
                "less",
                0.0,
            ),
        ),
        "As many pairs either way, so global ones are fewer on the support; a gap is J(pi*) - J(pi) at beta 0.1.",
    )


def unbounded_reward() -> Claim:
    """S10, in the harsh world at beta 0.1: a fitted linear reward's exact Gibbs policy and DPO with the same features.
    The masses outside the support are shares of 1, and equal means within 1e-6."""
    return Claim(
        "S10",
        "Without a bound on its reward, RLHF is DPO where both have the same features.",
        "ours, after 2503.01067",
        (
            Part(
                "the same mass outside",
                between(_local("rlhf", beta=BETA, bound="none"), _local("dpo", beta=BETA), "ood_mass"),
                "equal",
                1e-6,
            ),
        ),
        "The Gibbs policy is exact here; a policy that is trained on the reward would stop short of it.",
    )


def chi_squared() -> Claim:
    """S11, in the harsh world: Huang et al. 2024, https://arxiv.org/abs/2407.13399, at beta 0.1 and with both betas
    tuned. A gap is J(pi*) - J(pi) at beta 0.1, in units of reward."""
    return Claim(
        "S11",
        "chi-squared PO, which needs the coverage of one policy only, loses less than DPO under local coverage.",
        "2407.13399, by its theory",
        (
            Part(
                "less gap than DPO at the same beta",
                between(_local("chipo", beta=BETA), _local("dpo", beta=BETA), "gap"),
                "less",
                0.0,
            ),
            Part("less gap, both tuned", between(_local("chipo"), _local("dpo"), "gap"), "less", 0.0),
        ),
    )


def on_policy_labels() -> Claim:
    return Claim(
        "S16",
        "Rounds of on-policy labels leave a smaller gap than as many labels of the reference's responses.",
        "2601.08421",
        (
            Part("after two rounds", _less("on_policy", "offline", 2), "less", 0.0),
            Part("after six rounds", _less("on_policy", "offline", 6), "less", 0.0),
        ),
        "Of the logarithm of the gap. The first round is the same for both.",
    )


def optimal_design() -> Claim:
    return Claim(
        "S17",
        "Pairs from a G-optimal design need no coverage by the reference.",
        "2601.08421",
        (
            Part("less gap than offline after one round", _less("g_optimal", "offline", 1), "less", 0.0),
            Part("less gap than offline after six", _less("g_optimal", "offline", 6), "less", 0.0),
            Part("less gap than on-policy after six", _less("g_optimal", "on_policy", 6), "less", 0.0),
        ),
    )


def _at_one_beta(world: str) -> tuple[Cell, Cell]:
    return Cell.of(world, "dpo", beta=BETA), Cell.of(world, "hypo", beta=BETA)


def _letter(world: str) -> str:
    return "a" if world == MILD else "b"


def _where(world: str) -> str:
    return "a mild spurious feature" if world == MILD else "a strong spurious feature"


def _local(method: str, **dials: Dial) -> Cell:
    """In the harsh world, where by default pairs are of the reference's support."""
    return Cell.of(HARSH, method, **dials)


def _less(ours: str, theirs: str, rounds: int) -> Contrast:
    """Of the logarithm of the gap, after so many rounds of labels."""
    at = lambda method: Cell.of("rounds", method, rounds=rounds)
    return between(at(ours), at(theirs), "log_gap")
