"""What every objective owes. The model's outputs are given as leaves, so that nothing but the objective is at work;
a few objectives are also run on models, where the seam between the two is at work."""

import dataclasses
import types
import typing

import pytest
import torch

from modeseek.batch import COLUMNS
from modeseek.objectives import (
    CISPO,
    DPO,
    KTO,
    SFT,
    ActorCriticPPO,
    AnyObjective,
    BradleyTerry,
    Contrastive,
    HyPO,
    Objective,
    WithKL,
    WithSFT,
    call,
    max_age,
    may_read,
    reads,
)
from modeseek.train import LIVE, evaluate
from wide import every_objective, everything, leaves

ALL = every_objective()
KINDS = [cls() for cls in typing.get_args(AnyObjective)]


def said(batch):
    return {name: batch[name] for name in LIVE & batch.columns.keys()}


def losses(objective, batch):
    return call(objective, batch, said(batch))


def gradients(batch):
    return {name: x.grad for name, x in said(batch).items() if x.grad is not None}


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_micro_batches_change_nothing(objective):
    whole = leaves(everything())
    (losses(objective, whole).per_prompt * whole.weight).sum().backward()
    want = gradients(whole)
    assert want["logp"].abs().max() > 0
    for size in (1, 3):
        parts = leaves(everything())
        for part in parts.split(size):
            (losses(objective, part.trim()).per_prompt * part.weight).sum().backward()
        torch.testing.assert_close(gradients(parts), want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_one_prompt_never_sees_another(objective):
    batch = everything()
    whole = losses(objective, batch)
    alone = [losses(objective, part.trim()) for part in batch.split(1)]
    torch.testing.assert_close(torch.cat([x.per_prompt for x in alone]), whole.per_prompt, rtol=1e-12, atol=1e-14)
    for name, metric in whole.metrics.items():
        torch.testing.assert_close(torch.cat([x.metrics[name] for x in alone]), metric, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_a_loss_is_one_number_per_prompt(objective):
    batch = leaves(everything())
    loss = losses(objective, batch)
    assert loss.per_prompt.shape == (len(batch),) and loss.per_prompt.isfinite().all()
    assert all(m.shape == (len(batch),) and not m.requires_grad for m in loss.metrics.values())


def with_dirt(x, batch):
    """NaN wherever there is nothing to read."""
    if not x.is_floating_point() or x.ndim == 1:
        return x
    empty = ~batch.mask if x.ndim == 3 else ~batch.present
    return x.detach().masked_fill(empty, float("nan"))


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_nan_in_padding_is_never_read(objective):
    clean = leaves(everything())
    dirty = leaves(clean.fill(**{n: with_dirt(x, clean) for n, x in clean.columns.items()}))
    a, b = losses(objective, clean), losses(objective, dirty)
    torch.testing.assert_close(b.per_prompt, a.per_prompt)
    for name in a.metrics:
        torch.testing.assert_close(b.metrics[name], a.metrics[name])
    a.per_prompt.sum().backward()
    b.per_prompt.sum().backward()
    torch.testing.assert_close(gradients(dirty), gradients(clean))
    for grad in gradients(dirty).values():
        assert (grad[~clean.mask] == 0).all()


@pytest.mark.parametrize("objective", [*ALL, BradleyTerry(ties=True)], ids=repr)
def test_it_reads_only_known_names(objective):
    known = {*LIVE, *COLUMNS, "mask", "fresh", "present"}
    assert isinstance(objective, Objective)
    assert reads(objective) | may_read(objective) <= known


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_the_sign_of_the_gradient_is_as_declared(objective):
    """Raise each response's log-probability: does the loss ever rise?"""
    if hasattr(objective, "kl"):  # look at the rest: a KL term has both signs on samples
        plain = {"kl_by_ratio": False} if getattr(objective, "kl_by_ratio", False) else {}
        objective = dataclasses.replace(objective, kl=0.0, **plain)

    def pushes_down(batch):
        batch = leaves(batch)
        losses(objective, batch).per_prompt.sum().backward()
        return bool((batch["logp"].grad[batch.mask] > 0).any())

    batch, declared = everything(), objective.axes.negative_gradient
    if declared == "by_advantage":
        assert pushes_down(batch.fill(advantage=-batch["advantage"].abs()))
        assert not pushes_down(batch.fill(advantage=batch["advantage"].abs()))
    else:
        assert pushes_down(batch) == (declared == "always")


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_the_gradient_is_that_of_the_value(objective):
    if isinstance(objective, (HyPO, WithKL)):
        pytest.skip("a score-function estimator is not the gradient of its value; see exact/test_hypo.py")
    if isinstance(objective, CISPO) or getattr(objective, "correction", None) in ("ratio", "clip"):
        pytest.skip("the ratio is a weight: no gradient goes through it")
    batch = everything().prompts(slice(0, 2))
    names = sorted((reads(objective) | may_read(objective)) & LIVE)
    says = lambda *live: call(objective, batch, dict(zip(names, live, strict=True))).per_prompt
    assert torch.autograd.gradcheck(says, tuple(batch[n].clone().requires_grad_() for n in names), fast_mode=True)


def outcome(objective, batch):
    """Loss and gradients on a batch, to be compared with another's."""
    batch = leaves(batch, {"logp", "value", "entropy", "kl", "score"} & batch.columns.keys())
    loss = losses(objective, batch)
    loss.per_prompt.sum().backward()
    return [loss.per_prompt.detach(), *(g for _, g in sorted(gradients(batch).items()))]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_what_it_says_it_needs_makes_a_difference(objective):
    batch = everything()
    before = outcome(objective, batch)
    for name in (reads(objective) & batch.columns.keys()) | (reads(objective) & {"label"}):
        x = batch[name]
        moved = ~x if x.dtype == torch.bool else x + 0.1 * torch.cos(7 * x + torch.arange(x.numel()).view(x.shape))
        assert not same(outcome(objective, batch.fill(**{name: moved})), before), name


def others(annotation, value):
    """Another value that an option could have."""
    if annotation is bool:
        return [not value]
    if typing.get_origin(annotation) is typing.Literal:
        return [x for x in typing.get_args(annotation) if x != value]
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return [x for part in typing.get_args(annotation) for x in others(part, value)]
    if annotation is type(None):
        return [] if value is None else [None]
    if dataclasses.is_dataclass(annotation):
        return [annotation()] if annotation is not type(value) else []
    if annotation is float:
        return [1.7 * value] if value else [0.05, 0.3]
    raise AssertionError(f"a kind of option that nobody thought of: {annotation}")


@pytest.mark.parametrize("objective", KINDS, ids=repr)
def test_every_option_changes_the_result_or_is_refused(objective):
    """On two scales of log-ratios, so that limits far away are met as well."""
    near = everything().fill(score=everything()["reward"] * 2)
    near = near.fill(margin=near["margin"] * torch.tensor([1.0, 0, 1, 1]))  # prompt 1 is a tie
    far = near.fill(
        logp=near["logp"] + 2 * torch.sin(torch.arange(60.0).double()).view(4, 5, 3),
        reward=near["reward"] * 10,
        old_value=near["old_value"] * 3,
    )
    hints = typing.get_type_hints(type(objective))
    for option in dataclasses.fields(objective):
        for value in others(hints[option.name], getattr(objective, option.name)):
            try:
                other = dataclasses.replace(objective, **{option.name: value})
            except ValueError as refused:
                assert option.name in str(refused)
                continue
            changed = [not same(outcome(other, b), outcome(objective, b)) for b in (near, far)]
            changed.append(max_age(other) != max_age(objective))  # what the loop asks of it
            assert any(changed), f"{option.name}: {value} does nothing"


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize(
    "objective",
    [SFT(), DPO(), HyPO(kl_baseline="leave_one_out"), WithSFT(DPO()), KTO(), ActorCriticPPO()],
    ids=repr,
)
def test_micro_batches_change_nothing_in_a_model(policy, objective, batch, size):
    def gradient(size):
        policy.zero_grad()
        for part in batch.split(size):
            loss = evaluate(objective, policy, part.trim()).per_prompt
            ((loss * part.weight).sum() / batch.weight.sum()).backward()
        return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])

    whole = gradient(None)
    assert whole.abs().max() > 0
    torch.testing.assert_close(gradient(size), whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("inner", [cls() for cls in typing.get_args(Contrastive)], ids=repr)
def test_a_pair_objective_never_sees_a_third_response(inner):
    batch = everything()
    pair = batch.take(torch.tensor([[0, 1]] * 4))
    torch.testing.assert_close(losses(inner, pair).per_prompt, losses(inner, batch).per_prompt)
    assert not reads(inner) & {"present", "fresh"}
    nll = losses(SFT(logp_reduction="mean"), batch.take(torch.zeros(4, 1, dtype=torch.long)))
    both = losses(WithSFT(inner, nll=0.5), batch)
    torch.testing.assert_close(both.per_prompt, losses(inner, batch).per_prompt + 0.5 * nll.per_prompt)
    assert reads(WithSFT(inner)) == reads(inner) | {"logp", "mask"}
    pulled = losses(WithKL(inner, kl=0.0), batch)
    torch.testing.assert_close(pulled.per_prompt, losses(inner, batch).per_prompt)


def test_the_reward_model_keeps_the_contract():
    score = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: BradleyTerry()(s).per_prompt, (score,))
    BradleyTerry()(score).per_prompt.sum().backward()
    assert (score.grad[:, 0] < 0).all() and (score.grad[:, 1] > 0).all()


@pytest.mark.parametrize("cls", typing.get_args(AnyObjective))
def test_every_objective_says_where_it_is_from(cls):
    assert cls.equation and cls.source.startswith("https://") and cls.__module__.split(".")[-1] != "base"
    assert cls.__module__.split(".")[1] == "objectives"
