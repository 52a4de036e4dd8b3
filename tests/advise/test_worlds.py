"""The worlds, and the methods that are trained in all of them at once."""

import dataclasses
import math

import torch

from modeseek.advise.generate import generate
from modeseek.advise.methods import ARMS, METHODS, draw, train
from modeseek.advise.ranges import FIRST, SECOND, broad
from modeseek.advise.worlds import Worlds, fit_linear

SMALL = dataclasses.replace(FIRST, actions=20, width=4, pairs=(30, 60))


def clean(**changes) -> Worlds:
    """Worlds that are easy: the reward is linear, the labels are right, the pairs cover everything."""
    easy = dataclasses.replace(
        SMALL, misspecification=(0.0, 0.0), flips=(0.0, 0.0), narrow=0.0, hidden=(0.0, 0.0), pairs=(400, 400), **changes
    )
    return generate(12, easy, 3)


def test_the_same_seed_gives_the_same_worlds():
    a, b, c = generate(3, SMALL, 1), generate(3, SMALL, 1), generate(3, SMALL, 2)
    assert torch.equal(a.reward, b.reward) and torch.equal(a.pairs, b.pairs)
    assert not torch.equal(a.reward, c.reward)


def test_stacks_of_broad_worlds_are_unlike_and_of_one_size():
    drawn = [broad(seed) for seed in range(12)]
    assert all(ranges.contexts * ranges.actions == 128 for ranges in drawn)
    assert len({(r.contexts, r.width, r.heavy_features) for r in drawn}) > 6
    assert broad(3) == broad(3)


def test_a_reward_that_bends_is_told_by_no_line():
    """The product of two directions is uncorrelated with each, so a line tells only the share that does not bend."""
    straight = dataclasses.replace(FIRST, misspecification=(0.0, 0.0), width=4)
    for bend in (0.0, 1.0):
        worlds = generate(6, dataclasses.replace(straight, curved=(bend, bend)), 2)
        x = worlds.features.flatten(1, 2)
        x = torch.cat([x, torch.ones(*x.shape[:2], 1, dtype=x.dtype)], -1)
        line = x @ torch.linalg.lstsq(x, worlds.reward[..., None]).solution
        told = 1 - (worlds.reward - line[..., 0]).var(1) / worlds.reward.var(1)
        assert (told > 0.999).all() if bend == 0 else (told < 0.4).all()


def test_masses_sum_to_one_and_moves_to_zero_with_several_prompts():
    worlds = generate(3, dataclasses.replace(SECOND, contexts=3, actions=7), 1)
    theta = torch.randn(3, worlds.features.shape[-1], dtype=torch.float64)
    assert torch.allclose(worlds.mass(theta).sum(1), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(worlds.moved(theta[:, None]).sum(-1), torch.zeros(3, 1, dtype=torch.float64), atol=1e-12)
    pairs = worlds.pairs // 7
    assert torch.equal(pairs[..., 0], pairs[..., 1])  # both of a pair answer the same prompt


def test_the_kl_is_that_of_two_responses_by_hand():
    worlds = dataclasses.replace(
        generate(1, dataclasses.replace(SMALL, actions=2, width=1), 0),
        features=torch.tensor([[[[1.0], [0.0]]]], dtype=torch.float64),
        base=torch.zeros(1, 1, 2, dtype=torch.float64),
    )
    theta = torch.tensor([[math.log(3.0)]], dtype=torch.float64)
    # pi = (3/4, 1/4), reference (1/2, 1/2): KL = 3/4 ln 3/2 + 1/4 ln 1/2
    assert math.isclose(float(worlds.kl(theta)), 0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel_tol=1e-12)


def test_rows_beyond_the_count_repeat_earlier_pairs():
    worlds = generate(4, SMALL, 5)
    for w in range(4):
        n = int(worlds.count[w])
        assert torch.equal(worlds.pairs[w, n:], worlds.pairs[w, : 60 - n])


def test_a_linear_fit_finds_a_linear_reward():
    worlds = clean()
    found = fit_linear(worlds.features.flatten(1, 2), worlds.pairs, worlds.count)
    for w in range(len(worlds)):
        assert float(torch.corrcoef(torch.stack([found[w], worlds.reward[w]]))[0, 1]) > 0.9


def test_draws_have_the_frequencies_of_the_policy():
    table = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], dtype=torch.float64).log()
    drawn = draw(table, 1, 400, torch.Generator().manual_seed(0)).flatten(1)
    shares = torch.stack([torch.bincount(row, minlength=3) / drawn.shape[1] for row in drawn])
    assert torch.allclose(shares.double(), table.exp(), atol=0.02)  # 12,800 draws: an sd of 0.0044 at most


def test_draws_stay_within_their_prompt():
    table = torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=torch.float64).log()  # prompt 0: place 0; prompt 1: place 3
    drawn = draw(table, 2, 5, torch.Generator().manual_seed(0))
    assert set(drawn.unique().tolist()) == {0, 3}
    assert bool((drawn == drawn[..., :1]).all())


def test_every_method_learns_where_everything_is_easy():
    worlds = clean(given=1.0, quality=(1.0, 1.0), skew=(0.9, 0.9), others=(1.0, 1.0), distance=(2.0, 2.0))
    for method in METHODS:
        [theta] = train(worlds, method, method.dials[1], steps=60)
        gain = (worlds.moved(theta[:, None])[:, 0] * worlds.reward).sum(1)
        assert float(gain.mean()) > 0.05, method.name


def test_a_bolder_dial_goes_further():
    worlds = clean(given=1.0, quality=(1.0, 1.0))
    for method in METHODS:
        if method.name in ("sft", "best_of_n"):  # their dial is how long
            weights = train(worlds, method, 0.0, steps=60, doses=(0.1, 1.0))
        else:
            weights = [train(worlds, method, dial, steps=60)[0] for dial in (method.dials[0], method.dials[-1])]
        gentle, bold = (float(worlds.kl(theta).mean()) for theta in weights)
        assert gentle < bold, method.name


def test_doing_nothing_is_the_first_arm():
    assert ARMS[0].name == "nothing" and len(ARMS) == 1 + sum(len(m.dials) for m in METHODS)
