"""One prompt, two responses of two tokens; the last token of the second is padding. Every number worked out here."""

import math

import pytest
import torch

from modeseek.objectives import DPO, IPO, PPO, RWR, SFT, BradleyTerry, HyPO, PolicyGradient
from modeseek.ops import kl_k1, kl_k2, kl_k3


def t(*x):
    return torch.tensor(x, dtype=torch.float64)


LOGP = t([[-1, -2], [-3, 9]])  # [P=1, K=2, T=2]; sums -3 and -3
REF = t([[-1.5, -2.5], [-2, 9]])  # sums -4 and -2, so the log-ratios are +1 and -1
MASK = torch.tensor([[[True, True], [True, False]]])
BOTH = torch.tensor([[True, True]])


def is_(loss, want):
    torch.testing.assert_close(loss.per_prompt, t(want))


def test_sft():
    is_(SFT()(LOGP, MASK, BOTH), (3 + 3) / 2)
    is_(SFT(logp_reduction="mean")(LOGP, MASK, BOTH), (3 / 2 + 3 / 1) / 2)
    is_(SFT()(LOGP, MASK, torch.tensor([[True, False]])), 3)  # the mean runs over present responses


def test_dpo():
    is_(DPO(0.5)(LOGP, REF, MASK), math.log1p(math.exp(-0.5 * (1 - -1))))
    smooth = 0.9 * math.log1p(math.exp(-1)) + 0.1 * math.log1p(math.exp(1))
    is_(DPO(0.5, label_smoothing=0.1)(LOGP, REF, MASK), smooth)
    metrics = DPO(0.5)(LOGP, REF, MASK).metrics
    assert {k: v.item() for k, v in metrics.items()} == {
        "logps/chosen": -3,
        "logps/rejected": -3,
        "rewards/chosen": 0.5,
        "rewards/rejected": -0.5,
        "rewards/margins": 1,
        "rewards/accuracies": 1,
    }


def test_a_pair_that_ties_is_half_in_order():
    """As every pair is where the policy is the reference: neither right nor wrong."""
    assert DPO(0.5)(LOGP, LOGP, MASK).metrics["rewards/accuracies"].item() == 0.5


def test_ipo():
    is_(IPO(0.25)(LOGP, REF, MASK), (2 - 2.0) ** 2)
    is_(IPO(0.5)(LOGP, REF, MASK), (2 - 1.0) ** 2)
    is_(IPO(0.5, logp_reduction="mean")(LOGP, REF, MASK), (0.5 - -1 - 1.0) ** 2)  # token means +1/2 and -1


def test_rwr():
    is_(RWR(0.5)(LOGP, t([1, 0]), MASK, BOTH), (math.exp(2) * 3 + 1 * 3) / 2)
    is_(RWR(0.1)(LOGP, t([1, 0]), MASK, BOTH), (20 * 3 + 1 * 3) / 2)  # exp(10) is clipped


def test_hypo():
    """Group [chosen, rejected, fresh, fresh]; the fresh responses have log-ratios 2 and 4 and log-probs -1 and -5."""
    logp, ref = t([[-1, -2], [-3, 9], [-1, 0], [-2, -3]]), t([[-1.5, -2.5], [-2, 9], [-3, 0], [-4, -5]])
    mask = torch.tensor([[[True, True], [True, False], [True, False], [True, True]]])
    fresh, there = torch.tensor([[False, False, True, True]]), torch.ones(1, 4, dtype=torch.bool)
    pairs = math.log1p(math.exp(-0.5 * 2))
    given = {"logp": logp, "ref_logp": ref, "mask": mask, "fresh": fresh, "present": there}
    is_(HyPO(0.5, kl=0.1)(**given), pairs + 0.1 * (2 * -1 + 4 * -5) / 2)
    loo = (2 - 4) * -1 + (4 - 2) * -5
    is_(HyPO(0.5, kl=0.1, kl_baseline="leave_one_out")(**given), pairs + 0.1 * loo / 2)
    mean = (2 - 3) * -1 + (4 - 3) * -5
    is_(HyPO(0.5, kl=0.1, kl_baseline="running_mean")(**given, baseline=t(3)), pairs + 0.1 * mean / 2)
    assert HyPO()(**given).metrics["kl"].item() == 3


def test_policy_gradient():
    advantage = t([[1, 1], [-1, 0]])
    is_(PolicyGradient()(LOGP, advantage, MASK, BOTH), -(-3 + 3) / 2)
    old = LOGP - t([[0.5, 0.5], [-1, 0]])  # response ratios e and 1/e
    gains = lambda a, b: -(-3 * a + 3 * b) / 2
    is_(PolicyGradient("ratio")(LOGP, advantage, MASK, BOTH, old), gains(math.e, 1 / math.e))
    is_(PolicyGradient("clip")(LOGP, advantage, MASK, BOTH, old), gains(1, 1 / math.e))
    is_(PolicyGradient("none")(LOGP, advantage, MASK, BOTH, old), gains(1, 1))


def test_ppo():
    advantage = t([[1, 1], [-1, 0]])
    old = LOGP - t([[0.5, 0.0], [-0.5, 0]])  # ratios e^.5, 1, e^-.5
    loss = PPO(0.2)(LOGP, old, advantage, MASK, BOTH)
    is_(loss, -((1.2 + 1) + -0.8) / 2)  # both clipped: pessimism
    assert loss.metrics["clip_fraction"].item() == (0.5 + 1) / 2
    is_(PPO(0.2, clip_high=0.3)(LOGP, old, advantage, MASK, BOTH), -((1.3 + 1) + -0.8) / 2)
    is_(PPO(0.2, logp_reduction="mean")(LOGP, old, advantage, MASK, BOTH), -((1.2 + 1) / 2 - 0.8) / 2)
    k3 = lambda d: math.exp(-d) - 1 + d  # d = logp - ref_logp: .5, .5 and -1
    kl = (2 * k3(0.5) + k3(-1)) / 2
    is_(PPO(0.2, kl=0.1)(LOGP, old, advantage, MASK, BOTH, REF), -((1.2 + 1) + -0.8) / 2 + 0.1 * kl)
    with pytest.raises(ValueError, match="refer"):
        PPO(kl=0.1)(LOGP, old, advantage, MASK, BOTH)


def test_bradley_terry():
    is_(BradleyTerry()(t([2, 1])), math.log1p(math.exp(-1)))


def test_kl_estimators():
    """pi = (3/4, 1/4) against (1/2, 1/2): KL = 3/4 log 3/2 + 1/4 log 1/2. k1 and k3 average to it, k2 does not."""
    p, logp, ref = t(0.75, 0.25), t(0.75, 0.25).log(), t(0.5, 0.5).log()
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert (p * kl_k1(logp, ref)).sum().item() == pytest.approx(kl)
    assert (p * kl_k3(logp, ref)).sum().item() == pytest.approx(kl)
    k2 = (0.75 * math.log(1.5) ** 2 + 0.25 * math.log(0.5) ** 2) / 2
    assert (p * kl_k2(logp, ref)).sum().item() == pytest.approx(k2) != pytest.approx(kl)


def test_label_smoothing_of_one_half_is_refused():
    with pytest.raises(ValueError, match=r"label_smoothing: 0.5"):
        DPO(label_smoothing=0.5)
