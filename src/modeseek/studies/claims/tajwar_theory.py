"""The theory of 2404.14367, asked of random cases: lemma 6.2, theorem 6.5 and the figure beside it.

https://arxiv.org/abs/2404.14367, section 6. The world is `worlds/one_step.py`.
"""

from __future__ import annotations

from modeseek.studies.base import Cell, Claim, Part, read

SOURCE = "Tajwar et al. 2024, 2404.14367"


def lemma() -> Claim:
    """Lemma 6.2."""
    table, at = Cell.of("one-step", "lemma_6_2"), lambda cosine: Cell.of("one-step", "log_linear", cosine=cosine)
    part = lambda says, cell, metric, relation, margin: Part(says, read(cell, metric), relation, margin)
    return Claim(
        "lemma 6.2",
        "A step with a negative gradient widens the margin; where gradients do not align it also raises the chosen.",
        f"{SOURCE}, lemma 6.2",
        (
            part("tables: the margin is wider in nearly every case", table, "margin_wider", "greater", 0.99),
            part("tables: the sign of the chosen's gain is the inner product's", table, "agree", "greater", 0.99),
            part("tables: the chosen is higher in most cases", table, "chosen_higher", "greater", 0.5),
            part(
                "features at right angles: the margin is wider in nearly every case",
                at(0.0),
                "margin_wider",
                "greater",
                0.99,
            ),
            Part(
                "features at a cosine of 0.9: both fall more often than at right angles",
                read(at(0.9), "both_fall") - read(at(0.0), "both_fall"),
                "greater",
            ),
        ),
        "The lemma says that some data set exists; the parts ask how usual its conclusions are among random cases.",
    )


def theorem() -> Claim:
    """Theorem 6.5."""
    cell = Cell.of("one-step", "theorem_6_5")
    conclusions: tuple[tuple[str, str], ...] = (
        ("case_1", "equal p, larger q: the reverse KL parts them more, in most cases"),
        ("case_2", "equal q, larger p: the reverse KL parts them more, in most cases"),
    )
    return Claim(
        "theorem 6.5",
        "After one step the reverse KL has moved mass between bins as the theorem says, against the forward KL.",
        f"{SOURCE}, theorem 6.5",
        (
            Part("outcomes are those of the exact conditions", read(cell, "agree"), "greater", 0.99),
            Part("a step moves log-ratios by the closed form", read(cell, "deviation"), "equal", 1e-6),
            *(Part(says, read(cell, metric), "greater", 0.5) for metric, says in conclusions),
        ),
        "Exact: case 1 holds where p is above the logarithmic mean of q_1 and q_2, and in no other case.",
    )


def figure() -> Claim:
    """The figure beside theorem 6.5."""
    cell = Cell.of("one-step", "toy")
    return Claim(
        "theorem 6.5, figure",
        "From (.3, .3, .1, .3) towards (.2, .1, .6, .1), the forward KL raises bin 0 and the reverse KL bin 2 by more.",
        f"{SOURCE}, section 6, figure of four bins",
        (
            Part("the forward KL raises bin 0", read(cell, "forward_bin_0"), "greater"),
            Part("the reverse KL raises bin 2 by more", read(cell, "reverse_less_forward_bin_2"), "greater"),
        ),
        "1 to 10 steps of 0.1 to 1. With the two labels swapped the figure's bars fit within 0.008.",
    )
