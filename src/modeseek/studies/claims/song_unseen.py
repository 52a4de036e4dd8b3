"""What becomes of responses that nobody compared, after 2406.01462 and 2510.20413."""

from __future__ import annotations

from modeseek.studies.base import Cell, Claim, Part, read
from modeseek.studies.claims.contrasts import between, change
from modeseek.studies.claims.song_hole import PAPER

REFERENCES = {"uniform": "uniform", "correlated": "well-informed", "anti": "ill-informed"}  # of the world unseen_mass


def shared_features() -> Claim:
    """S12, at beta 0.3. Changes of a log-probability are in nats, from the reference on; `dpo_table` is DPO without
    features, so that nothing carries over to the response that nobody compared."""
    cell = lambda method: Cell.of("extrapolation", method, beta=0.3)
    shared = tuple(
        part
        for method, name in (("dpo", "DPO"), ("rlhf", "RLHF"))
        for part in (
            Part(f"{name} raises the best unseen response", change(cell(method), "logp_best_unseen"), "greater", 0.0),
            Part(f"{name} lowers the chosen ones", change(cell(method), "logp_chosen"), "less", 0.0),
        )
    )
    table = change(cell("dpo_table"), "logp_best_unseen")
    return Claim(
        "S12",
        "With shared features DPO and RLHF raise the best response, never in the data, as the chosen ones fall.",
        f"{PAPER}, section on function approximation",
        (
            *shared,
            Part("and it is right: the reward rises", change(cell("dpo"), "reward"), "greater", 0.0),
            Part("a table lowers the best unseen response", table, "less", 0.0),
        ),
        "The paper's sizes are not known; ours are 50 responses, 10 features, 200 labels among 15 responses.",
    )


def mass_outside() -> Claim:
    return Claim(
        "S13",
        "Without function approximation DPO raises the mass outside the data.",
        f"{PAPER}, figure of out-of-distribution responses",
        tuple(
            Part(f"it rises, {name} reference", change(_law(reference), "ood_mass"), "greater", 0.0)
            for reference, name in REFERENCES.items()
        ),
        "By the law of S14 the sign depends on the reference: with a table it rises where the reference prefers "
        "what loses. The paper's network shares parameters.",
    )


def law_of_the_mass_outside() -> Claim:
    return Claim(
        "S14",
        "With a table, the mass outside becomes m / (m + (1 - m) E[exp(delta)]).",
        "ours",
        tuple(
            Part(f"relative error, {reference} reference", read(_law(reference), "ood_error"), "equal", 0.05)
            for reference in REFERENCES
        ),
    )


def counts_decide() -> Claim:
    """S15: Gopalan et al. 2025, https://arxiv.org/abs/2510.20413. Rewards are 1, 2 and 0, so a change of 0.1 is a tenth
    of what the reference earns; the two cells differ in which pair is compared often."""
    often = lambda which: Cell.of("reversal", "dpo", often=which)
    return Claim(
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
    )


def _law(reference: str) -> Cell:
    return Cell.of("unseen_mass", "dpo", reference=reference)
