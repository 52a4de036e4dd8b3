"""The claims of 2406.01462, and the checks that they need to mean something.

"Understanding preference fine-tuning through the lens of coverage", https://arxiv.org/abs/2406.01462. Its theorems say
that a bad policy exists; whether training finds it is asked apart. HyPO is compared with DPO at the same beta and with
DPO whose beta and number of steps are tuned: a claim without those baselines is about an untuned dial.
"""

from __future__ import annotations

import math

from modeseek.studies.base import At, Cell, Claim, Contrast, Part, Study, read
from modeseek.studies.worlds.coverage import PartialCoverage
from modeseek.studies.worlds.extrapolation import Extrapolation
from modeseek.studies.worlds.hole import Hole
from modeseek.studies.worlds.reversal import Reversal
from modeseek.studies.worlds.rounds import Rounds
from modeseek.studies.worlds.unseen_mass import UnseenMass

PAPER = "2406.01462"
MILD, HARSH = "partial", "partial_harsh"
BETA = 0.1  # of the comparisons in which DPO and HyPO share it
TIE = 0.15  # reward: 6% of what the optimum earns
STILL = 5e-4  # nats a step: a quarter of a nat over the 500 steps of the final third


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
    claims = (*existence(), *robustness(), *coverage(), *extrapolation(), *collecting())
    return Study("song", worlds, claims)


def scaled(contrast: Contrast, by: float) -> Contrast:
    """The contrast times a number."""
    return Contrast(tuple((by * c, cell, metric, at) for c, cell, metric, at in contrast.terms))


def change(cell: Cell, metric: str) -> Contrast:
    """What training did to a metric."""
    return read(cell, metric) - read(cell, metric, "start")


def between(ours: Cell, theirs: Cell, metric: str, at: At = "end") -> Contrast:
    """A metric of one cell less that of another, in the same world."""
    return read(ours, metric, at) - read(theirs, metric, at)


def existence() -> tuple[Claim, ...]:
    """What the class of eps-accurate policies holds, which descent need not find."""
    small, smaller = Cell.of("hole", "dpo_set", eta=1e-8), Cell.of("hole", "dpo_set", eta=1e-16)
    trained, rlhf = Cell.of("hole", "dpo", eta=1e-8), Cell.of("hole", "rlhf", eta=1e-16, covered=10)
    nats = 8 * math.log(10)  # by which ln(1 / eta) grows from the one to the other
    growth = between(smaller, small, "kl")
    gibbs = between(rlhf, Cell.of("hole", "rlhf", eta=1e-8, covered=10), "kl")
    return (
        Claim(
            "S1",
            "With in-distribution error eps, a policy in DPO's solution set has unbounded KL to the reference.",
            f"{PAPER}, section 4",
            (
                Part("its squared error on what is covered is eps", read(small, "error_less_eps"), "equal", 1e-9),
                Part(
                    "1 - exp(-sqrt(eps) / beta) of its mass is in the hole",
                    read(small, "ood_mass") - read(small, "hole_predicted"),
                    "equal",
                    1e-9,
                ),
                Part(
                    "its KL grows by that much for each nat of 1 / eta",
                    scaled(growth, 1 / nats) - read(small, "ood_mass"),
                    "equal",
                    0.01,
                ),
                Part("so J falls without bound", between(smaller, small, "gap"), "greater", 0.5),
            ),
            "The policy is written down, not trained: S2 asks what training does.",
        ),
        Claim(
            "S2",
            "Descent from the reference does not find that policy with a table of logits.",
            "ours, after 2510.20413's remark",
            (
                Part("its mass in the hole is far smaller", between(trained, small, "ood_mass"), "less", 0.5),
                Part("its KL is smaller", between(trained, small, "kl"), "less", 0.0),
                Part("it is at the optimum", read(trained, "gap"), "equal", 1e-3),
            ),
            "Labels are infinite in number, so that what is left is the dynamics.",
        ),
        Claim(
            "S3",
            "DPO's loss is blind to a uniform shift of all covered responses; HyPO's KL term sees it.",
            f"{PAPER}, section 5",
            (
                Part("DPO's loss does not change", read(small, "dpo_loss_change"), "equal", 1e-12),
                Part("HyPO's KL rises", read(small, "hypo_kl_change"), "greater", 1.0),
            ),
        ),
        Claim(
            "S4",
            "RLHF with a bounded learned reward has bounded KL, whatever the hole.",
            f"{PAPER}, section 4",
            (
                Part("its KL is below min(2R / beta, R^2 / 2 beta^2)", read(rlhf, "kl_above_bound"), "less", 0.0),
                Part("its KL does not grow as the hole shrinks", gibbs, "equal", 0.05),
                Part("it grows by less than that of DPO's set", gibbs - growth, "less", 5.0),
            ),
            "The learned reward is right on what is covered and at its upper bound in the hole: the worst case.",
        ),
        Claim(
            "S0",
            "J(pi*) - J(pi) = beta KL(pi || pi*).",
            "ours: an identity, which checks every gap that is reported",
            (
                Part("in the hole", read(small, "identity_error"), "equal", 1e-9),
                Part("after DPO", read(Cell.of(MILD, "dpo", beta=BETA), "identity_error"), "equal", 1e-9),
            ),
        ),
    )


def robustness() -> tuple[Claim, ...]:
    """HyPO against DPO, untuned and tuned, in a mild and in a harsh world."""
    claims: list[Claim] = []
    for world, letter in ((MILD, "a"), (HARSH, "b")):
        dpo, hypo = Cell.of(world, "dpo", beta=BETA), Cell.of(world, "hypo", beta=BETA)
        tuned = {
            "beta tuned": Cell.of(world, "dpo"),
            "steps tuned": Cell.of(world, "dpo_stopped", beta=BETA),
            "beta and steps tuned": Cell.of(world, "dpo_tuned"),
        }
        where = "a mild spurious feature" if world == MILD else "a strong spurious feature"
        note = "HyPO's weight of the KL and DPO's dials are tuned on other seeds, with five values each; 25 for both."
        claims += [
            Claim(
                f"S5{letter}",
                f"DPO's KL goes on growing while HyPO's levels off ({where}).",
                f"{PAPER}, figure of KL over training",
                (
                    Part("DPO's KL still rises in the final third", read(dpo, "kl", "slope"), "greater", 0.0),
                    Part("HyPO's does not", read(hypo, "kl", "slope"), "equal", STILL),
                    Part("DPO's rises faster", between(dpo, hypo, "kl", "slope"), "greater", 0.0),
                ),
                f"Equal means within {STILL} nats a step.",
            ),
            Claim(
                f"S6{letter}",
                f"At the same beta HyPO earns more than DPO, with less KL and fewer ruined seeds ({where}).",
                f"{PAPER}, table 1",
                (
                    Part("more reward", between(hypo, dpo, "reward"), "greater", 0.0),
                    Part("less KL", between(hypo, dpo, "kl"), "less", 0.0),
                    Part("fewer seeds with most mass outside", between(hypo, dpo, "catastrophe"), "less", 0.0),
                ),
                note,
            ),
            Claim(
                f"S7{letter}",
                f"HyPO earns more than DPO with its own dials tuned ({where}).",
                "ours: the baselines that the paper leaves out",
                tuple(
                    Part(f"more than DPO, {how}", between(hypo, cell, "reward"), "greater", 0.0)
                    for how, cell in tuned.items()
                ),
                note,
            ),
            Claim(
                f"S8{letter}",
                f"HyPO is tied with DPO whose beta and steps are tuned ({where}).",
                "ours",
                (
                    Part(
                        f"within {TIE} of reward", between(hypo, tuned["beta and steps tuned"], "reward"), "equal", TIE
                    ),
                ),
                f"The margin {TIE} is 6% of the optimum's reward.",
            ),
        ]
    return tuple(claims)


def coverage() -> tuple[Claim, ...]:
    """Pairs from the reference's support against pairs from everywhere."""
    local = lambda method, **dials: Cell.of(HARSH, method, **dials)  # as the worlds have it by default
    everywhere = lambda method, **dials: Cell.of(HARSH, method, coverage="global", **dials)
    loss = lambda method, **dials: between(local(method, **dials), everywhere(method, **dials), "gap")
    dpo, hypo, ipo = loss("dpo", beta=BETA), loss("hypo", beta=BETA), loss("ipo")
    gibbs = local("rlhf", beta=BETA, bound="data")
    return (
        Claim(
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
                    between(gibbs, local("dpo", beta=BETA), "gap"),
                    "less",
                    0.0,
                ),
                Part(
                    "bounded RLHF loses less J than HyPO with local pairs",
                    between(gibbs, local("hypo", beta=BETA), "gap"),
                    "less",
                    0.0,
                ),
            ),
            "As many pairs either way, so global ones are fewer on the support; a gap is J(pi*) - J(pi) at beta 0.1.",
        ),
        Claim(
            "S10",
            "Without a bound on its reward, RLHF is DPO where both have the same features.",
            "ours, after 2503.01067",
            (
                Part(
                    "the same mass outside",
                    between(local("rlhf", beta=BETA, bound="none"), local("dpo", beta=BETA), "ood_mass"),
                    "equal",
                    1e-6,
                ),
            ),
            "The Gibbs policy is exact here; a policy that is trained on the reward would stop short of it.",
        ),
        Claim(
            "S11",
            "chi-squared PO, which needs the coverage of one policy only, loses less than DPO under local coverage.",
            "2407.13399, by its theory",
            (
                Part(
                    "less gap than DPO at the same beta",
                    between(local("chipo", beta=BETA), local("dpo", beta=BETA), "gap"),
                    "less",
                    0.0,
                ),
                Part("less gap, both tuned", between(local("chipo"), local("dpo"), "gap"), "less", 0.0),
            ),
        ),
    )


def extrapolation() -> tuple[Claim, ...]:
    """What becomes of responses that nobody compared."""
    cell = lambda method: Cell.of("extrapolation", method, beta=0.3)
    law = lambda reference: Cell.of("unseen_mass", "dpo", reference=reference)
    often = lambda which: Cell.of("reversal", "dpo", often=which)
    shared = tuple(
        part
        for method, name in (("dpo", "DPO"), ("rlhf", "RLHF"))
        for part in (
            Part(f"{name} raises the best unseen response", change(cell(method), "logp_best_unseen"), "greater", 0.0),
            Part(f"{name} lowers the chosen ones", change(cell(method), "logp_chosen"), "less", 0.0),
        )
    )
    table = change(cell("dpo_table"), "logp_best_unseen")
    return (
        Claim(
            "S12",
            "With shared features DPO and RLHF raise the best response, never in the data, as the chosen ones fall.",
            f"{PAPER}, section on function approximation",
            (
                *shared,
                Part("and it is right: the reward rises", change(cell("dpo"), "reward"), "greater", 0.0),
                Part("a table lowers the best unseen response", table, "less", 0.0),
            ),
            "The paper's sizes are not known; ours are 50 responses, 10 features, 200 labels among 15 responses.",
        ),
        Claim(
            "S13",
            "Without function approximation DPO raises the mass outside the data.",
            f"{PAPER}, figure of out-of-distribution responses",
            tuple(
                Part(f"it rises, {name} reference", change(law(reference), "ood_mass"), "greater", 0.0)
                for reference, name in (
                    ("uniform", "uniform"),
                    ("correlated", "well-informed"),
                    ("anti", "ill-informed"),
                )
            ),
            "By the law of S14 the sign depends on the reference: with a table it rises where the reference prefers "
            "what loses. The paper's network shares parameters.",
        ),
        Claim(
            "S14",
            "With a table, the mass outside becomes m / (m + (1 - m) E[exp(delta)]).",
            "ours",
            tuple(
                Part(f"relative error, {reference} reference", read(law(reference), "ood_error"), "equal", 0.05)
                for reference in ("uniform", "correlated", "anti")
            ),
        ),
        Claim(
            "S15",
            "Global coverage does not suffice where the policies are too few: counts decide whether DPO loses reward.",
            "2510.20413",
            (
                Part("it loses", change(often("second_with_worst"), "reward"), "less", 0.1),
                Part("with other counts it gains", change(often("best_with_second"), "reward"), "greater", 0.1),
                Part(
                    "two-stage RLHF gains more",
                    between(Cell.of("reversal", "rlhf"), often("best_with_second"), "reward"),
                    "greater",
                    0.0,
                ),
            ),
        ),
    )


def collecting() -> tuple[Claim, ...]:
    """Which pairs to have labelled next."""
    at = lambda method, rounds: Cell.of("rounds", method, rounds=rounds)
    less = lambda ours, theirs, rounds: between(at(ours, rounds), at(theirs, rounds), "log_gap")
    return (
        Claim(
            "S16",
            "Rounds of on-policy labels leave a smaller gap than as many labels of the reference's responses.",
            "2601.08421",
            (
                Part("after two rounds", less("on_policy", "offline", 2), "less", 0.0),
                Part("after six rounds", less("on_policy", "offline", 6), "less", 0.0),
            ),
            "Of the logarithm of the gap. The first round is the same for both.",
        ),
        Claim(
            "S17",
            "Pairs from a G-optimal design need no coverage by the reference.",
            "2601.08421",
            (
                Part("less gap than offline after one round", less("g_optimal", "offline", 1), "less", 0.0),
                Part("less gap than offline after six", less("g_optimal", "offline", 6), "less", 0.0),
                Part("less gap than on-policy after six", less("g_optimal", "on_policy", 6), "less", 0.0),
            ),
        ),
    )
