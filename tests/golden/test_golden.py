"""Twenty seeded steps of each method in float64: a refactor leaves these losses as they are.

To renew them after a change that is meant to change them: `python tests/golden/test_golden.py`.
"""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from modeseek.batch import Batch
from modeseek.objectives import DPO, IPO, KTO, PPO, RWR, SFT, ActorCriticPPO, HyPO, PolicyGradient
from modeseek.ops import seq
from modeseek.policies.gpt import gpt_policy
from modeseek.sources import hybrid, offline, on_policy
from modeseek.stages import (
    best,
    best_worst,
    chosen,
    gae,
    group_mean,
    group_std,
    kl_per_token,
    kl_shaped,
    label_pairs,
    leave_one_out,
    mismatched_kl,
    recall,
    recall_value,
    refer,
    score,
)
from modeseek.train import Steps, fit
from wide import WithValue

STORED = Path(__file__).with_name("losses.json")
VOCAB = 11


def pairs(n=16):
    rng = torch.Generator().manual_seed(0)
    word = lambda: torch.randint(1, VOCAB, (int(torch.randint(1, 5, (1,), generator=rng)),), generator=rng).tolist()
    return Batch.of([word() for _ in range(n)], [[[*word(), 0], [*word(), 0]] for _ in range(n)])


def reward(batch):
    return seq((batch.response == 5).double(), batch.mask)


def method(name, policy, ref):
    told, own = offline(pairs(), 8), lambda k: on_policy(policy, pairs(), 8, k)
    scored = score(reward)
    return {
        "pref_ft": (SFT(), told, [chosen]),
        "best_of_n": (SFT(), own(4), [scored, best]),
        "rwr": (RWR(), own(4), [scored]),
        "dpo": (DPO(), told, [refer(ref)]),
        "ipo": (IPO(), told, [refer(ref)]),
        "online_dpo": (DPO(), own(4), [scored, best_worst, refer(ref)]),
        "hypo": (HyPO(), hybrid(policy, pairs(), 8, 2), [refer(ref)]),
        "reinforce": (PolicyGradient(), own(4), [scored, refer(ref), recall(policy), kl_shaped(0.05), group_mean]),
        "rloo": (PolicyGradient(), own(4), [scored, refer(ref), recall(policy), kl_shaped(0.05), leave_one_out]),
        "grpo": (
            PPO(kl=0.04, logp_reduction="mean"),
            own(4),
            [scored, refer(ref), recall(policy), group_mean, group_std],
        ),
        "ppo": (PPO(), own(4), [scored, refer(ref), recall(policy), kl_shaped(0.05), group_mean]),
        "kto": (KTO(), told, [label_pairs, refer(ref)]),
        "actor_critic_ppo": (
            ActorCriticPPO(value_clip=0.2),
            own(4),
            [scored, refer(ref), recall(policy), recall_value(policy), kl_per_token(0.05), gae()],
        ),
    }[name]


NAMES = ["pref_ft", "best_of_n", "rwr", "dpo", "ipo", "online_dpo", "hypo", "reinforce", "rloo", "grpo", "ppo"]
NAMES += ["kto", "actor_critic_ppo"]


def losses(name):
    torch.manual_seed(0)
    policy = gpt_policy(VOCAB, eos=0, max_new=4, width=16).double()
    ref = copy.deepcopy(policy).requires_grad_(False)
    if name == "actor_critic_ppo":
        policy = WithValue(policy, prompts=VOCAB)
    objective, source, stages = method(name, policy, ref)
    rows = []
    reused = {"passes": 2, "minibatch": 4} if name in ("grpo", "ppo", "actor_critic_ppo") else {}
    fit(
        policy,
        objective,
        source,
        stages,
        Steps(max_steps=20, learning_rate=1e-2, microbatch=3, **reused),
        before=[mismatched_kl(policy, ref)] if name == "kto" else [],
        watch=lambda loop, row: rows.append(row["loss"]),
    )
    return rows


@pytest.mark.parametrize("name", NAMES)
def test_the_losses_are_the_stored_ones(name):
    assert losses(name) == pytest.approx(json.loads(STORED.read_text())[name], rel=1e-9, abs=1e-12)


if __name__ == "__main__":
    torch.set_num_threads(1)
    STORED.write_text(json.dumps({name: losses(name) for name in NAMES}, indent=1) + "\n")
