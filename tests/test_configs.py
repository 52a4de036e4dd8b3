"""Every shipped config, as it stands, on a small GPT that can say what a transformers policy can."""

import copy
import dataclasses
import functools
import inspect
import math
import typing
from dataclasses import replace
from importlib import resources

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modeseek import stages
from modeseek.batch import Batch
from modeseek.build import corrected, corrects_itself, needs_reference, refuse, scores, stage_of
from modeseek.catalogue import rows
from modeseek.config import Hybrid, Offline, OnPolicy, from_dict, names, read_tree
from modeseek.objectives import AnyObjective, max_age
from modeseek.policies.causal import plain_logp
from modeseek.policies.gpt import gpt_policy
from modeseek.rewards import Length
from modeseek.sources import OnPolicy as OnPolicySource
from modeseek.sources import Sampler, hybrid, offline
from modeseek.train import fit

P, V, T = 16, 5, 3
SHIPPED = names()
RUNS = {name: from_dict(read_tree(name), where=name) for name in SHIPPED}


class Speaker(nn.Module):
    """All that a transformers policy with a critic can say, and samples."""

    def __init__(self):
        super().__init__()
        self.policy = gpt_policy(V, eos=0, max_new=T, width=8, layers=1, context=8).double()
        self.worth = nn.Parameter(torch.zeros(T + 1, dtype=torch.float64))  # the critic's, of each place

        self.predict, self.eos, self.max_new = self.policy.predict, self.policy.eos, self.policy.max_new

    def logp(self, batch):
        return self.policy.logp(batch)

    def entropy(self, batch):
        logp = self._vocabulary(batch)
        return -(logp.exp() * logp).sum(-1).masked_fill(~batch.mask, 0.0)

    def kl(self, batch):
        """To the uniform distribution."""
        return math.log(V) * batch.mask - self.entropy(batch)

    def collision(self, batch):
        return (2 * self._vocabulary(batch)).logsumexp(-1).masked_fill(~batch.mask, 0.0)

    def value(self, batch):
        return self.worth[: batch.response.shape[2]].expand(batch.response.shape).clone()

    def _vocabulary(self, batch):
        every = [replace(batch, response=torch.full_like(batch.response, v)) for v in range(V)]
        return torch.stack([self._at_each_place(batch, other) for other in every], -1)

    def _at_each_place(self, batch, other):
        said = []
        for t in range(batch.response.shape[2]):  # the prefix stays as it is
            response = torch.cat([batch.response[..., :t], other.response[..., t:]], -1)
            said.append(plain_logp(self.policy.model, replace(batch, response=response))[..., t])
        return torch.stack(said, -1)

    def sample(self, *args, **options):
        return self.policy.sample(*args, **options)


class Scorer(nn.Module):
    """A reward model: a number for each token."""

    def __init__(self):
        super().__init__()
        self.worth = nn.Parameter(torch.zeros(V, dtype=torch.float64))

    def score(self, batch):
        return (F.embedding(batch.response, self.worth[:, None]).squeeze(-1) * batch.mask).sum(-1)


def reward(batch):
    """A rule: the larger the tokens the better."""
    return (batch.response * batch.mask).sum(-1).double()


def data():
    """Pairs of one to three tokens, and by how much the first is better."""
    rng = torch.Generator().manual_seed(0)
    told = [[torch.randint(1, V, (n,), generator=rng).tolist() for n in (1 + p % T, T)] for p in range(P)]
    batch = Batch.of([[1 + p % 4, 2] for p in range(P)], told)
    return batch.fill(margin=torch.linspace(0, 1, P, dtype=torch.float64))


def source_of(run, policy):
    match run.source:
        case Offline():
            return offline(data(), run.prompts_per_round)
        case OnPolicy(num_generations=k, temperature=t, top_p=p, top_k=n):
            sampler = Sampler(policy=policy, k=k, temperature=t, top_p=p, top_k=n)
            return OnPolicySource(sampler, offline(replace(data(), columns={}), run.prompts_per_round))
        case Hybrid(num_generations=k):
            return hybrid(policy, data(), run.prompts_per_round, k)


def asks_a_reward(run):
    return any(spec.name == "score" for spec in run.stages)


def trained(run):
    """The weights after the run on the small GPT, from the same start and the same draws."""
    torch.manual_seed(0)
    run = replace(run, reward=Length() if asks_a_reward(run) else None)
    refuse(run)
    policy = Scorer() if scores(run) else Speaker()
    reference = copy.deepcopy(policy).requires_grad_(False)
    for x in policy.parameters():  # a few steps on: at the reference itself some gradients are zero
        x.data += 0.1 * torch.randn_like(x)
    parts = {"policy": policy, "reference": reference if needs_reference(run) else None, "reward": reward}
    staged, live = ([stage_of(spec, parts) for spec in specs] for specs in (run.stages, corrected(run)))
    fit(policy, run.objective, source_of(run, policy), staged, run, before=live)
    return torch.cat([x.detach().flatten() for x in policy.parameters()])


def others(value, kind):
    """Values of an option that are not the one it has."""
    choices = [c for part in [kind, *typing.get_args(kind)] for c in typing.get_args(part) if isinstance(c, str)]
    if choices:
        return [c for c in choices if c != value]
    if isinstance(value, bool) or bool in (kind, *typing.get_args(kind)):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value + 7]
    if isinstance(value, float):
        return [x for x in (value * 2 + 0.05, value / 50, 0.7, 1.5) if x != value]
    return [0.01, 0.3] if value is None else []


def perturbed(run):
    """The run with one option of its objective, source, stages or dials changed, under the option's name."""
    for part in ("objective", "source"):
        for option, changed in variants(getattr(run, part)):
            yield f"{part}.{option}", [{part: other} for other in changed]
    for part in ("stages", "before"):
        for option, changed in told_otherwise(getattr(run, part)):
            yield f"{part}.{option}", [{part: other} for other in changed]
    yield "prompts_per_round", [{"prompts_per_round": 5}]
    yield "minibatch", [{"minibatch": 3}]
    yield "passes", [{"passes": 3, "minibatch": 4}]
    yield "correction", [{"correction": "ratio", "passes": 3}]


def variants(part):
    """A dataclass with one field changed, inside a nested one too."""
    kinds = typing.get_type_hints(type(part))
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if dataclasses.is_dataclass(value):
            for option, changed in variants(value):
                yield f"{field.name}.{option}", [lambda c=c, f=field.name: replace(part, **{f: c()}) for c in changed]
        else:
            changed = others(value, kinds[field.name])
            yield field.name, [functools.partial(replace, part, **{field.name: v}) for v in changed]


def told_otherwise(specs):
    """Stages of which one is told another value of one option, whether the config names that option or not."""
    for i, spec in enumerate(specs):
        for option, parameter in inspect.signature(getattr(stages, spec.name), eval_str=True).parameters.items():
            if option in ("batch", "policy", "reference", "reward"):
                continue
            changed = others(spec.options.get(option, parameter.default), parameter.annotation)
            told = [replace(spec, options={**spec.options, option: value}) for value in changed]
            yield f"{spec.name}.{option}", [(*specs[:i], other, *specs[i + 1 :]) for other in told]


BUSY = {"max_steps": 4, "learning_rate": 0.05, "prompts_per_round": 8}
NOT_HERE = "nothing to learn from"  # what a run says whose groups all tie


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_no_option_of_a_method_is_without_effect(name):
    """Each option, changed alone, changes the weights; or no value of it is taken."""
    run = replace(RUNS[name], **BUSY, minibatch=4 if may_reuse(RUNS[name]) else None)
    if run.passes > 1:  # two rounds of two passes: what is learnt from one round is seen in the next
        run = replace(run, passes=2, max_steps=8)
    run = replace(run, before=tuple(quickened(spec) for spec in run.before))
    base = trained(run)
    assert [option for option, changes in perturbed(run) if not heard(run, changes, base)] == []


def quickened(spec):
    """A reference that moves every 32 steps stands still in four."""
    return replace(spec, options={**spec.options, "every": 2}) if spec.name == "moving_reference" else spec


def may_reuse(run):
    """Whether its clip or its ratio can have something to do."""
    return max_age(run.objective) is None and (corrects_itself(run) or run.minibatch is not None)


def heard(run, changes, base):
    """Whether one of the changes does something, or all of them are refused."""
    refused = 0
    for change in changes:
        try:
            made = {key: value() if callable(value) else value for key, value in change.items()}
            if not torch.equal(trained(replace(run, **made)), base):
                return True
        except ValueError:
            refused += 1
        except RuntimeError as error:
            if NOT_HERE not in str(error):
                raise
            return True
    return refused == len(changes)


@pytest.mark.parametrize("name", SHIPPED)
def test_one_step_of_every_shipped_method_moves_the_weights(name):
    torch.manual_seed(0)
    run = RUNS[name]
    run = replace(run, max_steps=1, reward=Length() if asks_a_reward(run) else None)
    refuse(run)
    policy = Scorer() if scores(run) else Speaker()
    reference = copy.deepcopy(policy).requires_grad_(False)
    for x in policy.parameters():  # a few steps on: at the reference itself some gradients are zero
        x.data += 0.05 * torch.randn_like(x)
    before = [x.detach().clone() for x in policy.parameters()]
    parts = {"policy": policy, "reference": reference if needs_reference(run) else None, "reward": reward}
    staged, live = ([stage_of(spec, parts) for spec in specs] for specs in (run.stages, run.before))
    seen = []
    fit(
        policy,
        run.objective,
        source_of(run, policy),
        staged,
        run,
        before=live,
        watch=lambda loop, row: seen.append(row) and None,
    )
    assert [torch.isfinite(torch.tensor(row["loss"])).item() for row in seen] == [True]
    assert any((x.detach() != was).any() for x, was in zip(policy.parameters(), before, strict=True))
    assert all(torch.isfinite(x).all() for x in policy.parameters())


@pytest.mark.parametrize("name", SHIPPED)
def test_a_config_begins_with_one_line_that_says_what_the_method_is(name):
    lines = resources.files("modeseek.configs").joinpath(f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ") and lines[0].endswith(".") and len(lines[0]) <= 120
    assert not any(line.lstrip().startswith("#") for line in lines[1:])
    assert {"objective", "source", "stages", "learning_rate", "prompts_per_round"} <= read_tree(name).keys()


def test_every_objective_is_shipped():
    assert set(typing.get_args(AnyObjective)) == {type(run.objective) for run in RUNS.values()}


def test_no_two_configs_are_the_same_method():
    same = [replace(run, method="") for run in RUNS.values()]
    assert [SHIPPED[i] for i, run in enumerate(same) if run in same[:i]] == []


def test_at_least_thirty_five_methods_are_listed():
    assert [row["method"] for row in rows()] == SHIPPED
    assert len(SHIPPED) >= 35
