"""Which way methods go, the paper's claim against what is measured.

2404.14367, section 6, calls on-policy RL and contrastive objectives mode-seeking and weighted maximum likelihood
mode-covering. Here every method moves a bump between two modes; `seeking` is 0 at the forward KL's minimum and 1 at the
reverse KL's. A part that says "seeks" asks for more than one half, so its contrast is less that of a cell that marks
the scale: half the sum of the two divergences themselves.
"""

from __future__ import annotations

from modeseek.studies.base import Cell, Claim, Contrast, Part, Study, read
from modeseek.studies.claims.contrasts import scaled
from modeseek.studies.worlds.divergence import Divergence

PAPER = "2404.14367"
ON_POLICY = ("reinforce", "rloo", "grpo", "ppo")
LIKELIHOOD = ("pref_ft", "binary_feedme")
CONTRASTIVE = ("dpo", "ipo", "simpo")
ONLINE_CONTRASTIVE = ("online_dpo", "online_ipo", "online_simpo")


def study() -> Study:
    """The claims of direction."""
    return Study("divergence", (Divergence(),), claims())


def cell(method: str, **dials: str) -> Cell:
    return Cell.of("divergence", method, **dials)


def less_half(at: Cell) -> Contrast:
    """`seeking` less the middle of the scale, which the two exact divergences mark."""
    marks = [scaled(read(cell(name), "seeking"), -0.5) for name in ("forward_kl", "reverse_kl")]
    return read(at, "seeking") + marks[0] + marks[1]


def seeks(methods: tuple[str, ...]) -> tuple[Part, ...]:
    return tuple(Part(f"{name} seeks", less_half(cell(name)), "greater", 0.0) for name in methods)


def covers(at: Cell, name: str) -> Part:
    return Part(f"{name} covers", less_half(at), "less", 0.0)


def claims() -> tuple[Claim, ...]:
    """D0 to D6, in order: D0 that the world can tell, D1 to D5 a kind of method each, D6 that the source decides.

    Contrasts are of `seeking`, without a unit: 0 at the forward KL's minimum, 1 at the reverse KL's.
    """
    apart = read(cell("reverse_kl"), "seeking") - read(cell("forward_kl"), "seeking")
    return (
        Claim(
            "D0",
            "The world tells the two divergences apart.",
            "ours",
            (Part("the reverse KL ends at a mode and the forward KL between them", apart, "greater", 0.95),),
        ),
        Claim("D1", "On-policy RL is mode-seeking.", f"{PAPER}, lemma 6.1", seeks(ON_POLICY)),
        Claim(
            "D2",
            "Maximum likelihood on given responses is mode-covering.",
            f"{PAPER}, section 6",
            (*(covers(cell(n), n) for n in LIKELIHOOD), covers(cell("rwr", source="offline"), "offline rwr")),
        ),
        Claim(
            "D3",
            "A negative gradient makes an objective mode-seeking, offline too.",
            f"{PAPER}, section 6",
            seeks(CONTRASTIVE),
            "Pairs are of the uniform reference with Bradley-Terry labels. For a bump of fixed width log pi(w) - "
            "log pi(l) is linear in where it stands, so a convex loss of a margin has one minimum: on given pairs no "
            "such objective can seek here. The paper's argument is about the first steps on a table, not tested here.",
        ),
        Claim(
            "D4",
            "Contrastive objectives on own samples are mode-seeking.",
            f"{PAPER}, section 6",
            seeks(ONLINE_CONTRASTIVE),
        ),
        Claim(
            "D5",
            "Weighted likelihood on own samples is mode-seeking.",
            f"{PAPER}, lemma 6.1 as extended",
            seeks(("best_of_n", "rwr")),
        ),
        Claim(
            "D6",
            "The source decides the direction, not the negative gradient.",
            "ours",
            (
                Part(
                    "DPO: own samples against pairs of the reference",
                    read(cell("online_dpo"), "seeking") - read(cell("dpo"), "seeking"),
                    "greater",
                    0.5,
                ),
                Part(
                    "RWR: own samples against responses of the reference",
                    read(cell("rwr"), "seeking") - read(cell("rwr", source="offline"), "seeking"),
                    "greater",
                    0.5,
                ),
                Part(
                    "offline: DPO against likelihood of the chosen",
                    read(cell("dpo"), "seeking") - read(cell("pref_ft"), "seeking"),
                    "equal",
                    0.25,
                ),
            ),
        ),
    )
