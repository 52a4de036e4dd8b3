import pytest
import torch

from modeseek.batch import Batch
from modeseek.rewards import Ensemble, Table, build_reward

ONE, TWO = Table(((1.0, 5.0, 2.0),)), Table(((3.0, 1.0, 2.0),))


def said(config):
    return build_reward(config)(Batch.of([[0]], [[[0], [1], [2]]]))[0].tolist()


def test_members_are_combined_by_hand():
    assert said(Ensemble((ONE, TWO))) == [2, 3, 2]
    assert said(Ensemble((ONE, TWO), "sum")) == [4, 6, 4]
    assert said(Ensemble((ONE, TWO), "min")) == [1, 1, 2]
    # variances over the two members: ((1 - 2)^2 + (3 - 2)^2) / 2 = 1, then 4, then 0
    assert said(Ensemble((ONE, TWO), "disagreement")) == [2 - 1, 3 - 4, 2]
    assert said(Ensemble((ONE, TWO), "disagreement", penalty=0.5)) == [2 - 0.5, 3 - 2, 2]


def test_an_absent_response_has_no_reward():
    for combine in ("mean", "sum", "min", "disagreement"):
        scores = build_reward(Ensemble((ONE, TWO), combine))(Batch.of([[0], [0]], [[[0], [1]], [[2]]]))
        assert scores[0].isfinite().all() and scores[1, 0] > 0 and scores[1, 1].isnan()


def test_what_every_member_says_can_be_seen():
    reward = build_reward(Ensemble((ONE, TWO)))
    each = getattr(reward, "each")(Batch.of([[0]], [[[0], [1]]]))  # noqa: B009
    torch.testing.assert_close(each, torch.tensor([[[1.0, 5.0]], [[3.0, 1.0]]]))


def test_an_ensemble_needs_members_and_a_penalty_that_is_used():
    with pytest.raises(ValueError, match="reward.members: found 1"):
        Ensemble((ONE,))
    with pytest.raises(ValueError, match="reward.penalty: found 2.0 with combine: min"):
        Ensemble((ONE, TWO), "min", penalty=2.0)
    with pytest.raises(ValueError, match="reward.penalty: found -1"):
        Ensemble((ONE, TWO), "disagreement", penalty=-1.0)
