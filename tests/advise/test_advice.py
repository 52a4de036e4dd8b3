"""The prior as shipped, the list, its page, and what they cost."""

import dataclasses
import math
import re
from dataclasses import asdict

import pytest
import torch

from modeseek import config
from modeseek.advise import fit_prior, regret
from modeseek.advise.advice import advise, best_chance
from modeseek.advise.candidates import Setup, tree_of
from modeseek.advise.cost import Speed, cost
from modeseek.advise.diagnose import NAMES, _best_of, _rank, diagnoses
from modeseek.advise.generate import generate
from modeseek.advise.measure import stacks
from modeseek.advise.methods import ARMS, METHODS
from modeseek.advise.prior import FURTHEST, Prior, safe, standardised
from modeseek.advise.ranges import FIRST
from modeseek.commands.advise import main, parse_budget
from modeseek.report.advice import headline, render

SPEED = Speed(sampled=100.0, scored=1000.0)
SMALL = dataclasses.replace(FIRST, actions=16, width=4, pairs=(40, 80))


def price(method):
    return cost(method, steps=10, prompts=4, generations=2, tokens=50.0, speed=SPEED)


@pytest.fixture(scope="module")
def advised():
    return advise(generate(1, SMALL, 4), Prior.load(), price, rewarded=True, steps=20)


def test_the_shipped_prior_is_of_these_arms_and_diagnoses():
    prior = Prior.load()
    assert prior.made["arms"] == [arm.name for arm in ARMS]
    assert len(prior.centre) == len(NAMES) and len(prior.ridge) == len(NAMES) + 1
    for by in (prior.trained, prior.rehearsed):
        assert len(by.log_weight) == len(prior.settings)
        assert 0.5 < by.slope < 2 and 0.5 < by.widen < 3 and len(by.by_diagnosis) == len(NAMES)


def test_a_prior_survives_its_file(tmp_path):
    prior = Prior.load()
    prior.save(tmp_path / "prior.json")
    assert Prior.load(tmp_path / "prior.json") == prior


def test_worlds_like_those_it_learnt_from_are_inside_and_absurd_ones_outside():
    prior = Prior.load()
    found = diagnoses(generate(30, FIRST, 77))
    assert prior.outside(found).double().mean() < 0.15
    absurd = found.clone()
    absurd[:, NAMES.index("leverage of own pairs, log")] += 40
    assert prior.outside(absurd).all()
    assert prior.furthest(absurd[0]) == "leverage of own pairs, log"


def test_a_safe_choice_is_the_best_of_those_that_surely_gain():
    mean = torch.tensor([[0.0, 3.0, 1.0], [0.0, 1.0, -1.0], [0.0, 2.0, 1.0]]).double()
    sd = torch.tensor([[0.0, 3.0, 0.5], [0.0, 1.0, 0.1], [0.0, 1.0, 0.1]]).double()
    # 3 - 1.28 * 3 < 0 but 1 - .64 > 0; 1 - 1.28 < 0, so nothing; 2 - 1.28 > 0
    assert safe(mean, sd).tolist() == [2, 0, 1]


def test_widths_are_those_that_hold_eighty_percent():
    """Distances are e^(x / 2) times what is even on (0, 1): four fifths lie within .8 e^(x / 2)."""
    rng = torch.Generator().manual_seed(0)
    usual = torch.randn(800, 2, generator=rng, dtype=torch.float64)
    off = (usual[:, :1] / 2).exp() * torch.rand(800, 5, generator=rng, dtype=torch.float64)
    slopes, level = fit_prior.widths(off, usual)
    assert slopes.tolist() == pytest.approx([0.5, 0.0], abs=0.06)
    assert level == pytest.approx(math.log(0.8), abs=0.05)


def test_a_diagnosis_widens_intervals_no_further_than_the_worlds_went():
    prior = Prior.load()
    at = torch.tensor([prior.centre, prior.centre, prior.centre], dtype=torch.float64)
    at[1, 0] += 1000.0 * prior.spread[0]
    at[2, 0] += FURTHEST * prior.spread[0]
    found = standardised(at, torch.tensor(prior.centre), torch.tensor(prior.spread))
    assert found[0].abs().max() < 1e-4 and torch.allclose(found[1], found[2])


def test_ranks_and_best_of_n_by_hand():
    p = torch.tensor([[0.5, 0.2, 0.3]], dtype=torch.float64)
    assert _rank(p)[0].tolist() == pytest.approx([0.75, 0.1, 0.35])  # what is less likely, and half of itself
    score = torch.tensor([[0.0, 2.0, 1.0]], dtype=torch.float64)
    # best of two: 0 with .25, 1 with .8^2 - .25, 2 with 1 - .64
    assert float(_best_of(p, score, 2)) == pytest.approx(0.39 + 2 * 0.36)


def test_costs_by_hand():
    methods = {m.name: m for m in METHODS}
    dpo = cost(methods["dpo"], steps=10, prompts=4, generations=2, tokens=50.0, speed=SPEED)
    # 40 prompts, 2 responses trained and 2 referred, 50 tokens: 8,000 forward, 4,000 back at twice a forward's time
    assert (dpo.forward, dpo.backward, dpo.samples, dpo.scores) == (8000, 4000, 0, 0)
    assert dpo.hours == pytest.approx((8000 + 2 * 4000) / 1000 / 3600)
    best = cost(methods["best_of_n"], steps=10, prompts=4, generations=2, tokens=50.0, speed=SPEED)
    assert (best.samples, best.scores, best.backward) == (80, 80, 2000)
    assert best.hours == pytest.approx(((2000 + 4000) / 1000 + 80 * 50 / 100) / 3600)


def test_the_list_names_every_method_once_with_its_interval(advised):
    names = [o.name for o in advised.options]
    assert sorted(names) == sorted(["nothing", *(m.name for m in METHODS)])
    for o in advised.options:
        assert o.low <= o.gain <= o.high
    assert sum(o.best for o in advised.options) == pytest.approx(1.0)


def test_without_a_reward_no_method_that_scores_is_listed():
    found = advise(generate(1, SMALL, 4), Prior.load(), price, rewarded=False, steps=20)
    assert {o.name for o in found.options} == {"nothing", "sft", "dpo", "ipo", "hypo"}


def test_labels_that_are_noise_are_called_so():
    worlds = generate(1, dataclasses.replace(SMALL, pairs=(600, 600), flips=(0.5, 0.5), given=0.0), 9)
    found = advise(worlds, Prior.load(), price, rewarded=False, steps=20)
    assert found.verdict in ("fix the data first", "do nothing")


def test_the_chance_of_being_best_follows_the_gap():
    mean = torch.tensor([0.0, 1.0], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    # P(N(1, 2) > 0) = Phi(1 / sqrt 2) = 0.760
    assert float(best_chance(mean, eye)[1]) == pytest.approx(0.760, abs=0.03)
    together = torch.full((2, 2), 1.0, dtype=torch.float64)
    assert float(best_chance(mean, together)[1]) == 1.0  # rivals that rise and fall together are told apart


@pytest.mark.parametrize("arm", [a for a in ARMS if a.method], ids=lambda a: a.name)
def test_every_arm_is_a_run_that_train_accepts(arm, tmp_path):
    setup = Setup(model="m", data="d", reward="length")
    tree = tree_of(arm, setup, steps=100, output_dir=tmp_path)
    run = config.from_dict(tree)
    if arm.method.dial == "max_steps":
        assert run.max_steps == round(100 * arm.dial)
    elif arm.method.dial.startswith("objective."):
        assert getattr(run.objective, arm.method.dial.removeprefix("objective.")) == arm.dial
    else:
        assert {"beta": arm.dial} in [s.options for s in run.stages]


def test_a_tiny_table_of_regret_has_every_way_of_choosing():
    ranges = dataclasses.replace(FIRST, actions=12, width=3, pairs=(30, 40))
    tally = regret.judge_all(stacks(6, ranges, 1, steps=15), Prior.load(), looks=(5, 10))
    lines = {line.way: line for line in regret.lines(tally)}
    assert {"prior, trained", "prior, rehearsed", "race, 5", "prior + race, 10", "halving, 5, whole"} <= lines.keys()
    assert lines["always nothing"].regret == pytest.approx(1.0)
    for line in lines.values():
        assert line.regret >= -1e-9 and line.low <= line.regret + 1e-9 and line.n == 6


def test_regret_by_hand():
    best, gain = torch.tensor([2.0, 4.0]).double(), torch.tensor([1.0, -1.0]).double()
    line = regret.line("x", gain, best)
    assert line.regret == pytest.approx(1.0) and line.lost == 1  # 1 - 0 / 3


def test_a_page_escapes_what_others_wrote_and_loads_nothing(advised):
    tree = {"model": "<script>alert(1)</script>", "data": "d & e", "reward": "", "steps": 5, **asdict(advised)}
    tree["best_method"] = None
    page = render(tree)
    assert "<script" not in page and "&lt;script" in page and "d &amp; e" in page
    assert not re.search(r'(src|href)="?https?:', page)
    assert headline(tree) in page


def test_a_race_goes_before_what_was_expected(advised):
    tree = {**asdict(advised), "best_method": "hypo 0.03"}
    assert headline(tree) == "Train with HyPO (0.03)"
    assert headline({**tree, "best_method": "nothing"}) == "Leave the model as it is"


def test_budgets_are_read_and_wrong_ones_refused():
    assert parse_budget("labels=50") == {"labels": 50.0, "hours": 2.0}
    for words in ("label=5", "labels=many", "hours=-1"):
        with pytest.raises(ValueError, match="budget"):
            parse_budget(words)


def test_options_that_nothing_would_read_are_refused():
    with pytest.raises(ValueError, match="--race"):
        main(["m", "d", "--budget", "labels=5"])
    with pytest.raises(ValueError, match="judge"):
        main(["m", "d", "--race"])
