"""What every objective owes, checked on every kind of policy."""

import dataclasses
import typing

import pytest
import torch

from conftest import objectives
from modeseek.batch import COLUMNS
from modeseek.objectives import AnyObjective, BradleyTerry, HyPO, Objective, call, may_read, reads
from modeseek.train import LIVE, evaluate
from wide import ActorCriticPPO


def gradient(policy, objective, batch, size=None):
    policy.zero_grad()
    for part in batch.split(size):
        loss = evaluate(objective, policy, part.trim()).per_prompt
        ((loss * part.weight).sum() / batch.weight.sum()).backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_change_nothing(policy, objective, batch, size):
    whole, parts = gradient(policy, objective, batch), gradient(policy, objective, batch, size)
    assert whole.abs().max() > 0
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)


def test_one_prompt_never_sees_another(policy, objective, batch):
    with torch.no_grad():
        whole = evaluate(objective, policy, batch)
        alone = [evaluate(objective, policy, part.trim()) for part in batch.split(1)]
    torch.testing.assert_close(torch.cat([x.per_prompt for x in alone]), whole.per_prompt, rtol=1e-9, atol=1e-12)
    for name, metric in whole.metrics.items():
        torch.testing.assert_close(torch.cat([x.metrics[name] for x in alone]), metric, rtol=1e-9, atol=1e-12)


def live(policy, objective, batch):
    """What the model says, cut off from it, as leaves with a gradient."""
    names = (reads(objective) | may_read(objective)) & LIVE
    return {n: getattr(policy, n)(batch).detach().requires_grad_() for n in sorted(names)}


def with_dirt(x, batch):
    """NaN wherever there is nothing to read."""
    if not x.is_floating_point() or x.ndim == 1:
        return x
    empty = ~batch.mask if x.ndim == 3 else ~batch.present
    return x.detach().masked_fill(empty, float("nan"))


def test_nan_in_padding_is_never_read(policy, objective, batch):
    clean_live = live(policy, objective, batch)
    dirty_live = {n: with_dirt(x, batch).requires_grad_() for n, x in clean_live.items()}
    dirty_batch = batch.fill(**{n: with_dirt(x, batch) for n, x in batch.columns.items()})
    clean, dirty = call(objective, batch, clean_live), call(objective, dirty_batch, dirty_live)
    torch.testing.assert_close(dirty.per_prompt, clean.per_prompt)
    for name in clean.metrics:
        torch.testing.assert_close(dirty.metrics[name], clean.metrics[name])
    clean.per_prompt.sum().backward()
    dirty.per_prompt.sum().backward()
    for name, x in clean_live.items():
        got = dirty_live[name].grad
        torch.testing.assert_close(got, x.grad)
        assert (got[~batch.mask] == 0).all()


def test_a_loss_is_one_number_per_prompt(policy, objective, batch):
    loss = evaluate(objective, policy, batch)
    assert loss.per_prompt.shape == (len(batch),)
    assert all(m.shape == (len(batch),) and not m.requires_grad for m in loss.metrics.values())


def test_it_reads_only_known_names(objective):
    known = {*LIVE, *COLUMNS, "mask", "fresh", "present"}
    assert isinstance(objective, Objective)
    assert reads(objective) | may_read(objective) <= known


def test_the_sign_of_the_gradient_is_as_declared(policy, objective, batch):
    """Raise each response's log-probability: does the loss ever rise?"""
    if hasattr(objective, "kl"):  # look at the rest: a KL term has both signs on samples
        objective = dataclasses.replace(objective, kl=0.0)

    def pushes_down(batch):
        said = live(policy, objective, batch)
        call(objective, batch, said).per_prompt.sum().backward()
        return bool((said["logp"].grad[batch.mask] > 0).any())

    declared = objective.axes.negative_gradient
    if declared == "by_advantage":
        assert pushes_down(batch.fill(advantage=-batch["advantage"].abs()))
        assert not pushes_down(batch.fill(advantage=batch["advantage"].abs()))
    else:
        assert pushes_down(batch) == (declared == "always")


@pytest.mark.parametrize("objective", objectives(), ids=repr)
def test_the_gradient_is_that_of_the_value(objective):
    if isinstance(objective, HyPO):
        pytest.skip("a score-function estimator is not the gradient of its value; see exact/test_hypo.py")
    torch.manual_seed(0)
    x = lambda *s: torch.randn(*s, dtype=torch.float64)
    given = {
        "mask": torch.rand(2, 4, 3) < 0.7,
        "fresh": torch.tensor([[False, False, True, True]] * 2),
        "present": torch.tensor([[True] * 4, [True, True, True, False]]),
        "label": torch.tensor([[True, False, True, False]] * 2),
        **{n: x(2, 4, 3) for n in ("advantage", "old_logp", "ref_logp", "returns")},
        **{n: x(2) for n in ("z0", "baseline", "token_share")},
        "reward": x(2, 4),
    }
    names = sorted(reads(objective) & LIVE)
    if not isinstance(objective, ActorCriticPPO):
        given["old_logp"] = given["old_logp"] / 100
    optional = {n: given[n] for n in may_read(objective)}
    rest = {n: given[n] for n in reads(objective) - set(names)} | optional
    if getattr(objective, "correction", None) == "ratio":
        pytest.skip("the ratio is a weight: no gradient goes through it")
    says = lambda *args: objective(**dict(zip(names, args, strict=True)), **rest).per_prompt
    assert torch.autograd.gradcheck(says, tuple(x(2, 4, 3).div(10).requires_grad_() for _ in names))


def test_the_reward_model_keeps_the_contract():
    score = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: BradleyTerry()(s).per_prompt, (score,))
    BradleyTerry()(score).per_prompt.sum().backward()
    assert (score.grad[:, 0] < 0).all() and (score.grad[:, 1] > 0).all()


@pytest.mark.parametrize("cls", typing.get_args(AnyObjective))
def test_every_objective_says_where_it_is_from(cls):
    assert cls.equation and cls.source.startswith("https://") and cls.__module__.split(".")[-1] != "base"
