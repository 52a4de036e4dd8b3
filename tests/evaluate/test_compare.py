"""Evaluation of policies small enough that every response can be listed: what it should find is known."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from modeseek.batch import Batch
from modeseek.evaluate import answer, compare, evaluate
from modeseek.policies.causal import CausalPolicy

END, CONTEXTS, LIMIT = 0, (3, 4), 2  # tokens 0 (the end), 1 and 2 are said; 3 and 4 are prompts


class Table(nn.Module):
    """The next token depends on the last: a row of logits for each."""

    def __init__(self, seed: int):
        super().__init__()
        self.logits = nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)).double())

    def forward(self, tokens: Tensor, mask: Tensor, start: int) -> Tensor:
        return self.logits[tokens[:, start:]]


def chain(seed: int) -> CausalPolicy:
    table = Table(seed)
    return CausalPolicy(table, table, eos=[END], max_new=LIMIT)


def reward(batch: Batch) -> Tensor:
    """1 for each token 1, -0.5 for each token 2: five values for seven responses, so there are ties."""
    worth = torch.tensor([0.0, 1.0, -0.5])
    return worth[batch.response].masked_fill(~batch.mask, 0.0).sum(-1)


def prompts(n: int, seed: int = 0) -> Batch:
    context = torch.randint(3, 5, (n,), generator=torch.Generator().manual_seed(seed))
    return Batch.of([[int(c)] for c in context], [[[1, 2, 0]] for _ in range(n)])  # a response that is never read


RESPONSES = [[END], *([a, b] for a, b in itertools.product((1, 2), (0, 1, 2)))]


class Truth:
    """Sums over every prompt and response."""

    def __init__(self, ours: CausalPolicy, theirs: CausalPolicy):
        every = Batch.of([[c] for c in CONTEXTS], [RESPONSES] * 2)
        with torch.no_grad():
            p, q = (x.logp(every).sum(-1).exp() for x in (ours, theirs))  # [2, 7]
        assert p.sum(-1).tolist() == pytest.approx([1, 1])
        r = reward(every).double()
        wins = ((r[:, :, None] > r[:, None]).double() + (r[:, :, None] >= r[:, None]).double()) / 2
        self.reward = float((p * r).sum(-1).mean())
        self.reference_reward = float((q * r).sum(-1).mean())
        self.win_rate = float((p[:, :, None] * q[:, None] * wins).sum((1, 2)).mean())
        self.kl = float((p * (p / q).log()).sum(-1).mean())
        self.length = float((p * every.mask.sum(-1)).sum(-1).mean())
        ended = torch.tensor([float(y[-1] == END) for y in RESPONSES])
        self.finished = float((p * ended).sum(-1).mean())


OURS, THEIRS = chain(1), chain(2)
TRUTH = Truth(OURS, THEIRS)


def test_a_large_sample_finds_every_number_that_can_be_listed():
    found = evaluate(OURS, THEIRS, prompts(4000), reward, batch_size=500)
    for name in ("reward", "reference_reward", "win_rate", "kl", "length", "finished"):
        estimate = getattr(found, name)
        assert abs(estimate.value - getattr(TRUTH, name)) < 4 * estimate.standard_error, name
    assert found.reward_difference.value == pytest.approx(found.reward.value - found.reference_reward.value)
    # The truths differ by many standard errors from one another and from their mirror images.
    assert TRUTH.kl > 20 * found.kl.standard_error
    assert abs(TRUTH.win_rate - 0.5) > 8 * found.win_rate.standard_error


@pytest.mark.slow
def test_intervals_cover_the_truth_over_prompts_and_samples():
    draws, covered = 200, dict.fromkeys(("reward", "win_rate", "kl", "length", "finished"), 0)
    for seed in range(draws):
        found = evaluate(OURS, THEIRS, prompts(50, seed), reward, batch_size=50, samples_per_prompt=2, seed=seed)
        for name in covered:
            estimate = getattr(found, name)
            covered[name] += estimate.low <= getattr(TRUTH, name) <= estimate.high
    assert all(0.9 * draws <= c < draws for c in covered.values()), covered


def test_a_policy_against_itself_is_a_coin_with_no_divergence():
    found = evaluate(OURS, OURS, prompts(2000), reward, batch_size=500)
    assert found.kl.value == found.kl.standard_error == 0
    assert abs(found.win_rate.value - 0.5) < 4 * found.win_rate.standard_error
    # Independent samples: were both drawn from one stream of random numbers, all would tie.
    assert found.win_rate.standard_error > 0.2 / 2000**0.5
    assert [b.response.tolist() for b in found.ours] != [b.response.tolist() for b in found.theirs]


def test_answers_come_in_the_order_of_the_prompts_and_belong_to_them():
    asked = prompts(23)
    found = evaluate(OURS, THEIRS, asked, reward, batch_size=5, samples_per_prompt=3)
    for side in (found.ours, found.theirs):
        assert torch.cat([b.prompt for b in side]).equal(asked.prompt)
        assert {b.response.shape[1] for b in side} == {3}
        assert all(torch.equal(b["reward"], reward(b)) for b in side)
    assert found.reward.n == found.win_rate.n == 23


def test_the_references_answers_do_not_depend_on_the_policy():
    first, second = (evaluate(x, THEIRS, prompts(20), reward) for x in (OURS, chain(3)))
    assert [b.response.tolist() for b in first.theirs] == [b.response.tolist() for b in second.theirs]
    assert first.reference_reward == second.reference_reward


def test_the_same_seed_finds_the_same_and_another_seed_another():
    a, b, c = (evaluate(OURS, THEIRS, prompts(20), reward, seed=s).estimates() for s in (0, 0, 1))
    assert a == b != c


def test_evaluate_is_answer_and_compare():
    ours = answer(OURS, prompts(30), reward, reference=THEIRS, seed=5)
    theirs = answer(THEIRS, prompts(30), reward, seed=6)
    found = compare(ours, theirs)
    assert found.kl.value == pytest.approx(
        float(torch.cat([(b["old_logp"] - b["ref_logp"]).masked_fill(~b.mask, 0).sum(-1) for b in ours]).mean())
    )
    assert compare(theirs, theirs).kl is None  # no reference's log-probs in these


def test_another_temperature_has_no_kl_and_all_the_rest():
    found = evaluate(OURS, THEIRS, prompts(30), reward, temperature=0.5)
    assert found.kl is None
    assert [e.name for e in found.estimates()] == [
        "reward",
        "reference/reward",
        "reward/difference",
        "win_rate",
        "completions/mean_length",
        "reference/completions/mean_length",
        "completions/finished",
        "reference/completions/finished",
    ]


def test_greedy_answers_are_the_most_likely_tokens():
    found = evaluate(OURS, THEIRS, prompts(10), reward, temperature=0)
    first = torch.cat([b.response[:, 0, 0] for b in found.ours])
    assert torch.equal(first, OURS.model.logits[prompts(10).prompt[:, 0]].argmax(-1))


def test_what_cannot_be_compared_is_refused():
    ours, theirs = answer(OURS, prompts(4), reward), answer(THEIRS, prompts(4, seed=9), reward)
    assert not torch.equal(prompts(4).prompt, prompts(4, seed=9).prompt)
    with pytest.raises(ValueError, match="answers to different prompts"):
        compare(ours, theirs)
    with pytest.raises(ValueError, match=r"reward: found shape \[4\], expected one number a response, \[4, 1\]"):
        answer(OURS, prompts(4), lambda batch: torch.zeros(len(batch)))
    with pytest.raises(ValueError, match="NaN"):
        answer(OURS, prompts(4), lambda batch: torch.full((len(batch), 1), torch.nan))
    with pytest.raises(ValueError, match="samples_per_prompt: found 0"):
        answer(OURS, prompts(4), reward, samples_per_prompt=0)
    with pytest.raises(ValueError, match="prompts: found none"):
        answer(OURS, prompts(0), reward)
