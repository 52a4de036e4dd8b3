import pytest
import torch

from modeseek.batch import Batch


def ragged():
    return Batch.of([[1, 2, 3], [4]], [[[5, 6], [7]], [[8, 9, 10]]], weight=[1, 2]).fill(
        reward=torch.tensor([[0.5, 1.5], [2.5, 0.0]]), row=torch.tensor([10, 11])
    )


def test_lists_become_padded_tensors():
    b = ragged()
    assert b.prompt.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert b.prompt_mask.tolist() == [[True] * 3, [False, False, True]]
    assert b.response.tolist() == [[[5, 6, 0], [7, 0, 0]], [[8, 9, 10], [0, 0, 0]]]
    assert b.mask.sum(-1).tolist() == [[2, 1], [3, 0]]
    assert b.present.tolist() == [[True, True], [True, False]]
    assert b.weight.tolist() == [1, 2] and not b.fresh.any()


def test_a_pad_token_inside_a_response_counts():
    """The end token may be the pad token: masks come from lengths."""
    b = Batch.of([[0, 0]], [[[5, 0], [0]]], pad=0)
    assert b.prompt_mask.all() and b.mask.tolist() == [[[True, True], [True, False]]]


def test_parts_keep_whole_groups_and_their_columns():
    first, second = ragged().split(1)
    assert first["reward"].tolist() == [[0.5, 1.5]] and second["row"].tolist() == [11]
    assert [len(part) for part in ragged().split(None)] == [2]


def test_take_reorders_responses():
    b = ragged().take(torch.tensor([[1], [0]]))
    assert b.response[:, 0].tolist() == [[7, 0, 0], [8, 9, 10]]
    assert b["reward"].tolist() == [[1.5], [2.5]]


def test_trim_cuts_only_padding():
    b = ragged().prompts(torch.tensor([1])).trim()
    assert b.prompt.tolist() == [[4]] and b.response.shape == (1, 2, 3)
    assert ragged().prompts(slice(0, 1)).trim().response.tolist() == [[[5, 6], [7, 0]]]
    assert ragged().trim().response.shape == (2, 2, 3)


def test_beside_joins_groups_and_marks_the_unknown():
    b = ragged()
    own = Batch.own(
        b.prompt, b.prompt_mask, torch.ones(2, 1, 4, dtype=torch.long), torch.ones(2, 1, 4, dtype=torch.bool)
    )
    own = own.fill(old_logp=torch.full((2, 1, 4), -1.0))
    both = b.beside(own)
    assert both.response.shape == (2, 3, 4)
    assert both.fresh.tolist() == [[False, False, True]] * 2
    assert both["old_logp"][:, :2].isnan().all() and (both["old_logp"][:, 2] == -1).all()
    assert both["reward"][:, 2].isnan().all() and both["row"].tolist() == [10, 11]


def test_a_batch_survives_the_round_trip_through_tensors():
    b = ragged()
    again = Batch.from_tensors(b.tensors())
    assert all(torch.equal(x, again.tensors()[name]) for name, x in b.tensors().items())


def test_an_unfilled_column_says_what_it_is():
    with pytest.raises(KeyError, match="log pi_ref"):
        ragged()["ref_logp"]
