"""The joint budget by hand: ten tokens for a prompt and its longest response."""

from collections import Counter

import numpy as np
import pytest

from modeseek.data.budget import Budget, Encoded
from modeseek.data.records import Record

BOS = 1
RATED = Record(prompt="p", responses=("a", "b", "c"), rewards=(3.0, 2.0, 0.5))


def encoded(prompt: int, *replies: int, record: Record | None = None) -> Encoded:
    """A prompt of so many tokens, the BOS first, and responses of so many."""
    record = record or Record(prompt="p", responses=tuple("abc"[: len(replies)]))
    tokens = np.array([BOS, *range(10, 9 + prompt)], np.int32)
    return Encoded(record, tokens, [np.arange(20, 20 + n, dtype=np.int32) for n in replies], [True] * len(replies))


def budget(**changes) -> Budget:
    return Budget(**{"limit": 10, "least": 3, "completion": None, "truncate": False, **changes})


def test_a_long_prompt_keeps_its_end_and_the_bos():
    counts = Counter()
    row = budget().with_prompt(encoded(8, 4, 6), BOS, counts)
    assert row.prompt.tolist() == [BOS, 14, 15, 16]  # 10 - 6 places are left, the first of them the BOS's
    assert counts == {"prompts_truncated": 1, "prompt_tokens_lost": 4}


def test_a_prompt_without_a_bos_keeps_its_end_alone():
    row = budget().with_prompt(encoded(8, 6), 99, Counter())
    assert row.prompt.tolist() == [13, 14, 15, 16]


def test_a_prompt_that_has_room_for_one_token_keeps_its_last():
    assert budget().with_prompt(encoded(8, 9), BOS, Counter()).prompt.tolist() == [16]


def test_a_prompt_alone_leaves_room_for_what_a_response_may_have():
    assert len(budget(completion=4).with_prompt(encoded(8), BOS, Counter()).prompt) == 6


@pytest.mark.parametrize(("prompt", "longest"), [(8, 7), (2, 8)])
def test_a_response_fits_beside_the_least_of_its_prompt(prompt, longest):
    whole = encoded(prompt, 1, longest)
    assert budget().with_responses(whole, Counter()) is whole
    assert budget().with_responses(encoded(prompt, 1, longest + 1), Counter()) is None


def test_a_response_has_at_most_its_own_limit():
    assert budget(completion=4).with_responses(encoded(2, 5), Counter()) is None


def test_a_cut_response_does_not_end_and_what_it_lost_is_counted():
    counts = Counter()
    row = budget(truncate=True).with_responses(encoded(8, 4, 9), counts)
    assert row is not None and [len(reply) for reply in row.replies] == [4, 7] and row.finished == [True, False]
    assert counts == {"responses_truncated": 1, "response_tokens_lost": 2}


def test_a_rated_list_loses_only_the_response_that_does_not_fit():
    counts = Counter()
    row = budget().with_responses(encoded(8, 4, 9, 5, record=RATED), counts)
    assert row is not None and row.record.responses == ("a", "c") and [len(reply) for reply in row.replies] == [4, 5]
    assert counts == {"responses_dropped": 1}


def test_taking_two_of_a_rated_list_makes_their_margin():
    two = RATED.take([0, 2])
    assert (two.responses, two.rewards, two.margin) == (("a", "c"), (3.0, 0.5), 2.5)


def test_a_margin_that_was_given_is_kept_with_the_whole_pair_only():
    pair = Record(prompt="p", responses=("a", "b"), margin=4.0, labels=(True, False))
    assert pair.take([0, 1]).margin == 4.0
    assert (pair.take([0]).margin, pair.take([0]).labels) == (None, (True,))
    assert pair.take([]).responses == ()
