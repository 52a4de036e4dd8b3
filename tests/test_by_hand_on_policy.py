"""Two responses of two tokens and of one, ratios e^(1/2), 1 and e^(-1/2), advantages 1, 1 and -1."""

import math

import pytest
import torch

from modeseek.objectives import CISPO, GSPO, PPO, SFT, ActorCriticPPO, PolicyGradient
from test_by_hand import BOTH, LOGP, MASK, is_, t

ADVANTAGE = t([[1, 1], [-1, 0]])
OLD = LOGP - t([[0.5, 0.0], [-0.5, 0]])
ROOT = math.sqrt(math.e)  # 1.6487
UP, DOWN = 1.2, 0.8  # where the clip of 0.2 leaves the first and the third ratio


def test_the_four_ways_to_average_tokens():
    loss = lambda how: PPO(0.2, logp_reduction=how)(LOGP, OLD, ADVANTAGE, MASK, BOTH, token_share=t(0.1))
    is_(loss("sum"), (-(UP + 1) + DOWN) / 2)
    is_(loss("mean"), (-(UP + 1) / 2 + DOWN) / 2)
    is_(loss("group_mean"), (-(UP + 1) + DOWN) / 3)
    is_(loss("minibatch_mean"), (-(UP + 1) + DOWN) * 0.1)
    with pytest.raises(ValueError, match="share_tokens"):
        PPO(logp_reduction="minibatch_mean")(LOGP, OLD, ADVANTAGE, MASK, BOTH)


def test_fine_tuning_on_all_tokens_of_the_minibatch_alike():
    """Log-probabilities -1, -2 and -3 of three tokens, of which the first two are one response's."""
    logp = t([[-1, -2], [-3, 0]])
    is_(SFT("minibatch_mean")(logp, MASK, BOTH, token_share=t(1 / 3)), 2.0)
    is_(SFT("group_mean")(logp, MASK, BOTH), 2.0)
    is_(SFT("mean")(logp, MASK, BOTH), (1.5 + 3) / 2)
    with pytest.raises(ValueError, match="share_tokens"):
        SFT("minibatch_mean")(logp, MASK, BOTH)


def test_the_kl_times_the_ratio_is_by_hand():
    """One token: ratio e^(1/5), pi_ref / pi e^(1/2)."""
    one, ratio, k3 = t([[-1]]), math.exp(0.2), math.exp(0.5) - 1.5
    given = (one, one - 0.2, t([[0]]), torch.tensor([[[True]]]), torch.tensor([[True]]))
    is_(PPO(kl=0.1, kl_by_ratio=True)(*given, ref_logp=one + 0.5), 0.1 * ratio * k3)
    is_(PPO(kl=0.1)(*given, ref_logp=one + 0.5), 0.1 * k3)
    with pytest.raises(ValueError, match="kl_by_ratio: true with kl: 0"):
        PPO(kl_by_ratio=True)


@pytest.mark.parametrize("by_ratio", [False, True])
def test_the_kl_times_the_ratio_has_the_reverse_gradient(by_ratio):
    """All three actions, each as often as the older policy took it: DeepSeek-V3.2's claim, and not k3's alone."""
    logits, old, ref = t(0.3, -0.2, 0.5).requires_grad_(), t(0.5, 0.3, 0.2), t(0.2, 0.2, 0.6)
    logp = logits.log_softmax(0)
    flat = lambda x: x[:, None, None]
    whole = torch.ones(3, 1, 1, dtype=torch.bool)
    given = (flat(logp), flat(old.log()), torch.zeros(3, 1, 1, dtype=torch.float64), whole, whole[..., 0])
    loss = PPO(kl=1.0, kl_by_ratio=by_ratio)(*given, ref_logp=flat(ref.log())).per_prompt
    (found,) = torch.autograd.grad((old * loss).sum(), logits, retain_graph=True)
    (reverse,) = torch.autograd.grad((logp.exp() * (logp - ref.log())).sum(), logits)
    assert torch.allclose(found, reverse, rtol=1e-12, atol=1e-14) == by_ratio


def test_a_group_mean_leaves_out_absent_responses():
    one = torch.tensor([[True, False]])
    is_(PPO(0.2, logp_reduction="group_mean")(LOGP, OLD, ADVANTAGE, MASK, one), -(UP + 1) / 2)


def test_the_entropy_bonus():
    entropy = t([[0.5, 0.25], [1.0, 9]])
    loss = PPO(0.2, entropy=0.1)(LOGP, OLD, ADVANTAGE, MASK, BOTH, entropy=entropy)
    is_(loss, (-(UP + 1) + DOWN) / 2 - 0.1 * (0.75 + 1.0) / 2)
    with pytest.raises(ValueError, match="entropy"):
        PPO(entropy=0.1)(LOGP, OLD, ADVANTAGE, MASK, BOTH)


def test_actor_and_critic():
    """Values 1, 2, 3 against returns 0, 2, 1: squared errors 1, 0 and 4, weighed by 1/2 of 0.1."""
    value, returns = t([[1, 2], [3, 9]]), t([[0, 2], [1, 9]])
    actor = (-(UP + 1) + DOWN) / 2
    loss = ActorCriticPPO(0.2)(LOGP, value, OLD, ADVANTAGE, returns, MASK, BOTH)
    is_(loss, actor + 0.05 * (1 + 0 + 4) / 2)
    assert loss.metrics["value_error"].item() == ((1 + 0) / 2 + 4) / 2


def test_the_value_clip_takes_the_worse_of_two_errors():
    """Old values 2, 2, 3.5, clip 0.2. The first value, 1, counts as 1.8 against 0; the third, 3, as 3.3 against 1."""
    value, returns, old = t([[1, 2], [3, 9]]), t([[0, 2], [1, 9]]), t([[2, 2], [3.5, 9]])
    critic = 0.05 * (1.8**2 + 0 + 2.3**2) / 2
    loss = ActorCriticPPO(0.2, value_clip=0.2)(LOGP, value, OLD, ADVANTAGE, returns, MASK, BOTH, old)
    is_(loss, (-(UP + 1) + DOWN) / 2 + critic)
    with pytest.raises(ValueError, match="recall_value"):
        ActorCriticPPO(value_clip=0.2)(LOGP, value, OLD, ADVANTAGE, returns, MASK, BOTH)
    with pytest.raises(ValueError, match="value_weight: 0.0"):
        ActorCriticPPO(value_weight=0.0)


def test_gspo():
    """Ratios of the responses: e^(1/4) over two tokens, e^(-1/2) over one."""
    is_(GSPO(0.1, 0.2)(LOGP, OLD, ADVANTAGE, MASK, BOTH), (-1.2 + 0.9) / 2)
    is_(GSPO(0.9, 0.9)(LOGP, OLD, ADVANTAGE, MASK, BOTH), (-math.exp(0.25) + math.exp(-0.5)) / 2)


def test_cispo():
    """Log-probabilities -1, -2, -3; the weights are cut and held, the logarithm carries the gradient."""
    logp = LOGP.clone().requires_grad_()
    loss = CISPO(clip_high=0.2)(logp, OLD, ADVANTAGE, MASK, BOTH)
    is_(loss, -(1.2 * 1 * -1 + 1 * 1 * -2 + (1 / ROOT) * -1 * -3) / 3)
    loss.per_prompt.sum().backward()
    torch.testing.assert_close(logp.grad, t([[-1.2, -1], [1 / ROOT, 0]]) / 3)
    is_(CISPO(clip=0.2, logp_reduction="sum")(LOGP, OLD, ADVANTAGE, MASK, BOTH), (-(-1.2 - 2) - 0.8 * 3) / 2)


def test_advantages_that_are_not_one():
    """Advantages 2, 2 and -3 where a ratio of e^(1/2) is cut to 1.2 and one of e^(-1/2) to 0.8."""
    worth = t([[2, 2], [-3, 0]])
    is_(PPO(0.2)(LOGP, OLD, worth, MASK, BOTH), (-(2 * UP + 2) + 3 * DOWN) / 2)
    assert PPO(0.2)(LOGP, OLD, worth, MASK, BOTH).metrics["clip_fraction"].item() == (1 / 2 + 1) / 2
    uncut = PPO(0.9)(LOGP, OLD, worth, MASK, BOTH)
    is_(uncut, (-(2 * ROOT + 2) + 3 / ROOT) / 2)
    assert uncut.metrics["clip_fraction"].item() == 0
    gspo = GSPO(0.1, 0.2)(LOGP, OLD, worth, MASK, BOTH)
    is_(gspo, (-1.2 * 2 + 0.9 * 3) / 2)
    assert gspo.metrics["clip_fraction"].item() == 1
    is_(GSPO(0.9, 0.9)(LOGP, OLD, worth, MASK, BOTH), (-2 * math.exp(0.25) + 3 * math.exp(-0.5)) / 2)
    is_(CISPO(clip_high=0.2)(LOGP, OLD, worth, MASK, BOTH), -(1.2 * 2 * -1 + 2 * -2 + (1 / ROOT) * -3 * -3) / 3)
    is_(PolicyGradient()(LOGP, worth, MASK, BOTH), -(2 * -1 + 2 * -2 + -3 * -3) / 2)
    first = SFT()(t([[-1, -2], [-5, 9]]), MASK, BOTH)
    assert first.metrics["logps/chosen"].item() == -3
