import numpy as np
import pytest
import torch

from modeseek.data import worlds
from modeseek.objectives import DPO, IPO, SFT
from modeseek.objectives.base import apply
from modeseek.stages import all_pairs, chosen, ranked, refer, score
from modeseek.studies.base import World
from modeseek.studies.worlds.all_pairs import AllPairs
from modeseek.studies.worlds.bandit import BanditWorld, parts_of
from modeseek.studies.worlds.methods import METHODS, Settings, ends, named, samples, staged
from modeseek.studies.worlds.table import Progress

SHORT = {"steps": 8}


def last(rows, seed, metric):
    return [row[metric] for row in rows if row["seed"] == seed][-1]


@pytest.mark.parametrize(
    ("name", "expected", "best_of_ten", "to_the_peak"), [("R1", 0.039, 0.314, 6.16), ("R2", 0.377, 0.940, 3.72)]
)
def test_the_world_has_the_numbers_of_the_fact_sheet(name, expected, best_of_ten, to_the_peak):
    problem = worlds.bandit(name)
    peak = torch.zeros(worlds.ARMS, dtype=torch.float64)
    peak[worlds.PEAKS[name]] = 1.0
    start = BanditWorld(name).run("best_of_n", [0], steps=1)[0]
    assert start["reward"] == pytest.approx(expected, abs=5e-4)
    assert problem.best_of(10) == pytest.approx(best_of_ten, abs=1e-3)
    assert problem.kl(peak) == pytest.approx(to_the_peak, abs=5e-3)
    assert start["entropy"] == pytest.approx(4.117, abs=1e-3)
    assert start["kl"] == pytest.approx(0, abs=1e-12)


def test_best_of_ten_of_the_data_has_its_expectation():
    # 4000 groups of ten; the best reward's standard deviation is below 0.4, so five standard errors are 0.032
    parts = parts_of("R1", [1])
    data = staged(parts.data(4000, 10), [score(parts.reward)])
    assert float(data["reward"].amax(-1).mean()) == pytest.approx(0.314, abs=0.032)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_a_seed_alone_is_its_row_among_others(method):
    world = BanditWorld("R1", checkpoints=2)
    together, alone = world.run(method, [4, 9], **SHORT), world.run(method, [9], **SHORT)
    mine = [row for row in together if row["seed"] == 9]
    assert [row["step"] for row in alone] == [0, 4, 8]
    for row, other in zip(mine, alone, strict=True):
        assert row == pytest.approx(other, abs=1e-9)
        assert all(np.isfinite(x) for x in row.values())


def test_the_seed_gives_every_method_the_same_start_and_the_same_pairs():
    start = [BanditWorld("R2").run(method, [3], steps=1)[0] for method in ("dpo", "pref_ft", "hypo")]
    assert start[0]["logp_chosen"] == start[1]["logp_chosen"] == start[2]["logp_chosen"]
    other = BanditWorld("R2").run("dpo", [4], steps=1)[0]
    assert other["logp_chosen"] != start[0]["logp_chosen"]


def test_ppo_and_reinforce_are_one_where_every_sample_is_fresh():
    ppo, reinforce = (BanditWorld("R1").run(m, [2], **SHORT, learning_rate=0.1) for m in ("ppo", "reinforce"))
    assert last(ppo, 2, "reward") == pytest.approx(last(reinforce, 2, "reward"), abs=1e-9)


def test_on_policy_methods_find_the_far_peak_and_offline_likelihood_does_not():
    on_policy = BanditWorld("R1").run("best_of_n", [0, 1], steps=40, learning_rate=0.3)
    offline = BanditWorld("R1").run("pref_ft", [0, 1], steps=40, learning_rate=0.3)
    for seed in (0, 1):
        assert last(on_policy, seed, "reward") > 0.8 > 0.3 > last(offline, seed, "reward")


def test_dials_without_effect_are_refused():
    with pytest.raises(ValueError, match="passes: dpo in R1 has no such dial; expected one of steps"):
        BanditWorld().run("dpo", [0], passes=2)
    with pytest.raises(ValueError, match="beta: best_of_n in R1"):
        BanditWorld().run("best_of_n", [0], beta=0.1)
    with pytest.raises(ValueError, match="method: 'dqn', expected one of pref_ft"):
        BanditWorld().run("dqn", [0])


def test_stale_samples_are_refused_where_the_gradient_would_be_wrong():
    with pytest.raises(ValueError, match="PolicyGradient takes samples at most 0 steps old"):
        BanditWorld().run("reinforce", [0], passes=2)


def test_samples_are_counted_by_who_labelled_them():
    rows = BanditWorld("R1", checkpoints=4).run("best_of_n", [0], steps=4, passes=2, prompts_per_round=3)
    # two rounds of 3 prompts with 10 responses each, each round gone through twice
    assert [row["samples"] for row in rows] == [0, 30, 30, 60, 60]
    assert samples("dpo", Settings(prompts=7, num_generations=4), Progress(step=9, rounds=9)) == 28


@pytest.mark.parametrize("world", [BanditWorld("R1"), BanditWorld("R2")])
def test_what_is_tuned_is_what_a_method_has(world):
    assert isinstance(world, World)
    for method in world.methods():
        assert set(world.grid(method)) <= set(named(method).dials)


@pytest.mark.parametrize("inner", [DPO(beta=0.2), IPO(tau=0.05)])
def test_all_pairs_of_a_group_is_the_stage_of_that_name(inner):
    parts = parts_of("R2", [6])
    raw = staged(parts.data(5, 6), [score(parts.reward), refer(parts.reference)])
    with torch.no_grad():
        parts.policy.logits += torch.randn(1, 1, 100, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    group, pairs = ranked(raw), all_pairs()(raw)
    given = {"logp": parts.policy.logp(group), "mask": group.mask, "present": group.present, **group.columns}
    mine = apply(AllPairs(inner), given).per_prompt.sum()
    each = inner(parts.policy.logp(pairs), pairs["ref_logp"], pairs.mask).per_prompt
    torch.testing.assert_close(mine, (each * pairs.weight).sum())


def test_the_chosen_of_all_pairs_is_what_pref_ft_learns_from():
    parts = parts_of("R2", [6])
    raw = staged(parts.data(5, 6), [score(parts.reward)])
    group, picked = ranked(raw), chosen(all_pairs()(raw))
    given = {"logp": parts.policy.logp(group), "mask": group.mask, "present": group.present, **group.columns}
    mine = apply(AllPairs(SFT(), keep=1), given).per_prompt.sum()
    each = SFT()(parts.policy.logp(picked), picked.mask, picked.present).per_prompt
    torch.testing.assert_close(mine, (each * picked.weight).sum())


def test_the_ends_of_a_group_are_its_best_and_worst_and_a_tie_weighs_nothing():
    parts = parts_of("R1", [0])
    batch = parts.data(2, 3).fill(reward=torch.tensor([[0.1, 0.9, 0.5], [0.2, 0.2, 0.2]]))
    pairs = ends(batch)
    assert pairs["reward"].tolist() == [pytest.approx([0.9, 0.1]), pytest.approx([0.2, 0.2])]
    assert pairs.weight.tolist() == [1.0, 0.0]
    assert pairs.response[0, :, 0].tolist() == [batch.response[0, 1, 0], batch.response[0, 0, 0]]


def test_the_picture_is_of_the_reference_and_the_reward():
    picture = BanditWorld("R1").geometry()
    assert picture["reference"].sum() == pytest.approx(1)
    assert int(picture["reward"].argmax()) == 70
