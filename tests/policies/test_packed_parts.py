"""The parts of the packed path by themselves: rows by hand, attention against a dense mask, the head by gradcheck."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

from modeseek.batch import Batch
from modeseek.policies import attention
from modeseek.policies import flex as flexible
from modeseek.policies.attention import attend
from modeseek.policies.flex import block_mask, blocks, flex
from modeseek.policies.head import Form, Head
from modeseek.policies.layout import Layout
from modeseek.policies.pack import Segment, pack


def test_a_row_by_hand():
    batch = Batch.of([[1, 2, 3], [4]], [[[5, 6], [7]], [[8, 9], []]])
    row = pack(batch)
    assert row.tokens.tolist() == [1, 2, 3, 5, 6, 7, 4, 8, 9]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 3, 0, 1, 2]  # 7 stands where 5 does: right after its prompt
    assert row.segments == (Segment(0, 3, (2, 1)), Segment(6, 1, (2,)))
    assert row.target.tolist() == [5, 6, 7, 8, 9]
    assert row.before.tolist() == [2, 3, 2, 6, 7]  # 5 and 7 are both predicted from the 3 at place 2
    assert row.counts == (3, 2)


def test_a_prompt_with_nothing_to_predict_takes_no_room():
    row = pack(Batch.of([[1, 2], [3, 4]], [[[]], [[5]]]))
    assert row.tokens.tolist() == [3, 4, 5] and row.counts == (0, 1)


def test_a_mask_with_a_hole_is_refused():
    batch = Batch.of([[1]], [[[2, 3, 4]]])
    batch.mask[0, 0, 1] = False
    with pytest.raises(ValueError, match="hole"):
        pack(batch)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="a prompt is empty"):
        pack(Batch.of([[], [1]], [[[2]], [[3]]]))


groups = st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(0, 7), max_size=4)), min_size=1, max_size=4)


def layout(shape: list[tuple[int, list[int]]]) -> Layout:
    row = pack(Batch.of([[1] * p for p, _ in shape], [[[2] * n for n in group] or [[]] for _, group in shape]))
    return Layout.of(row)


def sees(where: Layout, window: int | None) -> torch.Tensor:
    """The rule word by word, as a mask of the whole row [queries, keys]."""
    owner, branch = [], []
    for i, s in enumerate(where.segments):
        owner += [i] * (s.stop - s.start)
        branch += [0] * s.prompt + [b for b, n in enumerate(s.responses, 1) for _ in range(n)]
    L, at = len(owner), where.positions.tolist()
    found = [[False] * L for _ in range(L)]
    for i in range(L):
        for j in range(i + 1):
            near = window is None or at[i] - at[j] < window
            found[i][j] = owner[i] == owner[j] and branch[j] in (0, branch[i]) and near
    return torch.tensor(found)


def dense(q, k, v, where: Layout, scale: float, window: int | None, softcap: float | None = None):
    many = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(many, 1).mT * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    hidden = ~sees(where, window)
    return scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v.repeat_interleave(many, 1)


def drawn(where: Layout, heads: int, kv: int, seed: int = 0):
    rng = torch.Generator().manual_seed(seed)
    make = lambda h: torch.randn(1, len(where.positions), h, 8, generator=rng, dtype=torch.float64)
    return [make(h).transpose(1, 2).requires_grad_() for h in (heads, kv, kv)]


@example(shape=[(5, [3])], window=7, softcap=None, spared=0, read=False)  # one position less than the row
@example(shape=[(9, [2, 3]), (1, [4])], window=None, softcap=None, spared=0, read=True)
@example(shape=[(9, [2, 3]), (7, [0])], window=4, softcap=None, spared=0, read=True)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=groups,
    window=st.one_of(st.none(), st.integers(1, 12)),
    softcap=st.sampled_from([None, 1.5]),
    spared=st.sampled_from([0, 12, 10**6]),  # each response a call, some share one, all but the first share one
    read=st.booleans(),  # only what predicts a token: each prompt's last and the responses
)
def test_attention_is_that_of_a_dense_mask(shape, window, softcap, spared, read, monkeypatch):
    monkeypatch.setattr(attention, "SPARED", spared)
    where = dataclasses.replace(layout(shape), last=3 if read else None)
    layer = nn.Identity()
    layer.layer_idx = 3
    q, k, v = drawn(where, heads=4, kv=2)
    ours, _ = attend(layer, q, k, v, None, 0.3, sliding_window=window, softcap=softcap, packed=where)
    theirs = dense(q, k, v, where, 0.3, window, softcap).transpose(1, 2)
    unread = [i for s in where.segments for i in range(s.start, s.start + s.prompt - 1)] if read else []
    wanted = torch.ones(1, len(where.positions), 1, 1, dtype=torch.bool)
    wanted[:, unread] = False
    torch.testing.assert_close(ours * wanted, theirs * wanted)
    assert ours.isfinite().all()
    by = torch.randn_like(theirs) * wanted
    found, known = (torch.autograd.grad(y, (q, k, v), by) for y in (ours, theirs))
    for mine, his in zip(found, known, strict=True):
        torch.testing.assert_close(mine, his)


def test_a_long_prompt_asks_with_its_last_token_where_no_other_is_read():
    calls = lambda *shape: [
        (call.queries, call.prompt, call.responses) for call in attention._calls(layout([shape]).segments, read=True)
    ]
    assert calls(9, [2, 3]) == [(slice(8, 11), slice(0, 8), (3,)), (slice(11, 14), slice(0, 9), (3,))]
    assert calls(3, [2]) == [(slice(0, 5), None, (5,))]  # a causal row computes half of its scores
    assert calls(1, [1]) == [(slice(0, 2), None, (2,))]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_block_masks_hide_what_segments_hide(window, softcap):
    where = layout([(5, [3, 4, 0]), (1, [2]), (7, [1, 1, 6])])
    q, k, v = (x.detach() for x in drawn(where, heads=4, kv=2))  # FlexAttention has no backward on a CPU
    ours = flex(q, k, v, where, 0.3, window, softcap)
    torch.testing.assert_close(ours, dense(q, k, v, where, 0.3, window, softcap))


@example(shape=[(8, [8, 4])], window=None, size=4)  # blocks that stretches fill
@example(shape=[(8, [8, 4])], window=9, size=4)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=groups, window=st.one_of(st.none(), st.integers(1, 12)), size=st.integers(1, 6))
def test_blocks_are_skipped_only_where_no_query_sees_a_key(shape, window, size, monkeypatch):
    monkeypatch.setattr(flexible, "BLOCK", size)
    where = layout(shape)
    some, every = blocks(where, window)
    L = len(where.positions)
    rest = -L % size
    known = sees(where, window)
    cut = lambda fill: F.pad(known, (0, rest, 0, rest), value=fill).unflatten(1, (-1, size)).unflatten(0, (-1, size))
    assert some.equal(cut(False).any(3).any(1))
    assert (~every | cut(False).all(3).all(1)).all()  # no rule is asked where every query sees every key
    full = torch.zeros_like(every)  # and that is found wherever a stretch fills the block
    spans = [(begin, begin + n) for *_, begin, n in where.stretches()]
    inside = lambda b: any(start <= b * size and (b + 1) * size <= stop for start, stop in spans)
    for q in range(len(every)):
        for k in range(len(every)):
            full[q, k] = inside(q) and inside(k) and cut(False)[q, :, k].all()
    assert every.equal(full)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_block_mask_lists_what_is_partial_apart_from_what_is_full(monkeypatch):
    monkeypatch.setattr(flexible, "BLOCK", 16)
    where = layout([(40, [18, 30]), (20, [2])])
    some, every = blocks(where, None)
    mask = block_mask(where, None)
    assert mask.to_dense()[0, 0].bool().equal(some)
    assert mask.kv_num_blocks[0, 0].tolist() == (some & ~every).sum(1).tolist()
    assert mask.full_kv_num_blocks is not None and mask.full_kv_num_blocks.sum() == every.sum() > 0
    q, k, v = (x.detach() for x in drawn(where, heads=2, kv=1))
    torch.testing.assert_close(flex(q, k, v, where, 0.3, None, None), dense(q, k, v, where, 0.3, None))


def test_a_row_that_no_one_announced_is_our_own_mistake():
    q, k, v = drawn(layout([(2, [1])]), 2, 2)
    with pytest.raises(AssertionError, match="announced"):
        attend(nn.Identity(), q, k, v, None)


def test_what_attention_does_not_know_is_refused_by_name():
    where = layout([(2, [1])])
    q, k, v = drawn(where, 2, 2)
    with pytest.raises(ValueError, match="position_bias"):
        attend(nn.Identity(), q, k, v, None, packed=where, position_bias=torch.zeros(1))


FORMS = [Form(), Form(scale=0.5, temperature=0.7), Form(softcap=2.0), Form(scale=2.0, softcap=1.5, temperature=1.3)]


@pytest.mark.parametrize("form", FORMS, ids=repr)
@pytest.mark.parametrize("bias", [False, True])
def test_the_heads_gradient_is_its_numbers_slope(form, bias):
    torch.manual_seed(0)
    module = nn.Linear(3, 7, bias=bias).double()
    head = Head(module, form, tile=2)
    h, target = torch.randn(5, 3, dtype=torch.float64, requires_grad=True), torch.tensor([0, 6, 3, 3, 1])
    reference = torch.randn(5, 7, dtype=torch.float64).log_softmax(-1)
    names, against = ("entropy", "kl", "logp"), lambda at: reference[at]
    said = lambda h: tuple(head(h, target, names, against).values())

    def known(h):
        every = form.of(module(h)).log_softmax(-1)
        entropy, kl = -(every.exp() * every).sum(-1), (every.exp() * (every - reference)).sum(-1)
        return entropy, kl, every.gather(1, target[:, None]).squeeze(1)

    torch.testing.assert_close(said(h), known(h))
    assert torch.autograd.gradcheck(said, (h,))
    for own in module.parameters():
        by = torch.randn(3, 5, dtype=torch.float64)
        ours, theirs = (torch.autograd.grad((torch.stack(f(h)) * by).sum(), own)[0] for f in (said, known))
        torch.testing.assert_close(ours, theirs)


def test_unlikely_tokens_keep_their_log_probability():
    module = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[0.0], [200.0]]))  # exp(-200) is zero in float32; its log is not
    h = torch.ones(1, 1, requires_grad=True)
    logp = Head(module)(h, torch.tensor([0]))["logp"]
    assert logp.item() == -200.0
    logp.sum().backward()
    assert h.grad is not None and h.grad.item() == -200.0  # d(-log(1 + e^{200 h})) / dh
