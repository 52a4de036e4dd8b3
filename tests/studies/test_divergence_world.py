"""The divergence world: its scale is exact, its runs are the shipped methods, and the shipped numbers are of them."""

import math

import pytest
import torch

from modeseek import config
from modeseek.batch import Batch
from modeseek.estimate import mean
from modeseek.objectives import RWR
from modeseek.studies.worlds import directions, divergence
from modeseek.studies.worlds.divergence import BETA, EXACT, PLACES, Bump, Divergence, bump, line, minima, run_of, target

WORLD = Divergence()
METHODS = [name for name in WORLD.methods() if name not in EXACT]


def at_end(method, seeds=(0,), **dials):
    rows = WORLD.run(method, seeds, **dials)
    last = max(row["step"] for row in rows)
    return [row for row in rows if row["step"] == last]


def test_the_forward_kl_is_least_at_the_mean_of_the_target_and_the_reverse_at_its_bumps():
    """The mean is .55 x -.6 + .45 x .6 = -.06; a bump that the line's end cuts a little leans outwards."""
    middle, left, right = minima()
    assert middle == pytest.approx(float(target().exp() @ line()), abs=1e-3) == pytest.approx(-0.06, abs=1e-3)
    assert left == pytest.approx(-0.6, abs=0.02) and right == pytest.approx(0.6, abs=0.02)
    assert [divergence.seeking(c) for c in (middle, left, right)] == [0, 1, 1]
    assert divergence.seeking((middle + right) / 2) == pytest.approx(0.5)


def test_the_target_is_the_optimum_of_the_reward_less_the_kl():
    """pi_ref exp(r / beta) / Z with a uniform reference and r = beta log target."""
    assert torch.allclose((BETA * target() / BETA).softmax(-1), target().exp())
    assert target().exp().sum().item() == pytest.approx(1)
    assert target().exp()[: PLACES // 2].sum().item() == pytest.approx(0.55, abs=1e-3)


def test_what_the_bump_says_of_itself_is_exact():
    policy = Bump(0.3)
    logp = bump(torch.tensor(0.3, dtype=torch.float64))
    batch = Batch.of([[0]] * 2, [[[3], [7]]] * 2)
    assert policy.logp(batch)[..., 0].tolist() == [[logp[3].item(), logp[7].item()]] * 2
    entropy = -(logp.exp() * logp).sum().item()
    assert policy.entropy(batch).flatten().tolist() == pytest.approx([entropy] * 4)
    assert policy.kl(batch).flatten().tolist() == pytest.approx([math.log(PLACES) - entropy] * 4)
    drawn = policy.sample(batch.prompt, batch.prompt_mask, 4000, torch.Generator().manual_seed(0)).response
    assert line()[drawn].mean().item() == pytest.approx(float(logp.exp() @ line()), abs=0.01)


@pytest.mark.parametrize(("method", "ends"), [("forward_kl", 0.0), ("reverse_kl", 1.0)])
def test_the_divergences_themselves_mark_the_ends_of_the_scale(method, ends):
    assert [row["seeking"] for row in at_end(method, range(3))] == pytest.approx([ends] * 3, abs=0.02)


@pytest.mark.parametrize(
    ("method", "dials", "seeks"),
    [
        ("pref_ft", {}, False),
        ("dpo", {}, False),
        ("online_dpo", {}, True),
        pytest.param("rwr", {"source": "offline"}, False, marks=pytest.mark.slow),
        pytest.param("rwr", {}, True, marks=pytest.mark.slow),
        pytest.param("reinforce", {}, True, marks=pytest.mark.slow),
    ],
)
def test_the_source_decides_the_direction(method, dials, seeks):
    assert (at_end(method, **dials)[0]["seeking"] > 0.5) == seeks


@pytest.mark.parametrize("method", METHODS)
def test_every_shipped_method_runs(method):
    rows = WORLD.run(method, [1], steps=2)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(math.isfinite(x) for row in rows for x in row.values())
    assert len({row["centre"] for row in rows}) > 1  # it moves


def test_only_the_price_of_a_nat_and_the_loop_differ_from_the_shipped_method():
    run, shipped = run_of("rloo"), config.from_dict(config.read_tree("rloo"))
    assert run.objective == shipped.objective and run.source == shipped.source
    assert [s.name for s in run.stages] == [s.name for s in shipped.stages]
    assert next(s for s in run.stages if s.name == "kl_shaped").options == {"beta": BETA}
    assert run_of("rwr").objective == RWR(beta=BETA)
    ppo, known = run_of("ppo_critic"), config.from_dict(config.read_tree("ppo_critic"))
    assert known.minibatch is not None and ppo.passes == known.passes
    assert ppo.minibatch / ppo.prompts_per_round == known.minibatch / known.prompts_per_round
    assert isinstance(run_of("rwr", "offline").source, config.Offline)


def test_an_objective_of_own_samples_is_not_run_on_the_data():
    for method in ("rloo", "dpo"):
        with pytest.raises(ValueError, match=f"{method} is offline already or needs its own samples"):
            run_of(method, "offline")
    with pytest.raises(ValueError, match="source: has no such|source: forward_kl in divergence has no such dial"):
        WORLD.run("forward_kl", [0], source="offline")


def test_the_data_follow_bradley_terry():
    reward = 3 * torch.linspace(-1, 1, PLACES, dtype=torch.float64)
    data = divergence.pairs(0, reward)
    gap = (reward[data.response[:, 0, 0]] - reward[data.response[:, 1, 0]]).sign()
    expected = torch.sigmoid(data["margin"]).mean().item()
    assert (gap > 0).double().mean().item() == pytest.approx(expected, abs=0.02)
    assert (data.response[:, 0] != data.response[:, 1]).all()


def test_every_shipped_method_has_a_measured_direction():
    found = directions.measured()
    assert sorted(found) == sorted(METHODS)
    for row in found.values():
        assert row["low"] <= row["seeking"] <= row["high"] and row["seeds"] >= 5
        assert row["measured_kl"] in ("mode-seeking", "mode-covering", "neither", "unclear")


def test_a_direction_is_stated_only_where_the_interval_allows_it():
    assert directions.direction(mean([0.9, 1.0, 0.95])) == "mode-seeking"
    assert directions.direction(mean([0.1, 0.0, 0.05])) == "mode-covering"
    assert directions.direction(mean([0.1, 0.9, 0.5])) == "unclear"
    assert directions.direction(mean([3.0, 3.1, 2.9])) == "neither"
