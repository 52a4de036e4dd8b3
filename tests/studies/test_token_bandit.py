import itertools

import pytest
import torch

from modeseek.batch import Batch
from modeseek.data import worlds
from modeseek.studies.base import World
from modeseek.studies.worlds.gpts import Gpts
from modeseek.studies.worlds.methods import named
from modeseek.studies.worlds.table import streams, uniform
from modeseek.studies.worlds.token_bandit import TOKENS, TokenBanditWorld, parts_of

TINY = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()


def tiny(seeds=(1, 2), length=3) -> Gpts:
    """Far from its start, so that places and prefixes matter."""
    model = Gpts(seeds, TINY, length=length, width=8, dtype=torch.float64)
    with torch.no_grad():
        model.head *= 40
    return model


def test_log_probabilities_of_all_responses_sum_to_one():
    every = torch.tensor(list(itertools.product(range(3), repeat=3)))  # 27 responses
    model = tiny()
    prompt = torch.tensor([[0], [2]])
    response = every.expand(2, 27, 3)
    batch = Batch.own(prompt, torch.ones_like(prompt).bool(), response, torch.ones(2, 27, 3, dtype=torch.bool))
    total = model.logp(batch).sum(-1).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_what_is_sampled_is_what_is_scored():
    model, rngs = tiny(), streams([1, 2], "x")
    prompt = torch.tensor([[0], [1], [2], [0]])
    batch = model.sample(prompt, uniform(rngs, 2, 5, 3).flatten(0, 1))
    torch.testing.assert_close(model.logp(batch), batch["old_logp"], rtol=0, atol=1e-12)


def test_samples_have_the_frequencies_of_the_policy():
    model = tiny(seeds=(1,), length=2)
    prompt = torch.zeros(1, 1, dtype=torch.long)
    drawn = model.sample(prompt, uniform(streams([5], "x"), 1, 40_000, 2)[0])
    for a, b in itertools.product(range(3), repeat=2):
        response = torch.tensor([[[a, b]]])
        one = Batch.own(prompt, torch.ones(1, 1).bool(), response, torch.ones(1, 1, 2).bool())
        share = (drawn.response == response).all(-1).double().mean()
        # five standard errors of a share of 1/2 among 40 000 are 0.0125
        assert float(share - model.logp(one).detach().sum().exp()) == pytest.approx(0, abs=0.0125)


def test_a_gpt_alone_is_its_place_among_others():
    both, prompt = tiny(), torch.tensor([[2], [2]])
    response = torch.tensor([[[0, 1, 2]], [[0, 1, 2]]])
    batch = Batch.own(prompt, torch.ones(2, 1).bool(), response, torch.ones(2, 1, 3).bool())
    alone = tiny(seeds=(2,)).logp(batch.prompts(slice(1, 2)))
    torch.testing.assert_close(both.logp(batch)[1:], alone, rtol=0, atol=1e-12)
    assert (both.logp(batch)[0] - alone[0]).abs().max() > 1e-3


def test_a_token_sees_what_came_before_it_and_nothing_after():
    model, prompt = tiny(seeds=(1,)), torch.zeros(1, 1, dtype=torch.long)
    response = torch.tensor([[[0, 1, 2], [0, 1, 0], [1, 1, 2]]])
    batch = Batch.own(prompt, torch.ones(1, 1).bool(), response, torch.ones(1, 3, 3).bool())
    logp = model.logp(batch).detach()[0]
    torch.testing.assert_close(logp[0, :2], logp[1, :2])
    assert abs(float(logp[0, 2] - logp[2, 2])) > 1e-4


@pytest.mark.parametrize(("name", "bandit"), [("R1-tokens", "R1"), ("R2-tokens", "R2")])
def test_the_start_is_the_bandits_reference_at_every_token(name, bandit):
    world, parts = TokenBanditWorld(name), parts_of(name, [0, 1])
    start = world.standing(parts, [0, 1])
    problem = worlds.bandit(bandit)
    assert start["reward"].tolist() == pytest.approx([problem.expected(problem.reference)] * 2, rel=0.06)
    assert start["kl"].tolist() == pytest.approx([0, 0], abs=1e-6)
    entropy = float(-(problem.reference * problem.reference.log()).sum())
    assert start["entropy"].tolist() == pytest.approx([TOKENS * entropy] * 2, rel=0.01)


def test_the_reward_is_the_mean_over_generated_tokens():
    parts = parts_of("R1-tokens", [0])
    batch = parts.data(1, 1)
    # one token at the peak, eight at 0, whose reward is exp(-49)
    response = torch.zeros(1, 1, TOKENS, dtype=torch.long)
    response[0, 0, 3] = 70
    at_peak = Batch.own(batch.prompt, batch.prompt_mask, response, torch.ones_like(response).bool())
    assert float(parts.reward(at_peak)) == pytest.approx(1 / 9, abs=1e-6)


@pytest.mark.parametrize("method", ["best_of_n", "online_dpo", "ppo", "dpo", "hypo"])
def test_a_seed_alone_is_its_row_among_others(method):
    # float32, where kernels may differ with the number of seeds: rounding is all that may
    world = TokenBanditWorld("R1-tokens", checkpoints=1)
    dials = {"steps": 2, "num_generations": 4}
    together, alone = world.run(method, [7, 8], **dials), world.run(method, [8], **dials)
    mine = [row for row in together if row["seed"] == 8]
    for row, other in zip(mine, alone, strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-3)


def test_training_on_its_best_samples_raises_the_reward():
    rows = TokenBanditWorld("R2-tokens", checkpoints=1).run("best_of_n", [0, 1], steps=15, learning_rate=0.01)
    for seed in (0, 1):
        before, after = (row["reward"] for row in rows if row["seed"] == seed)
        assert after > before + 0.1


def test_what_is_tuned_is_what_a_method_has():
    world = TokenBanditWorld()
    assert isinstance(world, World)
    for method in world.methods():
        assert set(world.grid(method)) <= set(named(method).dials)
