import dataclasses

import pytest
import torch
from torch import Generator, nn

from modeseek.batch import Batch
from modeseek.config import load
from modeseek.distributed import ALONE, Shared, Team, shared
from modeseek.distributed.pulse import Heard, accused
from modeseek.distributed.shard import layers
from modeseek.distributed.share import _Portion
from modeseek.policies.base import uniform
from modeseek.policies.gpt import gpt_policy
from modeseek.runs import refuse_sharded


def heard(beat: list[int], ticked: float, moved: float, **told: object) -> Heard:
    return Heard({"beat": beat, **told}, ticked, moved)


def test_a_rank_that_says_nothing_is_accused():
    now = {0: heard([7, 0], 99, 98), 1: heard([7, 0], 30, 98)}
    assert accused(now, 100.0, silence=45, patience=45).keys() == {1}


def test_a_rank_that_keeps_the_others_waiting_is_accused():
    now = {0: heard([8, 0], 99, 50), 1: heard([7, 3], 99, 40), 2: heard([8, 0], 99, 51)}
    assert accused(now, 100.0, silence=45, patience=45).keys() == {1}


def test_ranks_at_the_same_point_may_be_at_work_for_long():
    now = {0: heard([8, 0], 99, 0), 1: heard([8, 0], 99, 0)}
    assert accused(now, 1000.0, silence=1000, patience=45) == {}


def test_nobody_is_accused_while_the_furthest_goes_on():
    now = {0: heard([8, 0], 99, 90), 1: heard([7, 0], 99, 10)}
    assert accused(now, 100.0, silence=45, patience=45) == {}


def test_a_rank_that_writes_may_keep_the_others_waiting():
    writes = Heard()
    for second in range(100):
        writes.hear({"tick": second, "beat": [3, 0], "busy": True}, float(second))
    assert accused({0: writes, 1: heard([4, 0], 100, 2)}, 100.0, silence=45, patience=45) == {}


@pytest.mark.parametrize(("prompts", "size"), [(5, 2), (3, 4), (8, 4), (1, 4), (0, 2)])
def test_every_prompt_is_one_ranks_and_portions_differ_by_at_most_one(prompts, size):
    told = Batch.of([[p + 1] for p in range(prompts)], [[[1]]] * prompts)
    owned = [told.prompts(Team(rank, size).own(prompts)).prompt.flatten().tolist() for rank in range(size)]
    assert sum(owned, []) == list(range(1, prompts + 1))
    assert max(map(len, owned)) - min(map(len, owned)) <= 1


@pytest.mark.parametrize("microbatch", [None, 1, 2])
def test_sharded_ranks_make_equally_many_passes(microbatch):
    told = Batch.of([[1]] * 5, [[[1]]] * 5)
    for size in (2, 4):
        passes = []
        for rank in range(size):
            parts, idle = Team(rank, size, sharded=True).portions(told, microbatch)
            passes.append(len(parts) + idle)
            assert idle >= 0
        assert len(set(passes)) == 1


def test_a_portions_random_numbers_are_those_it_has_among_all():
    """Of a rollout, [T, P, k], and of a single token, [P * k]."""
    for shape, own, cut in (((4, 5, 2), (4, 3, 2), lambda x: x[:, 2:5]), ((10,), (6,), lambda x: x[4:10])):
        every = uniform(shape, Generator().manual_seed(3), torch.device("cpu"))
        rng = Generator().manual_seed(3)
        with _Portion(rng, slice(2, 5), 5):
            ours = uniform(own, rng, torch.device("cpu"))
            other = torch.rand(3, generator=Generator().manual_seed(1))
        assert torch.equal(ours, cut(every))
        assert torch.equal(other, torch.rand(3, generator=Generator().manual_seed(1)))


def test_one_process_is_given_the_thing_itself():
    policy = gpt_policy(11, eos=0, max_new=4)
    assert shared(policy, ALONE) is policy


def test_what_is_asked_of_all_ranks_is_what_one_says():
    """A team of one that is made to go the long way round."""
    policy = gpt_policy(11, eos=0, max_new=4)
    ask = Shared(policy, ALONE, rows=1)
    told = Batch.of([[1, 2], [3]], [[[4, 5], [6]], [[7, 8, 9]]])
    assert torch.equal(ask.logp(told), torch.cat([policy.logp(told.prompts(slice(i, i + 1))) for i in (0, 1)]))
    ours, theirs = Generator().manual_seed(0), Generator().manual_seed(0)
    a, b = ask.sample(told.prompt, told.prompt_mask, 3, ours), policy.sample(told.prompt, told.prompt_mask, 3, theirs)
    assert a.tensors().keys() == b.tensors().keys()
    assert all(torch.equal(x, b.tensors()[name]) for name, x in a.tensors().items())
    assert torch.equal(ours.get_state(), theirs.get_state())


def test_the_layers_of_a_network_are_its_outermost_blocks():
    experts = nn.ModuleList([nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(2, 2)])}) for _ in range(3)])
    assert layers(nn.Sequential(nn.Linear(2, 2), nn.ModuleDict({"blocks": experts}))) == list(experts)


def test_a_lone_process_refuses_to_be_many():
    with pytest.raises(ValueError, match="torchrun"):
        Team.start("fsdp", cuda=False, hang_timeout=45)
    assert Team.start("auto", cuda=False, hang_timeout=45) == Team()


@pytest.mark.parametrize(
    ("method", "changed", "key"),
    [
        ("dpo", {"token_budget": 100}, "token_budget"),
        ("dpo", {"fsdp_offload": True}, "fsdp_offload"),
        ("dpo", {"optim": "adamw_8bit"}, "optim"),
        ("dpo", {"load_in_4bit": True, "reference_cache": "kept"}, "reference_cache"),
        ("tr_dpo", {}, "moving_reference"),
        ("hypo_rao_blackwell", {}, "lora"),
    ],
)
def test_what_sharding_cannot_honour_is_refused_by_its_key(method, changed, key):
    from modeseek.policies.hf import HFPolicy

    policy = object.__new__(HFPolicy)
    nn.Module.__init__(policy)
    policy.model = nn.Linear(1, 1)
    run = dataclasses.replace(load(method, ["--model", "m", "--data", "d"]), **changed)
    with pytest.raises(ValueError, match=key):
        refuse_sharded(run, policy, "cpu")
