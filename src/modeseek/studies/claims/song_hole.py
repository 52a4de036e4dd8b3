"""What 2406.01462 says of the policies that the data cannot tell from the right one, with a hole in the reference.

Its theorems say that a bad policy exists; whether training finds it is asked apart. https://arxiv.org/abs/2406.01462.
"""

from __future__ import annotations

import math

from modeseek.studies.base import Cell, Claim, Part, read
from modeseek.studies.claims.contrasts import between, scaled

PAPER = "2406.01462"
SMALL, SMALLER = Cell.of("hole", "dpo_set", eta=1e-8), Cell.of("hole", "dpo_set", eta=1e-16)
GROWTH = between(SMALLER, SMALL, "kl")  # of the written policy's KL, as the hole shrinks


def unbounded_kl() -> Claim:
    """S1: the written policy at holes of mass 1e-8 and 1e-16. Its KL, in nats, grows by its mass in the hole for each
    nat of ln(1 / eta); a gap is J(pi*) - J(pi), in units of reward."""
    nats = 8 * math.log(10)  # by which ln(1 / eta) grows from the one to the other
    return Claim(
        "S1",
        "With in-distribution error eps, a policy in DPO's solution set has unbounded KL to the reference.",
        f"{PAPER}, section 4",
        (
            Part("its squared error on what is covered is eps", read(SMALL, "error_less_eps"), "equal", 1e-9),
            Part(
                "1 - exp(-sqrt(eps) / beta) of its mass is in the hole",
                read(SMALL, "ood_mass") - read(SMALL, "hole_predicted"),
                "equal",
                1e-9,
            ),
            Part(
                "its KL grows by that much for each nat of 1 / eta",
                scaled(GROWTH, 1 / nats) - read(SMALL, "ood_mass"),
                "equal",
                0.01,
            ),
            Part("so J falls without bound", between(SMALLER, SMALL, "gap"), "greater", 0.5),
        ),
        "The policy is written down, not trained: S2 asks what training does.",
    )


def what_descent_finds() -> Claim:
    """S2, at a hole of mass 1e-8: DPO on every comparison from the reference, against S1's written policy. The gap to
    the optimum, in units of reward, is within 1e-3 of zero."""
    trained = Cell.of("hole", "dpo", eta=1e-8)
    return Claim(
        "S2",
        "Descent from the reference does not find that policy with a table of logits.",
        "ours, after 2510.20413's remark",
        (
            Part("its mass in the hole is far smaller", between(trained, SMALL, "ood_mass"), "less", 0.5),
            Part("its KL is smaller", between(trained, SMALL, "kl"), "less", 0.0),
            Part("it is at the optimum", read(trained, "gap"), "equal", 1e-3),
        ),
        "Labels are infinite in number, so that what is left is the dynamics.",
    )


def blind_to_a_shift() -> Claim:
    return Claim(
        "S3",
        "DPO's loss is blind to a uniform shift of all covered responses; HyPO's KL term sees it.",
        f"{PAPER}, section 5",
        (
            Part("DPO's loss does not change", read(SMALL, "dpo_loss_change"), "equal", 1e-12),
            Part("HyPO's KL rises", read(SMALL, "hypo_kl_change"), "greater", 1.0),
        ),
    )


def bounded_rlhf() -> Claim:
    """S4: the Gibbs policy of a reward within plus or minus R = 1, ten responses covered, at holes of mass 1e-8 and
    1e-16. The bound of its KL, in nats, is `worlds.hole.kl_bound`'s, which is tighter than the paper's."""
    rlhf = Cell.of("hole", "rlhf", eta=1e-16, covered=10)
    gibbs = between(rlhf, Cell.of("hole", "rlhf", eta=1e-8, covered=10), "kl")
    return Claim(
        "S4",
        "RLHF with a bounded learned reward has bounded KL, whatever the hole.",
        f"{PAPER}, section 4",
        (
            Part("its KL is below min(2R / beta, R^2 / 2 beta^2)", read(rlhf, "kl_above_bound"), "less", 0.0),
            Part("its KL does not grow as the hole shrinks", gibbs, "equal", 0.05),
            Part("it grows by less than that of DPO's set", gibbs - GROWTH, "less", 5.0),
        ),
        "The learned reward is right on what is covered and at its upper bound in the hole: the worst case.",
    )
