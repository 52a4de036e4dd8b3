"""Every method, as source, stages, objective and minibatch stages, on a bandit of six actions.

The rows are those of the shipped configs. Each learns something in six steps; where what it should learn is known
in closed form, exact/ has the test.
"""

import copy

import pytest
import torch

from modeseek.batch import Batch
from modeseek.objectives import (
    AOT,
    APO,
    BCO,
    CISPO,
    CPO,
    DPO,
    DPOP,
    EXO,
    FDPO,
    GSPO,
    IPO,
    KTO,
    LDDPO,
    NCA,
    ORPO,
    PPO,
    REBEL,
    RWR,
    SFT,
    SPPO,
    XPO,
    ActorCriticPPO,
    ChiPO,
    DiscoPOP,
    Hinge,
    HybridDPO,
    HyPO,
    LengthDPO,
    NegativeBoN,
    OffsetDPO,
    PlackettLuce,
    PolicyGradient,
    RobustDPO,
    SimPO,
    SLiC,
    SquaredPO,
    UnpairedAOT,
    WithKL,
    WithSFT,
)
from modeseek.policies.bandit import Bandit
from modeseek.sources import hybrid, offline, on_policy
from modeseek.stages import AdaptiveKL as adaptive_kl
from modeseek.stages import (
    against_own,
    all_pairs,
    best,
    best_random,
    best_second,
    best_sigma,
    best_worst,
    challenge,
    chosen,
    duel,
    gae,
    greedy_baseline,
    group_mean,
    group_std,
    high_entropy,
    keep_good,
    keep_varied,
    kl_per_token,
    kl_shaped,
    label_pairs,
    leave_one_out,
    mismatched_kl,
    mixed_pairs,
    moving_reference,
    no_baseline,
    on_policy_weight,
    rank_log_ratios,
    rank_margins,
    ranked,
    recall,
    recall_value,
    refer,
    refer_old,
    reward_to_go,
    running_kl,
    running_mean,
    running_midpoint,
    score,
    share_tokens,
    standardise_reward,
    truncated_is,
    whiten,
    win_rate,
)
from modeseek.train import Steps, fit
from wide import WithValue

A, P = 6, 24
REWARD = torch.linspace(0, 2, A, dtype=torch.float64)


def reward(batch):
    return REWARD[batch.response[..., 0]]


def prompts():
    return Batch.of([[0]] * P, [[]] * P)


def pairs():
    """Bradley-Terry preferences over uniform actions, with the gap of the rewards."""
    rng = torch.Generator().manual_seed(0)
    y = torch.randint(A, (P, 2), generator=rng)
    win = torch.rand(P, generator=rng) < torch.sigmoid(4 * (REWARD[y[:, 0]] - REWARD[y[:, 1]]))
    y = torch.where(win[:, None], y, y.flip(1))
    return Batch.of([[0]] * P, y[..., None].tolist()).fill(margin=(REWARD[y[:, 0]] - REWARD[y[:, 1]]).abs())


CONTRASTIVE = {
    "dpo": DPO(),
    "cdpo": DPO(label_smoothing=0.1),
    "dpo_norm": DPO(beta=5.0, logp_reduction="mean"),
    "robust_dpo": RobustDPO(),
    "ipo": IPO(),
    "hinge": Hinge(),
    "slic": SLiC(),
    "simpo": SimPO(),
    "orpo": ORPO(beta=1.0),
    "cpo": CPO(),
    "dpop": DPOP(penalty=1.0),
    "ld_dpo": LDDPO(),
    "length_dpo": LengthDPO(),
    "offset_dpo": OffsetDPO(offset=0.1),
    "hybrid_dpo": HybridDPO(),
    "exo": EXO(),
    "nca": NCA(),
    "apo_zero": APO(),
    "disco_pop": DiscoPOP(beta=1.0, tau=1.0),
    "squared_po": SquaredPO(),
    "chipo": ChiPO(),
    "jsd_dpo": FDPO(),
    "forward_kl_dpo": FDPO(divergence="alpha", alpha=1.0),
    "rpo": WithSFT(nll=0.1),
    "sppo_hard": SPPO(beta=0.1),
}


def methods(policy, ref):
    """name: (objective, source, stages, before)"""
    told, own, both = offline(pairs(), P), lambda k: on_policy(policy, prompts(), P, k), hybrid(policy, pairs(), P, 3)
    scored, refers, recalls = score(reward), refer(ref), recall(policy)
    shaped = [scored, refers, recalls, kl_shaped(0.05)]
    sampled = [scored, recalls]
    critic = [scored, refers, recalls, recall_value(policy), kl_per_token(0.05), gae()]
    good = [label_pairs, refers]
    table = {name: (o, told, [refers], []) for name, o in CONTRASTIVE.items()}
    table |= {
        f"online_{name}": (CONTRASTIVE[name], own(4), [scored, best_worst, refers], []) for name in ("ipo", "simpo")
    }
    selections = {"best_second": best_second, "best_sigma": best_sigma(), "best_random": best_random()}
    selections |= {"best_worst": best_worst, "all_pairs": all_pairs()}
    table |= {f"online_dpo_{name}": (DPO(), own(4), [scored, s, refers], []) for name, s in selections.items()}
    return table | {
        "pref_ft": (SFT(), told, [chosen], []),
        "binary_feedme": (SFT(), told, [label_pairs, keep_good], []),
        "best_of_n": (SFT(), own(4), [scored, best], []),
        "rwr": (RWR(0.5), own(4), [scored], []),
        "rwr_standardised": (RWR(1.0, clip=float("inf")), own(4), [scored, standardise_reward], []),
        "best_of_n_worst": (NegativeBoN(losers="worst"), own(4), [scored, ranked], []),
        "best_of_n_mean": (NegativeBoN(), own(4), [scored, ranked], []),
        "best_of_n_complement": (NegativeBoN(losers="complement"), own(4), [scored, ranked], []),
        "wpo": (DPO(), told, [refers], [on_policy_weight(policy)]),
        "tr_dpo": (DPO(), told, [], [moving_reference(policy, mix=0.5, every=10)]),
        "kto": (KTO(), told, good, [mismatched_kl(policy, ref)]),
        "bco": (BCO(), told, good, [running_midpoint(policy)]),
        "aot": (AOT(), told, [refers], [rank_margins(policy)]),
        "aot_unpaired": (UnpairedAOT(), told, [refers], [rank_log_ratios(policy)]),
        "plackett_luce": (PlackettLuce(), own(4), [scored, ranked, refers], []),
        "rebel": (REBEL(), own(2), sampled, []),
        "sppo": (SPPO(beta=0.1), own(4), [scored, win_rate, recalls, refer_old], []),
        "spin": (DPO(), both, [against_own, refers], []),
        "mixed_dpo": (DPO(), both, [scored, mixed_pairs(), refers], []),
        "xpo": (XPO(alpha=1e-3), own(1), [challenge(ref), scored, best_worst, refers], []),
        "nash_md": (PolicyGradient(), own(2), [challenge(ref), scored, duel, no_baseline], []),
        "nash_self_play": (PolicyGradient(), own(4), [scored, duel, no_baseline], []),
        "hypo": (HyPO(), both, [refers], []),
        "hypo_loo": (HyPO(kl_baseline="leave_one_out"), both, [refers], []),
        "hypo_running_mean": (HyPO(kl_baseline="running_mean"), both, [refers, running_kl()], []),
        "hypo_rao_blackwell": (HyPO(kl_estimator="rao_blackwell"), both, [refers], []),
        "hyipo": (WithKL(IPO()), both, [refers], []),
        "reinforce": (PolicyGradient(), own(4), [*shaped, running_mean()], []),
        "rloo": (PolicyGradient(), own(4), [*shaped, leave_one_out], []),
        "remax": (PolicyGradient(), own(1), [scored, greedy_baseline(policy, reward)], []),
        "reinforce_pp": (PPO(), own(1), [scored, refers, recalls, kl_per_token(0.05), reward_to_go(), whiten], []),
        "grpo": (PPO(kl=0.01, logp_reduction="mean"), own(4), [*sampled, refers, group_mean, group_std], []),
        "dr_grpo": (PPO(), own(4), [*sampled, group_mean], []),
        "dapo": (
            PPO(clip_high=0.28, logp_reduction="minibatch_mean"),
            own(4),
            [scored, keep_varied, recalls, group_mean, group_std],
            [share_tokens],
        ),
        "gspo": (GSPO(), own(4), [*sampled, group_mean, group_std], []),
        "cispo": (CISPO(), own(4), [*sampled, group_mean, group_std], []),
        "tis": (PPO(), own(4), [*sampled, group_mean, truncated_is()], []),
        "high_entropy": (PPO(), own(4), [*sampled, group_mean, high_entropy(policy, 0.2)], []),
        "ppo_entropy": (PPO(entropy=0.01), own(4), [*sampled, group_mean], []),
        "ppo": (ActorCriticPPO(value_clip=0.2), own(4), critic, []),
        "ppo_adaptive_kl": (
            ActorCriticPPO(),
            own(4),
            [scored, refers, recalls, recall_value(policy), adaptive_kl(target=0.5, horizon=1000.0), gae(), whiten],
            [],
        ),
    }


def model():
    return WithValue(Bandit(torch.zeros(1, A, dtype=torch.float64)), prompts=1)


NAMES = list(methods(model(), model()))


@pytest.mark.parametrize("name", NAMES)
def test_every_method_improves_the_bandit(name):
    torch.manual_seed(0)
    policy = model()
    ref = copy.deepcopy(policy.policy).requires_grad_(False)
    policy.reference[0] = ref
    objective, source, stages, before = methods(policy, ref)[name]
    reused = {"passes": 2, "minibatch": P // 2} if isinstance(objective, PPO | ActorCriticPPO | GSPO | CISPO) else {}
    fit(
        policy,
        objective,
        source,
        stages,
        Steps(max_steps=6, learning_rate=0.3, **reused),
        before=before,
    )
    earned = float(policy.policy.logits[0].detach().softmax(-1) @ REWARD)
    assert earned > 1.05, earned  # it begins at 1


def test_apo_down_lowers_both_responses():
    """Its claim is about neither reward: where both are worse than the policy, both should fall."""
    policy = model()
    ref = copy.deepcopy(policy.policy).requires_grad_(False)
    batch = Batch.of([[0]] * P, [[[0], [1]]] * P)
    fit(policy, APO(1.0, anchor="down"), offline(batch, P), [refer(ref)], Steps(max_steps=40, learning_rate=0.05))
    p = policy.policy.logits[0].softmax(-1).tolist()
    assert p[1] < p[0] < 1 / A < p[2]  # the rejected one further


def test_there_are_at_least_thirty_five_methods():
    assert len(NAMES) >= 35
