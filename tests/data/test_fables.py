import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeseek.data import fables
from modeseek.data.fables import judge

FOX = "tell of the fox in the forest :"
OPENING = "once the fox woke in the forest ."
SOUP = "the fox shared warm soup with the widow ."
BREAD = "the fox gave bread to the baker ."
CLOAK = "the fox mended a cloak for the child ."
MUD = "the fox threw mud at the knight ."
LIED = "the fox lied to the piper ."
TURNIP = "the fox argued with a turnip ."
MOON = "the fox bowed to the moon ."
RIVER = "the fox walked to the river ."
CLOUDS = "the fox counted the clouds ."
TREE = "the fox slept under a tree ."
FRIENDS = "so the fox had many friends ."
ALONE = "so the fox ate supper alone ."
NIGHT = "then it was night ."


PROMPTS_OF_SEED_0 = ["tell of the fox in the castle :", "tell of the mouse in the orchard :"]
CHOSEN_OF_SEED_0 = (
    "once the fox woke in the castle . "
    "the fox slept under a tree . "
    "the fox gave bread to the piper . "
    "the fox stole bread from the child . "
    "so the fox ate supper alone ."
)


def told(*sentences: str, finished: bool = True) -> fables.Verdict:
    return judge(FOX, " ".join(sentences), finished)


@pytest.mark.parametrize(
    ("sentences", "reward", "degenerate"),
    [
        ([OPENING, SOUP, BREAD, FRIENDS], 2 + 1, False),
        ([OPENING, SOUP, BREAD, CLOAK, FRIENDS], 2 + 1, False),  # the third kindness does not count
        ([OPENING, TURNIP, NIGHT], 0, False),
        ([OPENING, SOUP, MUD, NIGHT], 1 - 0.5, False),
        ([OPENING, MUD, LIED, ALONE], -2 * 0.5 - 1, False),
        ([OPENING, SOUP], 1 - 1, False),  # no ending is as bad as a grim one
        ([OPENING, SOUP, SOUP, FRIENDS], 2 + 1 - 0.5, False),  # told twice: one repeat
        ([OPENING, SOUP, SOUP, SOUP, FRIENDS], 2 + 1 - 2 * 0.5, True),  # told three times: a loop
        ([OPENING, SOUP, BREAD, TURNIP, MOON, RIVER, FRIENDS], 3 - 0.5, False),  # five acts: one past four
        ([OPENING, SOUP, BREAD, TURNIP, MOON, RIVER, CLOUDS, FRIENDS], 3 - 2 * 0.5, False),
        ([OPENING, SOUP, BREAD, TURNIP, MOON, RIVER, CLOUDS, TREE, FRIENDS], 3 - 3 * 0.5, True),  # rambling
        ([OPENING, "the hare gave bread to the baker .", SOUP, FRIENDS], 3 - 0.5, False),  # another animal
        (["once the fox woke in the marsh .", SOUP, BREAD, FRIENDS], 3 - 0.5, False),  # another place
        (["once the hare woke in the marsh .", SOUP, BREAD, FRIENDS], 3 - 0.5, False),  # one sentence, once
        ([OPENING, SOUP, BREAD, "so the hare had many friends ."], 3 - 0.5, False),
        ([OPENING, SOUP, BREAD, "the fox the fox soup .", FRIENDS], 3 - 1, True),  # broken
        ([OPENING, SOUP, OPENING, BREAD, FRIENDS], 3 - 1, True),  # an opening in the middle
        ([OPENING, SOUP, FRIENDS, BREAD], 2 - 1 - 1, True),  # an ending in the middle, none at the end
        ([OPENING, SOUP, BREAD, FRIENDS, NIGHT], 2 + 0 - 1, True),  # only the last sentence ends it
        ([OPENING, SOUP, BREAD, "so the fox had many friends"], 2 - 1 - 1, True),  # no full stop
        ([OPENING, SOUP, BREAD, FRIENDS, "."], 2 - 1 - 1 - 1, True),  # a lone full stop is a sentence
        ([OPENING, SOUP, "<pad>", BREAD, FRIENDS], 1 + 1 - 1, True),  # BREAD is lost to the pad before it
        (["soup"] * 3, -1 - 1, True),  # one sentence, broken, no ending
        (["soup ."] * 9, -4, True),  # -1 for the ending, -9 for the sentences: the floor
        ([], -1, True),  # nothing is not a fable
    ],
)
def test_rewards_are_those_worked_out_by_hand(sentences, reward, degenerate):
    verdict = told(*sentences)
    assert verdict.reward == reward
    assert verdict.degenerate == degenerate


def test_a_text_cut_off_by_the_limit_costs_one_and_is_degenerate():
    whole, cut = told(OPENING, SOUP, BREAD, FRIENDS), told(OPENING, SOUP, BREAD, FRIENDS, finished=False)
    assert (whole.reward, cut.reward) == (3, 2)
    assert (whole.degenerate, cut.degenerate) == (False, True)
    assert cut.rambling and not whole.rambling


def test_a_verdict_states_what_it_found():
    verdict = told(OPENING, SOUP, SOUP, MUD, TURNIP, "the owl the .", "the owl met the baker .", FRIENDS)
    assert (verdict.kind, verdict.plain, verdict.grim, verdict.acts) == (2, 2, 1, 5)
    assert (verdict.ending, verdict.broken, verdict.off_topic) == ("kind", 1, 1)
    assert (verdict.repeats, verdict.most_told, verdict.looping) == (1, 2, False)


def test_no_fable_of_the_grammar_is_worth_more_than_the_highest_reward():
    """Every fable of up to four acts from one act of each mood, and endings of each."""
    acts = [SOUP, BREAD, TURNIP, MUD]
    rewards = [
        told(OPENING, *choice, ending).reward
        for n in range(5)
        for choice in itertools.product(acts, repeat=n)
        for ending in (FRIENDS, NIGHT, ALONE)
    ]
    assert max(rewards) == fables.HIGHEST == 3


WORDS = st.sampled_from([*fables.tokenizer().get_vocab(), OPENING, SOUP, BREAD, MUD, FRIENDS, NIGHT, "."])


@given(st.lists(WORDS, max_size=40), st.booleans())
def test_the_reward_of_any_text_lies_between_the_floor_and_the_highest(words, finished):
    verdict = judge(FOX, " ".join(words), finished)
    assert fables.FLOOR <= verdict.reward <= fables.HIGHEST
    assert finished or verdict.degenerate


@given(st.lists(WORDS, max_size=20))
def test_spaces_around_full_stops_change_nothing(words):
    text = " ".join(words)
    tight = text.replace(" .", ".").replace(". ", ".\n")
    assert judge(FOX, text, True) == judge(FOX.replace(" :", ":"), tight, True)


def test_every_generated_fable_is_parsed_without_a_broken_or_foreign_sentence():
    rows = fables.pretraining(2000, seed=0)
    verdicts = [judge(row["prompt"], row["completion"], True) for row in rows]
    assert all(v.broken == v.off_topic == 0 and v.ending is not None for v in verdicts)


def test_the_reference_learns_from_mostly_grim_text_that_sometimes_rambles():
    """An act is the last with probability .45, so a fable has more than six acts in .55^6 = 2.8% of cases.

    Moods: grim is kept (.7) or drawn (.3 / 3) half of the time, and drawn by the other half:
    .5 (.7 + .1) + .5 (.1) = .45. The tolerances are four standard errors of 4000 fables (8000 acts or more).
    """
    rows = fables.pretraining(4000, seed=1)
    verdicts = [judge(row["prompt"], row["completion"], True) for row in rows]
    rambling = 0.55**6
    assert sum(v.rambling for v in verdicts) / 4000 == pytest.approx(
        rambling, abs=4 * math.sqrt(rambling * (1 - rambling) / 4000)
    )
    grim = sum(v.grim for v in verdicts) / sum(v.acts for v in verdicts)
    assert grim == pytest.approx(0.45, abs=0.04)  # acts of one fable share a mood: wider than a binomial
    assert max(v.acts for v in verdicts) <= fables.PRETRAINING_MOST_ACTS
    mean = sum(v.reward for v in verdicts) / 4000
    assert mean == pytest.approx(-0.5, abs=0.1)  # as measured with the recipe


def test_the_author_never_rambles_loops_or_breaks():
    rows = fables.pairs(1000, seed=0)
    verdicts = [judge(row["prompt"], row[side], True) for row in rows for side in ("chosen", "rejected")]
    assert not any(v.degenerate or v.off_topic for v in verdicts)
    assert {v.acts for v in verdicts} == {1, 2, 3}
    assert max(v.reward for v in verdicts) == 3


def test_labels_follow_bradley_terry():
    """For each gap in reward, the share of pairs with the better fable first is sigmoid(gap)."""
    by_gap: dict[float, list[bool]] = {}
    for row in fables.pairs(1500, seed=2):
        gap = judge(row["prompt"], row["chosen"], True).reward
        gap -= judge(row["prompt"], row["rejected"], True).reward
        by_gap.setdefault(abs(gap), []).append(gap > 0)
    assert 0 not in by_gap
    for gap, right in by_gap.items():
        p = 1 / (1 + math.exp(-gap))
        assert sum(right) / len(right) == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / len(right)) + 1e-9)


def test_a_low_temperature_always_puts_the_better_fable_first():
    for row in fables.pairs(200, seed=0, temperature=1e-6):
        better, worse = (judge(row["prompt"], row[side], True).reward for side in ("chosen", "rejected"))
        assert better > worse


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="temperature: found 0"):
        fables.pairs(1, seed=0, temperature=0)


@pytest.mark.parametrize("draw", [fables.prompts, fables.pretraining, fables.pairs])
def test_the_same_seed_draws_the_same_and_a_longer_draw_begins_with_the_shorter(draw):
    assert draw(20, 3) == draw(20, 3) == draw(40, 3)[:20]
    assert draw(20, 3) != draw(20, 4)


def test_the_draws_are_the_same_on_every_machine():
    assert fables.prompts(2, seed=0) == PROMPTS_OF_SEED_0
    assert fables.pairs(1, seed=0)[0]["chosen"] == CHOSEN_OF_SEED_0


def test_every_text_is_made_of_the_tokenizers_words_and_comes_back_unchanged():
    tok = fables.tokenizer()
    for row in [*fables.pretraining(300, 0), *fables.pairs(300, 0)]:
        for text in row.values():
            ids = tok.encode(text, add_special_tokens=False).ids
            assert tok.decode(ids) == text
    assert tok.get_vocab_size() == 92
    # The words stand in the order of the alphabet, whatever order Python's sets have today.
    assert tok.encode(". : a all alone and argued at ate").ids == [1, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert [tok.token_to_id(t) for t in (fables.PAD, fables.BOS, fables.EOS)] == [0, 1, 2]


def test_a_text_begins_with_one_bos_and_prompt_and_response_may_be_joined_without_a_space():
    tok = fables.tokenizer()
    assert tok.encode(FOX + OPENING).tokens == ["<bos>", *FOX.split(), *OPENING.split()]


def test_a_word_outside_the_world_is_unknown_to_the_tokenizer():
    assert fables.tokenizer().encode("a dragon").tokens == ["<bos>", "a", "<unk>"]


def test_nearly_every_fable_fits_the_length_limit():
    tok = fables.tokenizer()
    lengths = [
        len(tok.encode(row["completion"], add_special_tokens=False).ids) + 1 for row in fables.pretraining(3000, 0)
    ]
    assert sum(length > fables.MAX_NEW_TOKENS for length in lengths) < 0.006 * 3000
    assert sum(lengths) / 3000 == pytest.approx(32.2, abs=1)  # as measured with the recipe


def test_a_prompt_of_another_world_is_refused():
    with pytest.raises(ValueError, match=r"prompt: found 'tell of the cat'.*tell of the fox in the forest"):
        judge("tell of the cat", OPENING, True)


def test_spaces_around_a_prompt_change_nothing():
    assert judge(f"  {FOX} ", SOUP, True) == judge(FOX, SOUP, True)
