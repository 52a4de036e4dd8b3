import itertools

import pytest
import torch

from modeseek.batch import Batch
from modeseek.studies.base import World
from modeseek.studies.worlds import bigrams, length
from modeseek.studies.worlds.bigrams import BUMPS, END, LIMIT, Bigrams
from modeseek.studies.worlds.length import GEOMETRY, LengthWorld, cut, fitted, parts_of, true_reward
from modeseek.studies.worlds.methods import ends, named
from modeseek.studies.worlds.table import normal, streams, uniform


def tiny(seeds=2, words=3, scale=1.0) -> Bigrams:
    rngs = streams(range(seeds), "tiny")
    return Bigrams(scale * normal(rngs, words, words), scale * normal(rngs, BUMPS, words))


def written(model: Bigrams, words: list[int]) -> Batch:
    S = len(model.pairs)
    response = torch.tensor(words).expand(S, 1, -1)
    prompt = torch.zeros(S, 1, dtype=torch.long)
    return Batch.own(prompt, torch.ones(S, 1).bool(), response, torch.ones_like(response).bool())


def test_the_probability_of_each_length_is_the_sum_over_its_texts(monkeypatch):
    monkeypatch.setattr(bigrams, "clock", lambda: CLOCK)
    model = tiny()
    lengths, _, _ = model.walk(model)
    for n in (1, 2, 3, 4):
        total = sum(
            model.logp(written(model, [*words, END])).sum((1, 2)).exp()
            for words in itertools.product((1, 2), repeat=n - 1)
        )
        torch.testing.assert_close(lengths[:, n - 1], total.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(lengths.sum(-1), torch.ones(2, dtype=torch.float64))


def test_kl_and_entropy_are_the_means_over_samples(monkeypatch):
    monkeypatch.setattr(bigrams, "clock", lambda: CLOCK)
    model, other = tiny(1, scale=0.7), tiny(1, scale=0.3)
    _, kl, entropy = model.walk(other)
    batch = model.sample(torch.zeros(1, 1, dtype=torch.long), uniform(streams([3], "x"), 1, 20_000, LIMIT)[0])
    own = model.logp(batch).masked_fill(~batch.mask, 0).sum(-1).detach()
    away = own - other.logp(batch).masked_fill(~batch.mask, 0).sum(-1).detach()
    for exact, seen in ((kl, away), (entropy, -own)):
        error = float(seen.std()) / 20_000**0.5
        assert float(exact[0]) == pytest.approx(float(seen.mean()), abs=5 * error)


def test_samples_end_at_the_end_token_and_are_scored_as_they_were_drawn(monkeypatch):
    monkeypatch.setattr(bigrams, "clock", lambda: CLOCK)
    model = tiny()
    batch = model.sample(torch.zeros(6, 1, dtype=torch.long), uniform(streams([0, 1], "x"), 3, 4, LIMIT).flatten(0, 1))
    torch.testing.assert_close(model.logp(batch)[batch.mask], batch["old_logp"][batch.mask], rtol=0, atol=1e-12)
    last = batch.response.gather(-1, batch.mask.sum(-1, keepdim=True) - 1)[..., 0]
    assert torch.equal(last == END, batch["finished"])
    inside = batch.mask & torch.nn.functional.pad(batch.mask[..., 1:], (0, 1))
    assert (batch.response[inside] != END).all()


def test_the_reference_tells_fables_of_their_usual_length():
    lengths = length.reference_lengths()
    # most fables have two acts: 21 to 25 words with the end token
    assert int(lengths.argmax()) + 1 in range(21, 26)
    assert float((lengths * torch.arange(1, LIMIT + 1)).sum()) == pytest.approx(31.8, abs=1.5)


def test_the_four_worlds_cross_peak_and_coverage():
    assert sorted(GEOMETRY.values()) == [(False, False), (False, True), (True, False), (True, True)]
    usual = length.reference_lengths()
    mode = int(usual.argmax())
    for name, (near, covered) in GEOMETRY.items():
        picture = LengthWorld(name).geometry()
        assert int(picture["reward"].argmax()) == (mode if near else 0)
        overlap = torch.minimum(torch.tensor(picture["data"]), usual).sum()
        assert (float(overlap) > 0.5) is covered, (name, overlap)


def test_rewards_are_in_mean_lengths_of_the_reference():
    usual, at = length.reference_lengths(), torch.arange(1.0, LIMIT + 1)
    assert float((usual * true_reward("min_length")[0]).sum()) == pytest.approx(-1.0, abs=1e-5)
    assert float(true_reward("mode_length").max()) == 0.0
    with pytest.raises(ValueError, match="world: 'long', expected one of min_length"):
        true_reward("long")
    assert at[0] == 1


def test_cut_texts_end_with_the_end_token_and_are_never_longer():
    parts = parts_of("min_length", [0], true_reward("min_length"))
    whole = parts.data(50, 2)
    short = cut(whole, uniform(streams([0], "cuts"), 50, 2)[0])
    before, after = whole.mask.sum(-1), short.mask.sum(-1)
    assert (after <= before).all() and float(after.float().mean()) < 9
    last = short.response.gather(-1, (after - 1)[..., None])
    assert (last[before > after] == END).all()
    assert torch.equal(short.response[..., 0][after > 1], whole.response[..., 0][after > 1])


def test_the_proxy_orders_what_the_data_cover_and_only_that():
    for name, right in (("min_length", True), ("mode_skew", False)):
        truth = true_reward(name)
        parts = parts_of(name, [0, 1], truth)
        data = parts.data(200, 2)
        proxy = fitted(ends(data.fill(reward=parts.reward(data))), [0, 1])
        if right:
            assert (proxy[:, 9] > proxy[:, 29]).all() and (proxy[:, 29] > proxy[:, 49]).all()
        else:  # the true peak is at 23 tokens; the data are shorter, and longer was better among them
            assert (proxy[:, 14] > proxy[:, 4]).all() and (proxy[:, 59] > proxy[:, 22]).all()
        told = proxy.gather(1, data.mask.sum(-1).view(2, -1) - 1)
        torch.testing.assert_close(told.mean(-1), torch.zeros(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(told.std(-1), torch.ones(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["ppo", "hypo"])
def test_a_seed_alone_is_its_row_among_others(method):
    world, dials = LengthWorld("skew_length", checkpoints=1), {"steps": 2}
    together, alone = world.run(method, [5, 6], **dials), world.run(method, [6], **dials)
    mine = [row for row in together if row["seed"] == 6]
    for row, other in zip(mine, alone, strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-3)


def test_a_proxy_from_short_texts_makes_the_policy_ramble():
    rows = LengthWorld("mode_skew", checkpoints=1).run("online_dpo", [0], steps=12, learning_rate=0.1)
    start, end = rows
    assert end["proxy"] > start["proxy"] and end["reward"] < start["reward"] and end["length"] > start["length"] + 10


def test_methods_without_a_meaning_here_are_refused():
    with pytest.raises(ValueError, match="method: 'offline_best_of_n' in min_length"):
        LengthWorld("min_length").run("offline_best_of_n", [0])
    world = LengthWorld()
    assert isinstance(world, World)
    for method in world.methods():
        assert set(world.grid(method)) <= set(named(method).dials)


CLOCK = bigrams.clock().double()  # the models of these tests are in float64, to be compared with sums
