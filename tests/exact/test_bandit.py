"""On the bandit the answer is known: pi* = pi_ref exp(r / beta) / Z."""

import copy

import pytest
import torch

from modeseek.batch import Batch
from modeseek.objectives import DPO, IPO, PPO, RWR, SFT, BradleyTerry, HyPO, PolicyGradient
from modeseek.policies.bandit import Bandit
from modeseek.sources import hybrid, offline, on_policy
from modeseek.stages import (
    RunningKL,
    best,
    best_worst,
    chosen,
    group_mean,
    group_std,
    kl_shaped,
    leave_one_out,
    recall,
    refer,
    score,
)
from modeseek.train import Steps, fit

A = 6
REWARD = torch.linspace(0, 2, A)
THE_PROMPT = torch.zeros(1, 1, dtype=torch.long)


def reward(batch):
    return REWARD[batch.response[..., 0]]


def prompts(n):
    return Batch.of([[0]] * n, [[] for _ in range(n)])


def pairs(n):
    """Bradley-Terry preferences over uniform actions."""
    rng = torch.Generator().manual_seed(0)
    y = torch.randint(A, (n, 2), generator=rng)
    win = torch.rand(n, generator=rng) < torch.sigmoid(REWARD[y[:, 0]] - REWARD[y[:, 1]])
    y = torch.where(win[:, None], y, y.flip(1))[..., None]
    return Batch.of([[0]] * n, y.tolist())


def probabilities(policy):
    return policy.all_logp(THE_PROMPT)[0].detach().exp()


def tilted(reference, beta):
    return (reference.logits[0].detach() + REWARD / beta).softmax(-1)


def reference_policy():
    return Bandit(torch.randn(1, A, generator=torch.Generator().manual_seed(3)) * 0.3)


def test_dpo_finds_the_tilted_reference():
    reference = reference_policy()
    policy = copy.deepcopy(reference)
    fit(
        policy,
        DPO(0.5),
        offline(pairs(30_000), 2048),
        [refer(reference)],
        Steps(max_steps=150, learning_rate=0.05, schedule="linear"),
    )
    assert (probabilities(policy) - tilted(reference, 0.5)).abs().sum() / 2 < 0.05


@pytest.mark.parametrize("baseline", [group_mean, leave_one_out])
def test_policy_gradient_with_the_kl_in_the_reward_finds_the_tilted_reference(baseline):
    reference = reference_policy()
    policy = copy.deepcopy(reference)
    source = on_policy(policy, prompts(64), 64, 8)
    stages = [score(reward), refer(reference), recall(policy), kl_shaped(0.5), baseline]
    steps = Steps(max_steps=200, learning_rate=0.05, schedule="linear")
    fit(policy, PolicyGradient(), source, stages, steps)
    assert (probabilities(policy) - tilted(reference, 0.5)).abs().sum() / 2 < 0.05


def test_a_reward_model_is_fitted_by_the_same_loop():
    class Table(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Parameter(torch.zeros(A))

        def score(self, batch):
            return self.table[batch.response[..., 0]]

    model = Table()
    fit(
        model,
        BradleyTerry(),
        offline(pairs(30_000), 2048),
        [],
        Steps(max_steps=150, learning_rate=0.05, schedule="linear"),
    )
    learnt = model.table.detach() - model.table.detach().mean()
    torch.testing.assert_close(learnt, REWARD - REWARD.mean(), atol=0.06, rtol=0)


def methods(policy, reference):
    told, own = offline(pairs(512), 64), lambda k: on_policy(policy, prompts(64), 64, k)
    kl = RunningKL()
    return {
        "pref-ft": (SFT(), told, [chosen]),
        "best of 4": (SFT(), own(4), [score(reward), best]),
        "rwr": (RWR(0.5), own(4), [score(reward)]),
        "dpo": (DPO(), told, [refer(reference)]),
        "ipo": (IPO(), told, [refer(reference)]),
        "online dpo": (DPO(), own(2), [score(reward), best_worst, refer(reference)]),
        "online ipo": (IPO(), own(2), [score(reward), best_worst, refer(reference)]),
        "hypo": (HyPO(), hybrid(policy, pairs(512), 64, 2), [refer(reference)]),
        "hypo loo": (HyPO(kl_baseline="leave_one_out"), hybrid(policy, pairs(512), 64, 2), [refer(reference)]),
        "hypo mean": (HyPO(kl_baseline="running_mean"), hybrid(policy, pairs(512), 64, 2), [refer(reference), kl]),
        "reinforce": (PolicyGradient(), own(4), [score(reward), group_mean]),
        "rloo": (PolicyGradient(), own(4), [score(reward), leave_one_out]),
        "grpo": (
            PPO(kl=0.01, logp_reduction="mean"),
            own(4),
            [score(reward), refer(reference), recall(policy), group_mean, group_std],
        ),
        "ppo": (PPO(), own(4), [score(reward), recall(policy), group_mean]),
    }


@pytest.mark.parametrize("name", methods(Bandit(torch.zeros(1, A)), Bandit(torch.zeros(1, A))))
def test_every_method_improves_the_bandit(name):
    reference = Bandit(torch.zeros(1, A))
    policy = copy.deepcopy(reference)
    objective, source, stages = methods(policy, reference)[name]
    before = probabilities(policy) @ REWARD
    reused = {"passes": 2, "minibatch": 32} if name in ("ppo", "grpo") else {}
    steps = Steps(max_steps=100, learning_rate=0.05, microbatch=16, **reused)
    fit(policy, objective, source, stages, steps)
    assert probabilities(policy) @ REWARD > before + 0.2


def test_ppo_with_one_step_a_round_is_policy_gradient():
    def trained(objective, extra):
        policy = reference_policy()
        stages = [score(reward), *extra(policy), group_mean]
        steps = Steps(max_steps=20, learning_rate=0.05)
        fit(policy, objective, on_policy(policy, prompts(16), 16, 4), stages, steps)
        return policy.logits.detach()

    ppo = trained(PPO(), lambda policy: [recall(policy)])
    torch.testing.assert_close(ppo, trained(PolicyGradient(), lambda policy: []), atol=1e-6, rtol=0)
