"""Which pair to have labelled next, and the plan that says so."""

import dataclasses

import pytest
import torch

from modeseek.advise.acquire import STRATEGIES, buy, informative, labelled, tilted
from modeseek.advise.advice import advise
from modeseek.advise.cost import NOTHING
from modeseek.advise.gather import ignorance, plan_for
from modeseek.advise.generate import generate
from modeseek.advise.prior import Prior
from modeseek.advise.ranges import FIRST
from modeseek.advise.worlds import Worlds


def worlds(n: int, contexts: int = 1) -> Worlds:
    ranges = dataclasses.replace(
        FIRST, contexts=contexts, actions=15, width=3, pairs=(80, 80), given=0.0, misspecification=(0.0, 0.2)
    )
    return generate(n, ranges, 8)


def test_a_label_tells_most_of_an_even_gap():
    gap, known = torch.tensor([[0.0, 2.0, 6.0]]).double(), torch.zeros(1, 3).double()
    told = informative(gap, known, 0.0)[0]
    assert float(told[0]) == pytest.approx(0.25)  # p (1 - p)
    assert told[0] > told[1] > told[2]
    assert float(informative(gap, known, 0.25)[0, 0]) == pytest.approx((0.5 * 0.25) ** 2 / 0.25)


def test_a_tilt_is_the_best_policy_of_each_prompt():
    base = torch.tensor([0.25, 0.25, 0.1, 0.4]).double().log()
    found = tilted(base, torch.tensor([0.0, 1.0, 0.0, 0.0]).double(), 2)
    e = torch.e
    assert found.tolist() == pytest.approx([0.5 / (1 + e), 0.5 * e / (1 + e), 0.1, 0.4])


def test_labels_prefer_the_better_as_often_as_bradley_terry_says():
    one = worlds(1)
    pair = torch.tensor([[[0, 1]] * 4000])
    told = labelled(one, pair, 0.1, torch.Generator().manual_seed(0))
    p = float((one.reward[0, 0] - one.reward[0, 1]).sigmoid())
    assert float((told[0, :, 0] == 0).double().mean()) == pytest.approx(0.9 * p + 0.1 * (1 - p), abs=0.03)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_names_pairs_of_one_prompt_and_learns(name):
    some = worlds(6, contexts=2)
    (first, before), *_, (last, after) = buy(some, STRATEGIES[name], labels=30, batch=15, first=10)
    assert (first, last) == (0, 30)
    assert (after <= 1 + 1e-9).all()  # no policy beats the best
    assert float(after.mean()) > float(before.mean()) - 0.15


def test_the_variance_that_matters_is_lowered_faster_than_at_random():
    some = worlds(16)
    share = {name: list(buy(some, STRATEGIES[name], labels=40))[-1][1].mean() for name in ("v_optimal", "random")}
    assert share["v_optimal"] > share["random"] - 0.02


def test_a_plan_has_the_keys_that_collect_reads_and_asks_people_where_no_label_is_named():
    problem, prior = worlds(1, contexts=3), Prior.load()
    advice = advise(problem, prior, lambda method: NOTHING, rewarded=False, steps=5)
    found = plan_for(problem, advice, prior, model="m", label="")
    assert found.plan["label"] == "people" and found.plan["policies"] == ["m"]
    from modeseek.collect.plan import from_dict

    from_dict(found.plan)
    assert 0 < found.per_label < 1 and 100 <= found.plan["prompts"] <= 1000


def test_what_more_pairs_have_taught_is_no_longer_unknown():
    few, prior = worlds(1), Prior.load()
    lost, _ = ignorance(dataclasses.replace(few, count=torch.tensor([5])), prior)
    left, _ = ignorance(few, prior)
    assert left < lost
