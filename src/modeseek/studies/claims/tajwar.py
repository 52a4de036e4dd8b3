"""What 2404.14367 says of on-policy sampling and negative gradients, as tests over paired seeds.

Margins were declared on pilot seeds, for the worlds' units: rewards of the bandits lie between 0 and 1; those of the
length worlds are mean lengths of the reference. `area` is the mean over training, so a faster method has more of it.
https://arxiv.org/abs/2404.14367.
"""

from __future__ import annotations

from typing import Literal

from modeseek.studies.base import At, Cell, Claim, Contrast, Dial, Part, Study, read
from modeseek.studies.claims.tajwar_theory import SOURCE, figure, lemma, theorem
from modeseek.studies.worlds.bandit import BanditWorld
from modeseek.studies.worlds.context_bandit import ContextBanditWorld
from modeseek.studies.worlds.length import GEOMETRY, LengthWorld
from modeseek.studies.worlds.one_step import OneStep
from modeseek.studies.worlds.token_bandit import TokenBanditWorld

TIE = 0.05  # rewards this close are called the same
STALE: dict[str, dict[str, Dial]] = {  # the default round, eight times as large, in as many minibatches
    "bandit": {"prompts_per_round": 40, "minibatch": 5},
    "length": {"prompts_per_round": 32, "minibatch": 4},
}
NAMES = {
    "best_of_n": "best-of-N",
    "best_of_n_mean": "best-of-N with a negative term",
    "ppo": "PPO",
    "rwr": "RWR",
    "online_dpo": "on-policy DPO",
    "dpo": "DPO",
    "ipo": "IPO",
    "pref_ft": "Pref-FT",
    "offline_best_of_n": "offline best-of-N",
}


def study(quick: bool = False) -> Study:
    """All claims. `quick` takes fewer optimiser steps where a language model is trained, and fewer rounds in A3."""
    steps, rounds = (20, 4) if quick else (120, 30)
    return Study(
        "tajwar",
        (
            BanditWorld("R1"),
            BanditWorld("R2"),
            ContextBanditWorld("R1-contexts"),
            ContextBanditWorld("R2-contexts"),
            TokenBanditWorld("R1-tokens", steps=steps),
            TokenBanditWorld("R2-tokens", steps=steps),
            *(LengthWorld(name, steps=steps) for name in GEOMETRY),
            OneStep(),
        ),
        (
            smaller_rounds(),
            near_peaks(),
            reuse(rounds),
            reuse_of_ppo(rounds),
            offline_contrast(),
            negative_term(),
            margins(),
            chosen_likelihood(),
            together(),
            unstudied(),
            lemma(),
            theorem(),
            figure(),
        ),
    )


def smaller_rounds() -> Claim:
    """A1."""
    cases = [(w, m) for w in ("R1", "R1-contexts", "R1-tokens") for m in ("best_of_n", "ppo", "online_dpo")]
    cases += [("min_length", "best_of_n"), ("min_length", "ppo"), ("skew_length", "ppo")]
    return Claim(
        "A1",
        "Where the reward's peak is far from the reference, sampling more often gives more reward per gradient step.",
        f"{SOURCE}, section 5.1.1",
        tuple(
            Part(f"{NAMES[m]} in {w}: small rounds beat rounds 8 times as large", _gap(w, m), "greater")
            for w, m in cases
        ),
        "Same learning rate and minibatch on both sides, tuned at the small round; the mean reward over the steps. In "
        "skew_length best-of-N does as in min_length to the last digit, since both proxies order lengths alike.",
    )


def near_peaks() -> Claim:
    """A2."""
    cases = [(w, m) for w in ("R2", "R2-contexts", "R2-tokens") for m in ("best_of_n", "ppo", "online_dpo")]
    cases += [("mode_length", m) for m in ("best_of_n", "ppo")]
    equal = [Part(f"{NAMES[m]} in {w}: within {TIE}", _gap(w, m), "equal", TIE) for w, m in cases]
    less = [
        Part(f"{NAMES[m]}: the gap in {far} is larger than in {near}", _gap(far, m) - _gap(near, m), "greater")
        for far, near in (("R1", "R2"), ("R1-contexts", "R2-contexts"), ("R1-tokens", "R2-tokens"))
        for m in ("best_of_n", "ppo", "online_dpo")
    ]
    return Claim(
        "A2",
        "Where the peak is near the reference, the size of a round hardly matters.",
        f"{SOURCE}, section 5.1.1",
        (*equal, *less),
        f"An equivalence test with a margin of {TIE}, then the interaction with geometry, which needs no margin.",
    )


def reuse(rounds: int) -> Claim:
    """A3."""
    parts: list[Part] = []
    for world in ("R1", "R1-tokens"):
        for method in ("best_of_n", "ppo"):
            at = {T: _end(world, method, steps=rounds * T, **_passes(T)) for T in (1, 2, 8)}
            slow = _end(world, method, steps=rounds, **_passes(8))
            where = f"{NAMES[method]} in {world}"
            parts += [
                Part(f"{where}: two passes beat one on the same samples", at[2] - at[1], "greater"),
                Part(f"{where}: eight passes are worse than two on the same samples", at[8] - at[2], "less"),
                Part(f"{where}: eight passes are worse than one after as many steps", slow - at[1], "less"),
            ]
    return Claim(
        "A3",
        "Some reuse of samples helps; much reuse hurts.",
        f"{SOURCE}, section 5.1.2",
        tuple(parts),
        f"{rounds} rounds of 5 prompts; after as many steps, eight passes have seen an eighth of the samples.",
    )


def reuse_of_ppo(rounds: int) -> Claim:
    """A4."""
    loss = lambda world, method: (
        _end(world, method, steps=rounds, **_passes(1)) - _end(world, method, steps=rounds, **_passes(8))
    )
    gain = lambda world, method: (
        _end(world, method, steps=8 * rounds, **_passes(8)) - _end(world, method, steps=rounds, **_passes(1))
    )
    parts = []
    for world in ("R1", "R1-tokens"):
        after = loss(world, "best_of_n") - loss(world, "ppo")
        samples = gain(world, "ppo") - gain(world, "best_of_n")
        parts += [
            Part(f"{world}: best-of-N loses more by eight passes after as many steps", after, "greater"),
            Part(f"{world}: PPO gains more from eight passes on the same samples", samples, "greater"),
        ]
    return Claim(
        "A4",
        "PPO tolerates reuse better than best-of-N, because it clips.",
        f"{SOURCE}, section 5.1.2",
        tuple(parts),
    )


def offline_contrast() -> Claim:
    """B1."""
    far = [(w, m, "offline_best_of_n") for w in ("R1", "R1-contexts", "R1-tokens") for m in ("dpo", "ipo")]
    far += [(w, m, "pref_ft") for w in ("min_length", "skew_length") for m in ("dpo", "ipo")]
    near = [(w, "dpo", "offline_best_of_n") for w in ("R2", "R2-contexts", "R2-tokens")]
    near += [(w, "dpo", "pref_ft") for w in ("R2", "mode_length")]
    return Claim(
        "B1",
        "Offline, contrastive objectives beat likelihood where the peak is far, and do as well where it is near.",
        f"{SOURCE}, section 5.2",
        (
            *(Part(f"{NAMES[a]} beats {NAMES[b]} in {w}", _end(w, a) - _end(w, b), "greater") for w, a, b in far),
            *(
                Part(f"{NAMES[a]} and {NAMES[b]} in {w}: within {TIE}", _end(w, a) - _end(w, b), "equal", TIE)
                for w, a, b in near
            ),
        ),
        "In the bandits from groups of ten, on all of their pairs; in the length worlds from pairs.",
    )


def negative_term() -> Claim:
    """B2."""
    worlds = ("R1", "R1-tokens", "min_length")
    return Claim(
        "B2",
        "A negative gradient makes best-of-N faster.",
        f"{SOURCE}, section 5.2.3",
        tuple(
            Part(f"the losers' mean at 0.3 in {w}", _area(w, "best_of_n_mean") - _area(w, "best_of_n"), "greater")
            for w in worlds
        ),
        "The mean reward over the steps, each method at its own learning rate.",
    )


def margins() -> Claim:
    """B3."""
    worlds = ("R1", "R2", "R1-tokens", "R2-tokens", "min_length", "mode_length", "skew_length")
    margin = lambda world, method: read(Cell.of(world, method), "margin")
    return Claim(
        "B3",
        "DPO parts the chosen from the rejected more than Pref-FT does.",
        f"{SOURCE}, section 5.2.2",
        tuple(Part(f"in {w}, in nats", margin(w, "dpo") - margin(w, "pref_ft"), "greater") for w in worlds),
        "As a theorem it is false, see lemma 6.2.",
    )


def chosen_likelihood() -> Claim:
    """B4."""
    parts = []
    for world in ("R1", "R1-tokens"):
        one, many = (
            read(Cell.of(world, "ipo", prompts=n, minibatch=0 if n == 1 else 10), "gain_chosen") for n in (1, 30)
        )
        parts += [
            Part(f"{world}: with one prompt the chosen become likelier", one, "greater"),
            Part(f"{world}: with 30 prompts they become less likely", many, "less"),
            Part(f"{world}: the more prompts, the less", one - many, "greater"),
        ]
    return Claim(
        "B4",
        "A negative gradient makes the chosen likelier where there are few prompts, and less likely where many.",
        f"{SOURCE}, section 5.2.2, figure 16",
        tuple(parts),
        "IPO, as in the figure; the mean over all pairs, so a response may be chosen in one and rejected in another.",
    )


def together() -> Claim:
    """C1."""
    parts: list[Part] = []
    for world in ("R1", "R1-tokens", "min_length", "skew_length"):
        ours = _area(world, "online_dpo")
        parts += [
            Part(f"{world}: better than offline DPO", ours - _area(world, "dpo"), "greater"),
            *(
                Part(f"{world}: no worse than {NAMES[m]} by {TIE}", ours - _area(world, m), "greater", -TIE)
                for m in ("ppo", "best_of_n", "rwr")
            ),
        ]
    parts += [
        Part(
            f"mode_length: within {TIE} of {NAMES[m]}",
            _area("mode_length", "online_dpo") - _area("mode_length", m),
            "equal",
            TIE,
        )
        for m in ("ppo", "best_of_n", "dpo")
    ]
    return Claim(
        "C1",
        "On-policy sampling with a contrastive objective is best or tied where the peak is far, and tied where near.",
        f"{SOURCE}, section 5.3",
        tuple(parts),
        "The mean reward over the steps. No worse: above minus the margin.",
    )


def unstudied() -> Claim:
    """The fourth cell of the paper's two conditions."""
    on_policy = ("best_of_n", "ppo", "online_dpo")
    return Claim(
        "peak near, coverage low",
        "Where the data do not cover the reference, a reward model learnt from them misleads what samples on policy: "
        "offline methods do better, though the peak is near.",
        "ours: the cell of table 2 that the paper leaves out",
        (
            *(
                Part(f"offline DPO beats {NAMES[m]}", _end("mode_skew", "dpo") - _end("mode_skew", m), "greater")
                for m in on_policy
            ),
            *(Part(f"{NAMES[m]} ends below its start", _change("mode_skew", m), "less") for m in on_policy),
        ),
        "All data are shorter than the peak, so the proxy learns that longer is better and cannot learn where it ends.",
    )


def _end(world: str, method: str, **dials: Dial) -> Contrast:
    return read(Cell.of(world, method, **dials), "reward")


def _area(world: str, method: str, **dials: Dial) -> Contrast:
    return read(Cell.of(world, method, **dials), "reward", "area")


def _change(world: str, method: str) -> Contrast:
    ends: tuple[At, At] = ("end", "start")
    last, first = (read(Cell.of(world, method), "reward", at) for at in ends)
    return last - first


def _gap(world: str, method: str) -> Contrast:
    """What the default round has over one eight times as large."""
    kind: Literal["length", "bandit"] = "length" if world in GEOMETRY else "bandit"
    return _area(world, method) - _area(world, method, **STALE[kind])


def _passes(times: int) -> dict[str, Dial]:
    return {"passes": times} if times > 1 else {}
