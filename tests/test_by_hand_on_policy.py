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
