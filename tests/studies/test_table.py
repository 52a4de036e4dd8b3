import pytest
import torch

from modeseek.data.worlds import binned_cauchy, bump
from modeseek.objectives import DPO, IPO, PPO, RWR, SFT, PolicyGradient
from modeseek.stages import all_pairs, best, group_mean, refer, score
from modeseek.studies.worlds.table import (
    Dials,
    Ledger,
    Table,
    forced,
    pair_standing,
    rewarded,
    standing,
    streams,
    train,
    uniform,
)

REFERENCE, REWARD = binned_cauchy(), bump(70)


def start(seeds: int, contexts: int = 1) -> Table:
    return Table(REFERENCE.log().expand(seeds, contexts, 100))


def trained(seeds, objective, stages, *, passes=1, minibatch=None, steps=12, rate=0.05, contexts=2, prompts=4, k=5):
    """The table after on-policy training on R1."""
    policy, rngs = start(len(seeds), contexts), streams(seeds, "samples")
    where = torch.arange(prompts) % contexts

    def source():
        prompt = policy.prompts(where.expand(len(seeds), prompts))
        return policy.sample(prompt, uniform(rngs, prompts, k).flatten(0, 1))

    stages = [score(rewarded(REWARD[None])), refer(start(len(seeds), contexts)), *stages]
    dials = Dials(steps=steps, learning_rate=rate, minibatch=minibatch, passes=passes)
    train(policy, objective, source, stages, dials, seeds)
    return policy.logits.detach()


METHODS = {
    "best of n": (SFT(), [best]),
    "rwr": (RWR(beta=0.5), []),
    "dpo on all pairs": (DPO(), [all_pairs()]),
    "ipo on all pairs": (IPO(), [all_pairs()]),
    "ppo": (PPO(), [group_mean]),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_seed_alone_is_its_row_among_others(name):
    objective, stages = METHODS[name]
    together = trained([3, 5, 8], objective, stages, passes=2, minibatch=2)
    for i, seed in enumerate([3, 5, 8]):
        alone = trained([seed], objective, stages, passes=2, minibatch=2)
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-9)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_a_seed_whose_pairs_tie_steps_as_it_would_alone():
    # seed 0 has one pair that ties from the start, seed 1 never ties; with momentum a skipped step would show
    def run(actions: torch.Tensor):
        policy = start(len(actions))
        prompt = policy.prompts(torch.zeros(len(actions), 2, dtype=torch.long))
        data = forced(prompt, actions.flatten(0, 1))
        stages = [score(rewarded(REWARD[None])), refer(start(len(actions))), all_pairs()]
        train(policy, DPO(), lambda: data, stages, Dials(steps=9, minibatch=1), range(len(actions)))
        return policy.logits.detach()

    actions = torch.tensor([[[70, 0], [3, 3]], [[60, 10], [65, 20]]])
    torch.testing.assert_close(run(actions)[0], run(actions[:1])[0], rtol=0, atol=1e-9)


def test_ppo_is_the_policy_gradient_where_every_sample_is_fresh():
    ppo = trained([1, 2], PPO(), [group_mean])
    torch.testing.assert_close(ppo, trained([1, 2], PolicyGradient(), [group_mean]), rtol=0, atol=1e-9)


def test_a_stale_policy_gradient_is_refused():
    with pytest.raises(ValueError, match="at most 0 steps old, but passes: 2"):
        trained([1], PolicyGradient(), [group_mean], passes=2)
    with pytest.raises(ValueError, match="minibatch: 2 make 2 steps"):
        trained([1], PolicyGradient(), [group_mean], minibatch=2)


def test_one_step_of_supervised_learning_moves_logits_by_the_closed_form():
    # the gradient of -log p(a) is p - onehot(a); Adam's first step is lr g / (|g| + 1e-8)
    policy = Table(torch.tensor([[[0.2, -0.3, 0.5]]]))
    p = policy.logits.detach()[0, 0].softmax(-1)
    gradient = p - torch.tensor([0.0, 1.0, 0.0])
    wanted = policy.logits.detach()[0, 0] - 0.1 * gradient / (gradient.abs() + 1e-8)
    data = forced(torch.zeros(1, 1, dtype=torch.long), torch.tensor([[1]]))
    train(policy, SFT(), lambda: data, [], Dials(steps=1, learning_rate=0.1), [0])
    torch.testing.assert_close(policy.logits.detach()[0, 0], wanted, rtol=0, atol=1e-7)


def test_reuse_and_minibatches_say_how_many_rounds_are_drawn():
    policy, rounds = start(2), []

    def source():
        rounds.append(1)
        return forced(policy.prompts(torch.zeros(2, 6, dtype=torch.long)), torch.full((12, 1), 70))

    steps = []
    done = train(
        policy, SFT(), source, [], Dials(steps=8, minibatch=2, passes=2), [0, 1], lambda at: steps.append(at.step)
    )
    # six prompts in minibatches of two, twice: six steps a round, so eight steps need two rounds
    assert (len(rounds), done.rounds, done.step) == (2, 2, 8)
    assert steps == list(range(9))


def test_each_pass_visits_every_prompt_once():
    policy = Table(torch.zeros(1, 6, 2))
    seen = []

    class Watching(Table):
        def logp(self, batch):
            seen.append(batch.prompt[:, 0].tolist())
            return super().logp(batch)

    watching = Watching(policy.logits.detach())
    data = forced(watching.prompts(torch.arange(6)[None]), torch.zeros(6, 1, dtype=torch.long))
    train(watching, SFT(), lambda: data, [], Dials(steps=6, minibatch=2), [0])
    assert [len(s) for s in seen] == [2] * 6
    assert sorted(sum(seen[:3], [])) == sorted(sum(seen[3:], [])) == list(range(6))


def test_streams_differ_between_seeds_and_purposes_and_agree_otherwise():
    a, b, other = (uniform(streams([1, 2], purpose), 4) for purpose in ("data", "data", "samples"))
    assert torch.equal(a, b)
    assert not torch.equal(a[0], a[1]) and not torch.equal(a, other)


def test_samples_have_the_frequencies_of_the_policy():
    policy = start(1)
    batch = policy.sample(torch.zeros(1, 1, dtype=torch.long), uniform(streams([4], "x"), 200_000))
    share = torch.bincount(batch.response.flatten(), minlength=100) / 200_000
    # five standard errors of a share near 0.08 are 0.003
    assert (share - REFERENCE).abs().max() < 0.003


def test_expectations_are_the_known_sums():
    # half of the mass at a reward of one, where the reference has a quarter: KL = ln 2 / 2 + ln(2/3) / 2
    p, ref = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.25, 0.75]]]).log()
    row = standing(p, ref, torch.tensor([[[1.0, 0.0]]]))
    two, three = torch.tensor(2.0).log(), torch.tensor(3.0).log()
    assert float(row["reward"]) == 0.5
    torch.testing.assert_close(row["kl"], (two + two - three)[None] / 2)
    torch.testing.assert_close(row["kl_forward"], (-0.25 * two + 0.75 * (three - two))[None])
    torch.testing.assert_close(row["entropy"], two[None])


def test_pairs_are_averaged_within_their_seed_by_weight():
    policy = Table(torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]]]))
    pairs = forced(torch.tensor([[0], [1], [1]]), torch.tensor([[0, 1], [0, 1], [1, 0]]))
    pairs = pairs.fill(ref_logp=torch.full((3, 2, 1), -torch.tensor(2.0, dtype=torch.float64).log()))
    row = pair_standing(policy, pairs, torch.tensor([0, 1, 1]))
    # seed 1: log p(0) - log p(1) = 1, once in either direction
    torch.testing.assert_close(row["margin"], torch.zeros(2, dtype=torch.float64))
    p = torch.tensor([1.0, 0.0], dtype=torch.float64).log_softmax(-1)
    torch.testing.assert_close(row["logp_chosen"][1], p.mean())


def test_the_ledger_keeps_a_row_of_each_seed_at_the_first_and_the_last_step():
    ledger = Ledger([7, 9], steps=5, every=2)
    for step in range(6):
        if ledger.due(step):
            ledger.add(step, {"x": torch.tensor([1.0, 2.0]), "samples": 3 * step})
    assert [row["step"] for row in ledger.rows if row["seed"] == 9] == [0, 2, 4, 5]
    assert ledger.rows[-1] == {"seed": 9, "step": 5, "x": 2.0, "samples": 15}
