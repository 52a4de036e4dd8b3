"""The race on a language model: candidates trained on a slice, judged on held-out prompts, the hopeless dropped early.

A rung trains the candidates that are left, lets each answer the held-out prompts, and spends its labels where the two
likeliest winners differ. A label is a reading of one answer against the reference's to the same prompt, so that what a
prompt is worth cancels. The belief starts from the pairs. What is spent stands in `book`: nothing is paid twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from modeseek import config
from modeseek.advise import belief
from modeseek.advise.advice import best_chance
from modeseek.advise.belief import Belief, linear_kernel, tangents
from modeseek.advise.book import Hours, Labels
from modeseek.advise.candidates import Setup, tree_of, write
from modeseek.advise.diagnose import diagnoses
from modeseek.advise.lm import spanned
from modeseek.advise.methods import ARMS, Arm
from modeseek.advise.prior import Prior
from modeseek.advise.problem import Problem
from modeseek.advise.race import contested
from modeseek.batch import Batch
from modeseek.build import load_policy
from modeseek.data.files import split_holdout
from modeseek.data.groups import Groups
from modeseek.data.template import Template
from modeseek.data.tokenise import tokenise_prompts
from modeseek.evaluate import answer
from modeseek.ops import seq
from modeseek.policies.base import Policy
from modeseek.policies.features import see
from modeseek.rewards import Reward
from modeseek.runs import train

HOPELESS = 0.05  # chance of being the best below which a candidate is dropped
SURE = 0.95
SCALES, NOISES = (0.25, 0.5, 1.0, 2.0), (0.3, 1.0, 2.5)  # of readings, in spreads of theirs and in log-odds


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A candidate after a rung. Gains are in the judge's unit, over the model as it is; intervals hold 80%."""

    arm: Arm
    steps: int
    gain: float
    low: float
    high: float
    best: float  # chance that it is the best of those that ran, doing nothing included
    kl: float  # nats a response, on its own answers
    answers: int
    dropped: bool = False


@dataclass(frozen=True, kw_only=True)
class Rung:
    """What one rung found, the best first."""

    steps: int
    labels: int
    hours: float
    standings: tuple[Standing, ...]


@dataclass
class Pool:
    """The answers that can be judged, the reference's first in each prompt's group, and what is known of them."""

    batch: Batch  # [H, (1 + C) k]
    moved: Float[Tensor, "1 C M"]
    kernel: Float[Tensor, "1 M M"]
    kl: list[float]
    each: int  # answers of a policy to a prompt
    told: int  # places before the pool's that belong to the pairs
    readings: list[tuple[int, float]] = field(default_factory=list)  # place in the pool, reading against the reference

    def place(self, whose: int, prompt: int, number: int) -> int:
        """Of an answer: whose it is (0: the reference), to which prompt, and which of the several."""
        return prompt * self.batch.response.shape[1] + whose * self.each + number

    def where(self, place: int) -> tuple[int, int, int]:
        """The other way round."""
        prompt, k = divmod(place, self.batch.response.shape[1])
        return k // self.each, prompt, k % self.each

    def offers(self) -> Float[Tensor, "1 m M"]:
        """What a reading of each answer says: its worth less that of the reference's that it is read against."""
        M = self.moved.shape[2]
        found = torch.zeros(1, M - self.told, M, dtype=torch.float64)
        for place in range(M - self.told):
            found[0, place, self.told + place] += 1
            found[0, place, self.told + _reference(self, place)] -= 1
        return found


def run_race(
    problem: Problem,
    arms: Sequence[Arm],
    setup: Setup,
    judge: Reward,
    prior: Prior,
    folder: Path,
    *,
    steps: int,
    labels: int,
    hours: float,
    prompts: int = 32,
    each: int = 2,
    rungs: int = 2,
    tell: Callable[[str], object] = print,
) -> list[Rung]:
    """Race the arms; every later rung trains three times as long. Ends early when the winner is clear or time is up."""
    held = held_out(problem, setup, prompts)
    left, found, clock = list(arms), list[Rung](), Hours(folder / "hours.jsonl")
    for number in range(rungs):
        now, spent = steps * 3**number, sum(rung.hours for rung in found)
        begun = (folder / f"rung-{number}").exists()
        if found and not begun and spent + 3 * found[-1].hours * len(left) / len(found[-1].standings) > hours:
            tell(f"the hours are spent: a rung of {now} steps would not fit into what is left")
            break
        home = str(next(problem.policy.parameters()).device)
        made = list[Policy | None]()
        for arm in left:
            made.append(trained(arm, setup, folder, number, now, home, tell))
            clock.tick(number)
        left = [arm for arm, policy in zip(left, made, strict=True) if policy is not None]
        if not left:
            raise ValueError("candidates: none of them could be trained; the lines above say why")
        policies = [policy for policy in made if policy is not None]
        pool = gather(problem, left, policies, held, each, setup.seed + number)
        clock.tick(number)
        share = (labels - sum(r.labels for r in found)) // (rungs - number)
        book = Labels(folder / f"rung-{number}" / "labels.jsonl")
        bought, standings = judged(problem, pool, left, judge, prior, share, book, now, setup.seed)
        clock.tick(number)
        found.append(Rung(steps=now, labels=bought, hours=clock.of(number), standings=standings))
        for one in standings:
            word = "dropped" if one.dropped else "stays"
            tell(f"{one.arm.name}: gain {one.gain:.3g} [{one.low:.3g}, {one.high:.3g}], best {one.best:.0%}, {word}")
        left = [one.arm for one in standings if not one.dropped and one.arm.method is not None]
        if len(left) < 2 or standings[0].best > SURE:
            break
    return found


def held_out(problem: Problem, setup: Setup, prompts: int) -> Groups:
    """Prompts that no candidate trains on: the split that the runs make."""
    _, held = split_holdout(problem.records, setup.held_out, setup.seed)
    return tokenise_prompts(
        held[:prompts],
        problem.template,
        max_length=setup.max_length,
        max_completion_length=setup.max_completion_length,
    )


def trained(
    arm: Arm, setup: Setup, folder: Path, number: int, steps: int, device: str, tell: Callable[[str], object]
) -> Policy | None:
    """A candidate's policy; one that has been trained is not trained again, one that was cut off goes on.

    One that cannot go on (no longer finite, or nothing left to learn from) stands with what an earlier rung made of it;
    without one there is none.
    """
    here = folder / f"rung-{number}" / slug(arm)
    stopped = here.parent / f"{here.name}.stopped"
    if not (here / "model").is_dir() and not stopped.exists():
        tell(f"training {arm.name}, {steps} steps")
        tree = tree_of(arm, setup, steps=steps, output_dir=here)
        tree |= {"eval_steps": 0, "eval_prompts": 0, "save_steps": 0, "schedule": "constant"}
        path = write(tree, here.parent / f"{here.name}.yaml")
        try:
            train(config.load(str(path)), resume=(here / "rows.jsonl").exists())
        except RuntimeError as error:  # the loop's own: NotFinite, or a hundred minibatches without a lesson
            stopped.write_text(str(error), encoding="utf-8")
    if stopped.exists():
        tell(f"{arm.name} stopped: {stopped.read_text(encoding='utf-8')}")
    found = [folder / f"rung-{n}" / slug(arm) / "model" for n in range(number, -1, -1)]
    model = next((path for path in found if path.is_dir()), None)
    if model is None:
        return None
    template, most = Template.load(setup.model), setup.max_completion_length
    return load_policy(str(model), template, max_new=most, device=device)


@torch.no_grad()
def gather(
    problem: Problem, arms: Sequence[Arm], policies: Sequence[Policy], held: Groups, each: int, seed: int
) -> Pool:
    """Let the reference and every candidate answer; say how likely every response is under each of them. An arm's
    answers are the same whoever else runs."""
    nothing = lambda batch: torch.zeros(batch.fresh.shape)
    own, kl = list[Batch](), list[float]()
    for arm, policy in zip([Arm(), *arms], [problem.policy, *policies], strict=True):
        [batch] = answer(
            policy,
            held,
            nothing,
            reference=problem.policy,
            samples_per_prompt=each,
            batch_size=len(held),
            seed=seed + 1000 * ARMS.index(arm),
        )
        kl.append(float(seq(batch["old_logp"] - batch["ref_logp"], batch.mask).mean()))
        own.append(batch)
    pool = own[0]
    for batch in own[1:]:
        pool = pool.beside(batch)
    told = problem.pairs.prompts(torch.arange(len(problem.pairs)))
    home = next(problem.policy.parameters()).device
    parts = [told.to(home), pool.to(home)]
    seen = spanned(*(see(problem.policy, part).features.double().cpu().numpy() for part in parts))[None]  # [1, M, e]
    at = lambda policy: torch.cat([seq(policy.logp(part), part.mask).flatten() for part in parts]).double().cpu()
    still = at(problem.policy)
    ratios = torch.stack([at(policy) - still for policy in policies])[None]  # [1, C, M]
    H, C, M = len(held), len(policies), len(still)
    moved = torch.zeros(1, C + 1, M, dtype=torch.float64)
    places = torch.arange(2 * len(told), M).view(H, C + 1, each)
    for c in range(1, C + 1):
        moved[0, c, places[:, c].flatten()] = 1 / (H * each)
        moved[0, c, places[:, 0].flatten()] = -1 / (H * each)
    return Pool(pool, moved, linear_kernel(seen, tangents(ratios)), kl, each, 2 * len(told))


def judged(
    problem: Problem,
    pool: Pool,
    arms: Sequence[Arm],
    judge: Reward,
    prior: Prior,
    labels: int,
    book: Labels,
    steps: int,
    seed: int,
) -> tuple[int, tuple[Standing, ...]]:
    """Spend the labels, a few at a time; how many have been bought, and where everyone stands."""
    start = _from_pairs(problem, pool, prior)
    names = [Arm().name, *(arm.name for arm in arms)]
    kept, bought = book.kept(names)
    pool.readings = [(pool.place(*where), reading) for *where, reading in kept]
    rng = torch.Generator().manual_seed(seed + len(pool.readings))
    offers = pool.offers()
    held, unit, noise = start, 1.0, NOISES[1]
    while True:
        if pool.readings:
            held, unit, noise = heard(start, pool)
        mean, covariance = (x[0] for x in held.of(pool.moved))
        chance = best_chance(mean, covariance)
        unread = torch.ones(1, offers.shape[1], dtype=torch.bool)
        unread[0, [place for place, _ in pool.readings]] = False
        more = min(5, labels - bought, int(unread.sum()))
        if more < 1 or float(chance.max()) > SURE and len(pool.readings) >= 4 * len(arms):
            break
        for place in contested(held, pool.moved, noise, more, rng, offers=offers, unread=unread)[0].tolist():
            reading = against_reference(pool, judge, place)
            pool.readings.append((place, reading))
            whose, prompt, nth = pool.where(place)
            book.add(names[whose], prompt, nth, reading)
            bought += 1
    return bought, _standings(pool, arms, mean, covariance, chance, unit, steps)


def _from_pairs(problem: Problem, pool: Pool, prior: Prior) -> Belief:
    """What the data's pairs say of every response, before the judge has read one."""
    first = torch.arange(0, pool.told, 2)
    pairs = torch.stack([first, first + 1], 1)[None]
    M = pool.moved.shape[2]
    unknown = torch.zeros(1, M, dtype=torch.float64)  # the judge is asked; what a reward says of itself is no evidence
    fits = belief.fit(pool.kernel, pairs, torch.tensor([len(first)]), unknown, torch.tensor([False]), prior.settings)
    return prior.belief(fits, diagnoses(problem.twin))


def _standings(
    pool: Pool,
    arms: Sequence[Arm],
    mean: Float[Tensor, " C"],
    covariance: Float[Tensor, "C C"],
    chance: Float[Tensor, " C"],
    unit: float,
    steps: int,
) -> tuple[Standing, ...]:
    """Everyone, the likeliest best first, doing nothing among them; the hopeless and the worse half are dropped.

    `mean` and `covariance` are of gains in log-odds, doing nothing first; `unit` is what a log-odds is to the judge.
    """
    reach = 1.2815515655446004 * covariance.diagonal().clamp(min=0).sqrt()
    standings = [
        Standing(
            arm=arm,
            steps=steps,
            gain=unit * float(mean[c]),
            low=unit * float(mean[c] - reach[c]),
            high=unit * float(mean[c] + reach[c]),
            best=float(chance[c]),
            kl=pool.kl[c],
            answers=len(pool.batch) * pool.each,
        )
        for c, arm in enumerate([Arm(), *arms])
    ]
    standings.sort(key=lambda s: -s.best)
    half = max(2, (len(arms) + 1) // 2)
    dropped = lambda i, s: s.arm.method is not None and (s.best < HOPELESS or i >= half)
    return tuple(Standing(**{**vars(s), "dropped": dropped(i, s)}) for i, s in enumerate(standings))


def winner(standings: Sequence[Standing]) -> Standing:
    """The candidate with the largest gain of those whose 80% interval is above zero; else doing nothing. In worlds that
    costs little and takes most of the choices that would have lost (`benchmarks/advice_regret.py`)."""
    nothing = next(s for s in standings if s.arm.method is None)
    return max([nothing, *(s for s in standings if s.low > 0)], key=lambda s: s.gain)


def heard(start: Belief, pool: Pool) -> tuple[Belief, float, float]:
    """The belief after all readings, how much of the judge's unit a log-odds is, and the sd of a reading's noise in
    log-odds: the likeliest unit and noise of a few, for a judge says neither."""
    weights = pool.offers()[:, [place for place, _ in pool.readings]]
    reading = torch.tensor([[r for _, r in pool.readings]], dtype=torch.float64)
    spread = float(reading.square().mean().sqrt()) or 1.0
    mean, covariance = start.of(weights)

    def likely(at: tuple[float, float]) -> float:
        unit, noise = spread * at[0], at[1]
        among = covariance[0] + noise**2 * torch.eye(len(pool.readings), dtype=mean.dtype)
        gaussian = torch.distributions.MultivariateNormal(unit * mean[0], unit**2 * among)
        return float(gaussian.log_prob(reading[0]))

    scale, noise = max(itertools.product(SCALES, NOISES), key=likely)
    unit = spread * scale
    return start.heard(weights, reading / unit, noise), unit, noise


def against_reference(pool: Pool, judge: Reward, place: int) -> float:
    """What the judge says of an answer, less what it says of the reference's to the same prompt."""
    width = pool.batch.response.shape[1]
    prompt = place // width
    group = torch.tensor([[place % width, _reference(pool, place) % width]])
    score = judge(pool.batch.prompts(torch.tensor([prompt])).take(group))
    return float(score[0, 0] - score[0, 1])


def _reference(pool: Pool, place: int) -> int:
    """The reference's answer that an answer is read against; its own are read against each other."""
    width = pool.batch.response.shape[1]
    k = place % width
    return place - k + (k % pool.each if k >= pool.each else (k + 1) % pool.each)


def slug(arm: Arm) -> str:
    """Its name as a folder."""
    return arm.name.replace(" ", "-")
