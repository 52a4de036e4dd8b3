"""Plans carried out: by a policy of ours and by a server, labelled by rules, judges and people."""

import dataclasses
import itertools
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from collect.stub import by_length as longer
from collect.stub import chat, serving
from modeseek.collect import choose
from modeseek.collect.alone import alone
from modeseek.collect.chunks import collect, wanted_prompts
from modeseek.collect.labels import Labeller, Lexicon, name_of
from modeseek.collect.plan import Plan, from_dict, identity, labeller
from modeseek.collect.rows import Response, restore
from modeseek.collect.store import Store
from modeseek.commands.collect import main, plan_of
from modeseek.config import parse_reward
from modeseek.data import fables
from modeseek.data.records import Message, text
from modeseek.rewards import JudgeFailed, Reply

QUIET = Console(quiet=True)


@pytest.fixture(scope="session")
def prompts(tmp_path_factory):
    """Ten different prompts of fables, one of them twice."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    told = [
        fables.PROMPT.format(animal=a, place=p) for a, p in itertools.product(fables.ANIMALS[:5], fables.PLACES[:2])
    ]
    path.write_text("".join(json.dumps({"prompt": one}) + "\n" for one in [told[0], *told]))
    return str(path)


@pytest.fixture
def plan(tiny, tmp_path):
    return Plan(
        policies=(str(tiny),),
        label="length:unit=words,prefer=shorter",
        store=str(tmp_path / "s.sqlite"),
        chunk=4,
        max_length=64,
        max_completion_length=12,
        device="cpu",
    )


class Scripted:
    """A writer without a model: words by the seed, another number of them each time."""

    identity = "scripted"

    def write(self, prompts, k, seed):
        rng = np.random.default_rng(seed)
        answer = lambda p, i: Response(
            text=" ".join(rng.choice(["ant", "bee", "cow", "dodo"], rng.integers(1, 9))),
            writer="scripted",
            draw=f"{seed}.{p}.{i}",
            tokens=9,
        )
        return [[answer(p, i) for i in range(k)] for p in range(len(prompts))]


@pytest.fixture
def scripted(monkeypatch):
    """For what comes after the sampling."""
    monkeypatch.setattr("modeseek.collect.chunks.open_writer", lambda word, plan, name: Scripted())


def run(plan, prompts, **more):
    return collect(plan, prompts, console=QUIET, **more)


def with_(plan, **changes):
    return dataclasses.replace(plan, **changes)


def digest(plan):
    with Store(plan.store, must_exist=True) as store:
        return store.digest()


@pytest.mark.parametrize(
    "label, says", [("regex:pattern=zebra", "10 of 10 prompts gave no pair"), ("length:unit=words", "")]
)
def test_prompts_whose_responses_all_tie_are_pointed_out(label, says, plan, prompts, scripted, capsys):
    """No response speaks of a zebra, so that none is better than another; their lengths tell them apart."""
    assert main([plan.policies[0], str(prompts), "--label", label, "--store", plan.store, "--prompts", "10"]) == 0
    out, err = capsys.readouterr()
    assert says in err and ("gave no pair" in err) is bool(says) and " 0 " not in out


# Sampling by a policy of ours


def test_a_plan_is_done_once_and_again_costs_nothing(plan, prompts, monkeypatch):
    found = run(plan, prompts)
    assert found.counts["prompts"] == 10 and found.counts["responses"] == 40 and found.waiting == 0
    assert found.counts["pairs"] + found.counts["prompts without a pair"] == 10
    before = digest(plan)
    monkeypatch.setattr("modeseek.policies.hf.HFPolicy.sample", None)  # nothing is sampled again
    assert run(plan, prompts).counts == found.counts
    assert digest(plan) == before


def test_parts_done_one_by_one_are_the_whole_done_at_once(plan, prompts, tmp_path):
    for _ in range(3):
        run(plan, prompts, chunks=1)
    whole = with_(plan, store=str(tmp_path / "whole.sqlite"))
    run(whole, prompts)
    assert digest(plan) == digest(whole)


def test_another_seed_or_temperature_is_another_plan_in_the_same_store(plan, prompts, scripted):
    names = {run(with_(plan, **change), prompts).plan for change in ({}, {"seed": 1}, {"temperature": 0.5})}
    assert len(names) == 3
    with Store(plan.store) as store:
        assert store.rows("select count(*) from responses") == [(120,)]
        assert store.rows("select count(*) from prompts") == [(10,)]


def test_the_store_says_where_a_response_comes_from(plan, prompts, tiny):
    run(with_(plan, temperature=1.0), prompts, names=["mine"])
    from modeseek.batch import Batch
    from modeseek.build import load_policy
    from modeseek.data.template import Template

    template = Template.load(str(tiny))
    policy = load_policy(str(tiny), template, max_new=12)
    with Store(plan.store) as store:
        query = "select p.prompt, response, logp, tokens, finished, writer, length(policy_hash), step, source, reward"
        rows = store.rows(f"{query} from responses, prompts p where p.id = responses.prompt and finished = 1")
    assert rows
    for prompt, response, logp, tokens, _, writer, hashed, step, source, reward in rows:
        ids = template.encode_responses([restore(response)])[0][0] + [template.eos_id]
        batch = Batch.of([template.prompt_ids(restore(prompt))], [[ids]])
        assert tokens == len(ids)
        with torch.no_grad():
            assert float(policy.logp(batch).sum()) == pytest.approx(logp, abs=1e-3)
        assert (writer, hashed, step, source) == ("mine", 32, None, "prompts.jsonl")
        assert reward == -len(restore(response).split())


def test_the_label_is_the_reward_s_and_the_sides_say_nothing(plan, prompts, scripted):
    run(plan, prompts)
    query = """select x.reward, y.reward, preferred, kind, annotator, x.id < y.id from pairs, labels, responses x,
        responses y where pair = pairs.id and x.id = a and y.id = b"""
    with Store(plan.store) as store:
        rows = store.rows(query)
    assert len(rows) > 5
    for ours, theirs, preferred, kind, annotator, in_order in rows:
        assert preferred == ("a" if ours > theirs else "b") and in_order
        assert (kind, annotator) == ("rule", "rule:length:unit=words,prefer=shorter")
    assert {row[2] for row in rows} == {"a", "b"}


def test_more_prompts_than_the_file_has_go_round_and_are_drawn_anew(plan, prompts, scripted):
    assert len(wanted_prompts(plan, prompts)) == 10
    more = wanted_prompts(with_(plan, prompts=25), prompts)
    assert [r.prompt for r in more[10:20]] == [r.prompt for r in more[:10]]
    run(with_(plan, prompts=20), prompts)
    with Store(plan.store) as store:
        assert store.rows("select count(*), count(distinct key) from responses") == [(80, 80)]
        differ = "select count(distinct response) from responses where prompt = 1"
        assert store.rows(differ)[0][0] > 4


def test_chunks_of_the_same_prompts_have_a_chance_of_their_own(plan, prompts, scripted):
    run(with_(plan, prompts=20, chunk=10), prompts)
    with Store(plan.store) as store:
        query = "select response from responses where chunk = ? order by place, id"
        first, second = (store.rows(query, number) for number in (0, 1))
    assert len(first) == len(second) == 40 and first != second


def test_two_policies_answer_side_by_side(plan, prompts, tmp_path):
    from modeseek.data.template import Template
    from modeseek.policies.load import load_model

    torch.manual_seed(5)
    other = load_model(plan.policies[0])
    for parameter in other.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    other.save_pretrained(tmp_path / "other")
    Template.load(plan.policies[0]).tokenizer.save_pretrained(tmp_path / "other")
    both = with_(plan, policies=(*plan.policies, str(tmp_path / "other")), num_generations=1, select="all_pairs")
    found = run(both, prompts, names=["one", "two"])
    assert found.counts["responses"] == 20
    with Store(plan.store) as store:
        assert store.rows("select writer, count(*) from responses group by writer") == [("one", 10), ("two", 10)]
        assert store.rows("select count(distinct policy_hash) from responses") == [(2,)]


def test_two_processes_do_not_collect_into_one_store(plan, prompts, scripted):
    lock = alone(f"{plan.store}.collecting", "store")
    with lock, pytest.raises(ValueError, match="store: .*another process is at work"):
        run(plan, prompts)
    assert run(plan, prompts).counts["prompts"] == 10  # the lock went with its holder


# Choosing


def answers(*texts, tokens=3):
    return [Response(text=one, draw=str(i), tokens=tokens) for i, one in enumerate(texts)]


def rewarded(*groups):
    batch = Lexicon().batch([("q", answers(*map(str, group))) for group in groups])
    reward = torch.full(batch.present.shape, float("nan"))
    for p, group in enumerate(groups):
        reward[p, : len(group)] = torch.tensor(group)
    return batch.fill(reward=reward)


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("best_worst", [[(1, 2)], [], [(0, 1)]]),
        ("best_second", [[(1, 3)], [], [(0, 1)]]),
        ("uncertain", [[(1, 3)], [], [(0, 1)]]),  # 3 and 2.5 differ least; equal ones do not count
        ("all_pairs", [[(0, 2), (1, 0), (1, 2), (1, 3), (3, 0), (3, 2)], [], [(0, 1)]]),
    ],
)
def test_strategies_by_reward_take_the_places_that_their_names_say(select, expected):
    batch = rewarded([1.0, 3.0, 0.0, 2.5], [1.0, 1.0], [2.0, 1.0])
    found = choose.by_reward(batch, select, seed=0)
    assert [sorted(pairs) for pairs in found] == expected


def test_random_pairs_are_uniform_over_different_texts():
    groups = [("q", answers("x", "x", "y", "z"))] * 3000
    found = [pair for pairs in choose.without_reward(groups, "random", 0) for pair in pairs]
    share = {pair: found.count(pair) / 3000 for pair in set(found)}
    assert set(share) == {(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}
    assert all(abs(x - 0.2) < 0.03 for x in share.values())  # sd 0.0073
    assert choose.without_reward([("q", answers("x", "x"))], "random", 0) == [[]]


def test_d_optimal_takes_what_spans_most_and_more_than_chance_does():
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(60)]
    groups = [("q", answers(*(" ".join(rng.choice(words, 6)) for _ in range(6)))) for _ in range(40)]

    def spread(select):
        total = np.eye(choose.DIMENSIONS) * choose.RIDGE
        for (_, group), [(i, k)] in zip(groups, choose.without_reward(groups, select, 1), strict=True):
            d = choose.features(text(group[i].text)) - choose.features(text(group[k].text))
            total += np.outer(d, d)
        return np.linalg.slogdet(total)[1]

    assert spread("d_optimal") > spread("random") + 1


def test_the_rank_one_update_is_the_inverse():
    rng = np.random.default_rng(0)
    a, d = rng.normal(size=(5, 9)), rng.normal(size=5)
    found = choose.lowered(np.linalg.inv(a @ a.T), d, 0.3)
    np.testing.assert_allclose(found, np.linalg.inv(a @ a.T + 0.3 * np.outer(d, d)), rtol=1e-9)


def left(points, chosen):
    """The variance that is left of responses' worths within their prompts, by the belief's precision at full length."""
    precision = choose.RIDGE * np.eye(points[0].shape[1])
    for at, pairs in zip(points, chosen, strict=True):
        for i, k in pairs:
            precision += 0.16 * np.outer(at[i] - at[k], at[i] - at[k])  # flips of 0.1: (1 - 0.2)^2 / 4
    covariance = np.linalg.inv(precision)
    centred = [at - at.mean(0) for at in points]
    return np.mean([np.einsum("kd,de,ke->k", c, covariance, c).mean() for c in centred])


def test_v_optimal_leaves_the_least_variance_within_prompts():
    rng = np.random.default_rng(0)
    groups = [("q", answers("a", "b", "c", "d"))] * 2
    points = [rng.normal(size=(4, 3)) * [2, 1, 0.1], rng.normal(size=(4, 3)) * [0.1, 1, 2]]
    (first,), (second,) = choose.without_reward(groups, "v_optimal", 0, points)
    every = list(itertools.combinations(range(4), 2))
    assert first == min(every, key=lambda pair: left(points, [[pair], []]))  # greedy: each the best after those before
    assert second == min(every, key=lambda pair: left(points, [[first], [pair]]))


def test_v_optimal_knows_more_of_what_the_policy_writes_than_d_optimal_or_chance():
    rng = np.random.default_rng(1)
    groups = [("q", answers("a", "b", "c", "d", "e"))] * 12
    points = [rng.normal(size=(5, 16)) * np.where(rng.random((5, 1)) < 0.1, 3, 1) for _ in groups]  # with outliers
    after = {name: left(points, choose.without_reward(groups, name, 0, points)) for name in choose.WITHOUT}
    assert after["v_optimal"] < min(after["d_optimal"], after["random"])


def test_states_as_features_keep_which_responses_are_near():
    rng = np.random.default_rng(0)
    states = [rng.normal(size=(4, 500)) + 100 for _ in range(10)]
    found = choose.projected(states)
    apart = lambda x: np.linalg.norm(x[:, None] - x[None], axis=-1)[np.triu_indices(4, 1)]
    ratio = np.concatenate([apart(f) / apart(s) for f, s in zip(found, states, strict=True)]) * np.sqrt(500)
    assert abs(ratio.mean() - 1) < 0.05 and ratio.std() < 0.1  # 1 / sqrt(2 * 128) = 0.06


def test_designs_read_the_policy_s_states(plan, prompts, monkeypatch):
    seen = []
    monkeypatch.setattr(
        choose, "projected", lambda states, whole=choose.projected: seen.append(states) or whole(states)
    )
    found = run(with_(plan, select="v_optimal", features="model"), prompts)
    assert found.counts["pairs"] + found.counts["prompts without a pair"] == 10
    assert [x.shape for x in seen[0]] == [(4, 16)] * 4  # of the tiny model's width
    with pytest.raises(ValueError, match="features: model, but select: best_worst reads none"):
        run(with_(plan, features="model"), prompts)
    with serving(lambda body: chat("a", "b")) as server, pytest.raises(ValueError, match="no policy is loaded here"):
        served = with_(plan, policies=(f"{server.url}#m",), select="d_optimal", features="model")
        run(with_(served, num_generations=2), prompts)


def test_a_strategy_that_cannot_be_is_refused(plan, prompts):
    for changes, message in (
        ({"select": "best"}, "expected one of best_worst"),
        ({"label": "people"}, "people give none; write proxy"),
        ({"num_generations": 1}, "makes no pair"),
        ({"label": ""}, "label: none given"),
        ({"label": {"type": "table", "values": [[1.0]]}}, "table reads token ids"),
        (
            {"label": {"type": "judge", "endpoint": "http://127.0.0.1:1", "model": "x", "cache": ""}},
            "cache: found none",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            run(with_(plan, **changes), prompts)


# Labels


@pytest.mark.parametrize(
    "spec",
    ["length:unit=words", "length:unit=tokens,prefer=shorter,unfinished=-9", "regex:pattern=b+", "keyword:words=[ab]"],
)
def test_a_reward_reads_the_texts_as_they_are(spec):
    config = parse_reward(spec)
    one = [
        Response(text="ab abb", draw="0", tokens=5),
        Response(text="", draw="1", tokens=1, finished=False),
        Response(text="c", draw="2", tokens=2),
    ]
    batch = Labeller.open(config).scored([("q", one), ((Message("user", "r"),), one[:1])])
    expected = [
        config.unfinished if getattr(config, "unfinished", None) is not None and not x.finished
        else config(Reply("q", text(x.text), x.finished, x.tokens))
        for x in one
    ]  # fmt: skip
    assert batch["reward"][0].tolist() == pytest.approx(expected)
    assert batch["reward"][1].isnan().tolist() == [False, True, True]


def test_a_labeller_is_named_by_what_it_does():
    assert name_of(parse_reward("length")) == "rule:length"
    assert name_of(parse_reward("length:prefer=shorter")) == "rule:length:prefer=shorter"
    assert name_of(parse_reward("judge:endpoint=http://127.0.0.1:1/v1,model=big")) == "judge:big"


def test_people_are_asked_for_each_pair_and_for_a_share_of_them_twice(plan, prompts, scripted):
    found = run(with_(plan, label="people", select="random", overlap=0.5, people=3, num_generations=2), prompts)
    with Store(plan.store) as store:
        wanted = [n for (n,) in store.rows("select wanted from pairs")]
        assert set(wanted) == {1, 3} and found.waiting == sum(wanted)
        assert store.rows("select count(*) from labels") == [(0,)]
        assert store.next_pair("ann") is not None


def test_a_proxy_chooses_and_people_label(plan, prompts, scripted):
    found = run(with_(plan, label="people", proxy="length:unit=words", select="best_worst"), prompts)
    assert found.waiting >= found.counts["pairs"] > 0
    with Store(plan.store) as store:
        assert store.rows("select distinct rewarded_by from responses") == [("rule:length:unit=words",)]


# A judge


def judged(plan, server, tmp_path, **settings):
    told = {"type": "judge", "endpoint": server.url, "model": "m", "cache": str(tmp_path / "judge.sqlite")}
    return with_(plan, label=told | {"backoff": 0.001, "retries": 1, "workers": 2} | settings, select="random")


def spent(plan):
    with Store(plan.store) as store:
        return store.rows("select total(requests) from paid")[0][0]


def test_a_judge_labels_the_chosen_pairs_in_both_orders(plan, prompts, scripted, tmp_path):
    with serving(longer) as server:
        found = run(judged(plan, server, tmp_path), prompts)
        pairs = found.counts["pairs"]
        assert 0 < len(server.asked) <= 2 * pairs and spent(plan) == len(server.asked)
        with Store(plan.store) as store:
            query = """select x.response, y.response, preferred from labels, pairs, responses x, responses y
                where pair = pairs.id and x.id = a and y.id = b"""
            for a, b, preferred in store.rows(query):
                a, b = len(restore(a)), len(restore(b))
                assert preferred == ("a" if a > b else "b" if b > a else "tie")
            assert store.rows("select distinct annotator, kind, shown from labels") == [("judge:m", "judge", "both")]
            said = dict(store.rows("select distinct preferred, orders from labels"))
            assert said.items() <= {"a": "a a", "b": "b b", "tie": "tie tie"}.items() and {"a", "b"} <= said.keys()


def test_what_a_judge_said_in_each_order_is_kept_and_no_verdict_is_no_tie(plan, prompts, scripted, tmp_path):
    """The first shown wins: a with a first and b with b first. Half of its answers have no verdict."""
    says = lambda body: chat("[[A]]" if len(body["messages"][1]["content"]) % 2 else "both are fine")
    with serving(says) as server:
        run(judged(plan, server, tmp_path, max_unclear=1.0), prompts)
    with Store(plan.store) as store:
        found = set(store.rows("select distinct preferred, orders from labels"))
    assert found <= {("tie", "a b"), ("skip", "unclear unclear"), ("skip", "a unclear"), ("skip", "unclear b")}
    assert {preferred for preferred, _ in found} == {"tie", "skip"}


@pytest.mark.parametrize(
    "trouble",
    [
        lambda body: (500, b"no"),
        lambda body: (429, b"slow down"),
        lambda body: (200, b"\xff nonsense"),
        lambda body: time.sleep(3) or chat("[[A]]"),
    ],
    ids=["fails", "limits", "nonsense", "stalls"],
)
def test_a_judge_in_trouble_costs_nothing_but_time(plan, prompts, scripted, tmp_path, trouble):
    """What is stored is whole, and in the end what it would have been without; no answer was paid for twice."""
    given, mended = [], False

    def say(body):
        if len(given) >= 7 and not mended:
            return trouble(body)
        given.append(json.dumps(body))
        return longer(body)

    settings = {"timeout": 2.0, "retries": 0}
    with serving(say) as server:
        with pytest.raises(JudgeFailed):
            run(judged(plan, server, tmp_path, **settings), prompts)
        with Store(plan.store) as store:
            count = lambda table: store.rows(f"select count(*) from {table}")[0][0]
            assert count("labels") == count("pairs") and count("chunks") < 3
            assert count("chunks") == store.rows("select count(distinct chunk) from pairs")[0][0]
        mended = True
        run(judged(plan, server, tmp_path, **settings), prompts)
        assert len(set(given)) == len(given)
        calm = with_(plan, store=str(tmp_path / "calm.sqlite"))
        run(judged(calm, server, tmp_path / "other", **settings), prompts)
    assert digest(plan) == digest(calm)


def test_a_judge_that_babbles_decides_nothing_and_then_is_stopped(plan, prompts, scripted, tmp_path):
    with serving(lambda body: chat("I like both.")) as server:
        with pytest.raises(JudgeFailed, match="had no verdict"):
            run(judged(with_(plan, prompts=30, chunk=5), server, tmp_path), prompts)
        with Store(plan.store) as store:
            assert store.rows("select distinct preferred, orders from labels") == [("skip", "unclear unclear")]


def test_the_budget_holds_over_restarts(plan, prompts, scripted, tmp_path):
    with serving(longer) as server:
        for _ in range(4):
            with pytest.raises(JudgeFailed, match="raise it to go on|are spent"):
                run(judged(plan, server, tmp_path, max_requests=9), prompts)
            assert len(server.asked) <= 9 and spent(plan) == len(server.asked)
        name = run(judged(plan, server, tmp_path, max_requests=100), prompts).plan  # the same plan goes on
        assert spent(plan) == len(server.asked) <= 20
        with Store(plan.store) as store:
            assert store.rows("select count(distinct plan) from chunks") == [(1,)] and store.done(name) == {0, 1, 2}


def test_a_judge_that_chooses_pairs_has_its_budget_over_restarts_too(plan, prompts, scripted, tmp_path):
    with serving(longer) as server:
        told = judged(plan, server, tmp_path, max_requests=9).label
        asked = with_(plan, label="people", proxy=told, select="best_worst")
        for _ in range(3):
            with pytest.raises(JudgeFailed, match="raise it to go on|are spent"):
                run(asked, prompts)
        assert len(server.asked) <= 9 and spent(plan) == len(server.asked)


def test_no_number_of_workers_and_retries_goes_over_the_budget(plan, prompts, scripted, tmp_path):
    """Half of the answers are errors, sixteen workers ask at once, and the process starts again five times."""
    count = itertools.count()
    trouble = lambda body: (503, b"busy") if next(count) % 2 else longer(body)
    with serving(trouble) as server:
        for _ in range(5):
            with pytest.raises(JudgeFailed):
                run(judged(plan, server, tmp_path, max_requests=17, retries=9, workers=16), prompts)
        assert 8 < len(server.asked) <= 17 and spent(plan) == len(server.asked)


def test_a_judge_inside_an_ensemble_keeps_its_budget(plan, prompts, scripted, tmp_path):
    with serving(longer) as server:
        judge = judged(plan, server, tmp_path, max_requests=9).label
        both = {"type": "ensemble", "members": [judge, {"type": "length"}]}
        for _ in range(3):
            with pytest.raises(JudgeFailed):
                run(with_(plan, label=both), prompts)
        assert len(server.asked) <= 9 and spent(plan) == len(server.asked)
        with pytest.raises(ValueError, match="label.cache: found none"):
            run(with_(plan, label=both | {"members": [judge | {"cache": ""}, {"type": "length"}]}), prompts)


# A served policy


def test_a_server_s_responses_and_log_probs_are_kept(plan, prompts, tmp_path):
    def say(body):
        n = body["n"]
        return chat(
            *[f"{body['messages'][-1]['content'][-9:]} {i}" for i in range(n)],
            logps=[[-0.5, -0.25 * i] for i in range(n)],
        )

    with serving(say, models=("m", "n")) as server:
        served = with_(plan, policies=(f"{server.url}#m",), num_generations=2, select="random", temperature=0.7)
        found = run(served, prompts)
        assert found.counts["responses"] == 20 and len(server.asked) == 10
        first = server.asked[0]
        assert (first["model"], first["n"], first["temperature"], first["max_tokens"]) == ("m", 2, 0.7, 12)
        with Store(plan.store) as store:
            query = "select distinct writer, policy_hash, logp, tokens, temperature from responses order by logp"
            assert store.rows(query) == [("m", "", -0.75, 2, 0.7), ("m", "", -0.5, 2, 0.7)]
        with pytest.raises(ValueError, match="serves m, n, not o"):
            run(with_(served, policies=(f"{server.url}#o",)), prompts)
        with pytest.raises(ValueError, match="which model"):
            run(with_(served, policies=(server.url,)), prompts)


def test_what_a_server_sampled_is_not_sampled_again_when_the_judge_fails(plan, prompts, tmp_path):
    count = itertools.count()
    say = lambda body: chat(*[f"answer {next(count)}" for _ in range(body["n"])])
    broken = True
    with serving(say) as server, serving(lambda body: (500, b"") if broken else longer(body)) as judge:
        told = with_(judged(plan, judge, tmp_path), policies=(f"{server.url}#m",), chunk=16)
        with pytest.raises(JudgeFailed):
            run(told, prompts)
        assert len(server.asked) == 10
        broken = False
        run(told, prompts)
        assert len(server.asked) == 10  # the draft was labelled


def test_a_server_in_trouble_is_named(plan, prompts, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    for say, message in (
        (lambda body: (503, b"busy"), "failed, at last with 503 busy"),
        (lambda body: (400, b"bad"), "failed, at last with 400 bad"),
        (lambda body: chat("one"), "answered with 1 choices, expected 4"),
        (lambda body: {"choices": [{"message": {}}] * 4}, "expected message.content"),
    ):
        with serving(say) as server, pytest.raises(ValueError, match=message):
            run(with_(plan, policies=(f"{server.url}#m",)), prompts)
    with pytest.raises(ValueError, match="failed, at last with"):
        run(with_(plan, policies=("http://127.0.0.1:9/v1#m",)), prompts)


def test_a_length_in_tokens_needs_a_server_that_counts(plan, prompts):
    with serving(lambda body: chat("a", "b c")) as server, pytest.raises(ValueError, match="write unit: words"):
        run(with_(plan, policies=(f"{server.url}#m",), num_generations=2, label="length"), prompts)


# Plans as files and flags


def test_flags_turn_what_the_file_says(tmp_path):
    path = tmp_path / "plan.yaml"
    told = {"policies": ["other"], "num_generations": 3, "temperature": 1, "label": {"type": "length"}, "prompts": 5}
    path.write_text(yaml.safe_dump(told))
    made = plan_of(["--plan", str(path), "--num_generations", "7", "--label=length:prefer=shorter"], "mine")
    assert made.policies == ("mine", "other")
    assert (made.num_generations, made.temperature, made.prompts) == (7, 1.0, 5)
    assert made.label == "length:prefer=shorter"
    assert plan_of(["--policies", "x", "y", "--label", "people"], "mine").policies == ("mine", "x", "y")


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"polices": ["x"]}, "did you mean policies"),
        ({"num_generations": "many"}, "num_generations"),
        ({"num_generations": 0}, "expected at least 1"),
        ({"label": 3}, "expected a word"),
        ({"temperature": "hot"}, "hot. @ plan.temperature"),
        ({"overlap": 2}, "expected a share"),
    ],
)
def test_a_wrong_plan_is_refused_in_the_user_s_words(tree, message):
    with pytest.raises(ValueError, match=message):
        from_dict(tree)


def test_a_budget_is_no_part_of_what_a_plan_is():
    judge = "judge:endpoint=http://127.0.0.1:1/v1,model=x,max_requests="
    same = [identity(Plan(label=f"{judge}{n}", device=d), ["h"], "p") for n, d in ((5, "cpu"), (9, "auto"))]
    assert same[0] == same[1]
    assert same[0] != identity(Plan(label=judge + "5,question=Which is shorter?"), ["h"], "p")
    assert labeller(Plan(label="people")) is None


# Kills

KILLED = """
import sys
from modeseek.collect.chunks import collect
from modeseek.collect.plan import Plan
from rich.console import Console
plan = Plan(policies=(sys.argv[1],), label="length:unit=words", store=sys.argv[3], chunk=2, prompts=60, max_length=64,
    max_completion_length=12, device="cpu")
print("on", flush=True)
collect(plan, sys.argv[2], console=Console(quiet=True))
"""


@pytest.mark.slow
def test_a_collection_killed_at_random_moments_ends_as_one_that_was_not(tiny, prompts, tmp_path):
    rng = np.random.default_rng(0)
    start = lambda store: subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tiny), prompts, str(tmp_path / store)], stdout=subprocess.PIPE, text=True
    )
    kills = 0
    while kills < 4:
        process = start("killed")
        process.stdout.readline()
        time.sleep(rng.uniform(0.05, 0.6))
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == 0:
            break
    for store in ("killed", "whole"):
        process = start(store)
        process.communicate()
        assert process.returncode == 0
    with Store(tmp_path / "killed") as killed, Store(tmp_path / "whole") as whole:
        assert killed.digest() == whole.digest()
        assert killed.rows("select count(*) from drafts") == [(0,)]
