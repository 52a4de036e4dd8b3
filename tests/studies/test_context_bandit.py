import numpy as np
import pytest
import torch

from modeseek.data import worlds
from modeseek.studies.worlds.context_bandit import JUDGED, TRAINED, ContextBanditWorld, Networks, parts_of
from modeseek.studies.worlds.methods import METHODS


@pytest.mark.parametrize(("name", "expected"), [("R1-contexts", 0.039), ("R2-contexts", 0.377)])
def test_it_starts_at_the_bandits_reference_whatever_the_context(name, expected):
    start = ContextBanditWorld(name).run("best_of_n", [0, 1], steps=1)[0]
    assert start["reward"] == pytest.approx(expected, abs=1e-3)
    assert start["entropy"] == pytest.approx(4.117, abs=5e-3)
    assert start["kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_a_seed_alone_is_its_row_among_others(method):
    world = ContextBanditWorld("R1-contexts", checkpoints=2)
    together, alone = world.run(method, [4, 9], steps=4), world.run(method, [9], steps=4)
    mine = [row for row in together if row["seed"] == 9]
    assert [row["step"] for row in alone] == [0, 2, 4]
    for row, other in zip(mine, alone, strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-4)  # float32, and batched products round otherwise
        assert all(np.isfinite(x) for x in row.values())


def test_log_probabilities_sum_to_one_and_depend_on_the_context():
    policy = Networks([3], worlds.bandit("R1").reference.log())
    policy.weights[-1].data *= 100  # away from the start
    logp = policy.all_logp(torch.arange(TRAINED + JUDGED)[:, None])
    torch.testing.assert_close(logp.exp().sum(-1), torch.ones(TRAINED + JUDGED))
    assert logp.std(0).mean() > 0.01


def test_samples_are_scored_as_they_were_drawn_and_come_from_training_contexts():
    parts = parts_of("R2-contexts", [1, 2])
    own = parts.own(50, 3)
    assert int(own.prompt.max()) < TRAINED
    torch.testing.assert_close(parts.policy.logp(own), own["old_logp"])


def test_what_is_learnt_carries_over_to_other_contexts():
    rows = ContextBanditWorld("R2-contexts").run("best_of_n", [5], learning_rate=1e-3)
    assert rows[-1]["reward"] > 0.9
