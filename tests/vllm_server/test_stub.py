"""The sampler over a server that behaves, and over ones that do not."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from torch import Generator
from transformers import AutoModelForCausalLM

from collect.stub import Server, running
from modeseek.batch import Batch
from modeseek.build import build
from modeseek.collect.chunks import collect
from modeseek.collect.plan import Plan
from modeseek.collect.store import Store
from modeseek.config import from_dict
from modeseek.data import fables
from modeseek.policies import cache
from modeseek.policies.base import Policy
from modeseek.policies.hf import HFPolicy
from modeseek.policies.serving import Endpoint, ServerFailed
from modeseek.policies.sync import InStep, OutOfStep, in_step
from modeseek.policies.vllm import KEY, VLLMSampler
from modeseek.policies.vllm import Server as VLLM
from modeseek.runs import train
from vllm_server.stub import FakeVLLM

ENDS, NEW = (2,), 6
QUIET = Console(quiet=True)
PROMPT = torch.tensor([[0, 1, 5], [1, 6, 7]])
MASK = torch.tensor([[False, True, True], [True, True, True]])


@pytest.fixture
def server(tiny):
    with running(FakeVLLM(str(tiny), ends=ENDS)) as found:
        yield found


@pytest.fixture
def policy(tiny):
    return HFPolicy(AutoModelForCausalLM.from_pretrained(tiny), eos=ENDS, max_new=NEW)


def opened(server, **options) -> VLLMSampler:
    return VLLMSampler(VLLM.open(server.word, where="sampler"), ends=ENDS, max_new=NEW, **options)


def rng(seed=0) -> Generator:
    return Generator().manual_seed(seed)


def moved(policy: HFPolicy, by: float) -> None:
    """As an optimiser step would."""
    torch.manual_seed(1)
    for parameter in policy.model.parameters():
        if parameter.requires_grad:
            parameter.data += by * torch.randn_like(parameter)


def adapted(policy: HFPolicy) -> HFPolicy:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    return HFPolicy(get_peft_model(copy.deepcopy(policy.model), config), eos=ENDS, max_new=NEW)  # type: ignore[arg-type]


# What is asked and what comes back


def test_it_is_a_policy_that_says_and_samples_what_the_served_one_does(server, policy):
    sampler = opened(server)
    assert isinstance(sampler, Policy) and list(sampler.parameters()) == []
    own = sampler.sample(PROMPT, MASK, 3, rng())
    assert own.fresh.all() and own.present.all() and own.prompt is PROMPT
    with torch.no_grad():
        torch.testing.assert_close(own["old_logp"][own.mask], policy.logp(own)[own.mask], atol=1e-5, rtol=0)
        torch.testing.assert_close(sampler.logp(own)[own.mask], policy.logp(own)[own.mask], atol=1e-5, rtol=0)
    last = own.response.gather(-1, own.mask.sum(-1, keepdim=True) - 1).squeeze(-1)
    assert ((last == 2) == own["finished"]).all()
    assert (own.mask.sum(-1) == NEW)[~own["finished"]].all()


def test_every_request_names_the_whole_distribution_and_seeds_that_do_not_meet(server):
    opened(server).sample(PROMPT, MASK, 3, rng())
    first, second = (body for body in server.asked if body["path"] == "/v1/completions")
    assert sorted([first["prompt"], second["prompt"]]) == [[1, 5], [1, 6, 7]]  # padding stays here
    off = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": True}
    off |= {"presence_penalty": 0.0, "frequency_penalty": 0.0, "watermarking": False, "stop_token_ids": [2], "n": 3}
    assert {name: first[name] for name in off} == off
    assert abs(first["seed"] - second["seed"]) > 3  # the server counts up from a seed for the n choices


def test_the_same_seed_draws_the_same_and_another_does_not(server):
    sampler = opened(server)
    draw = lambda seed: sampler.sample(PROMPT, MASK, 4, rng(seed)).response.tolist()
    assert draw(0) == draw(0) != draw(1)


def test_samples_follow_the_policy_s_distribution(server, policy):
    n = 500
    sampler = opened(server)
    sampler.max_new = 1
    first = sampler.sample(PROMPT[1:], MASK[1:], n, rng(5)).response[0, :, 0]
    every = Batch.of([[1, 6, 7]], [[[token] for token in range(policy.model.config.vocab_size)]])
    with torch.no_grad():
        p = policy.logp(every)[0, :, 0].exp().double()
    seen = torch.bincount(first, minlength=len(p)).double()
    chi2 = float(((seen - n * p) ** 2 / (n * p)).sum())
    df = len(p) - 1
    assert abs(chi2 - df) < 4 * math.sqrt(2 * df)  # mean df, variance 2 df


def test_greedy_is_asked_once_and_is_certain(server):
    own = opened(server).sample(PROMPT, MASK, 3, rng(), temperature=0.0)
    assert (own.response == own.response[:, :1]).all() and (own["old_logp"] == 0).all()
    assert {body["n"] for body in server.asked if body["path"] == "/v1/completions"} == {1}


def test_another_temperature_needs_a_server_that_says_what_it_sampled_from(server, policy):
    with pytest.raises(ValueError, match="sampler: .*--logprobs-mode processed_logprobs"):
        opened(server).sample(PROMPT, MASK, 2, rng(), temperature=0.7)
    server.processed = True
    own = opened(server).sample(PROMPT, MASK, 2, rng(), temperature=0.7)
    tokens = own.response[1, 0, :1]
    every = Batch.of([[1, 6, 7]], [[[token] for token in range(policy.model.config.vocab_size)]])
    with torch.no_grad():
        expected = (policy.logp(every)[0, :, 0] / 0.7).log_softmax(-1)[tokens]
    torch.testing.assert_close(own["old_logp"][1, 0, :1], expected, atol=1e-5, rtol=0)


def test_what_does_not_fit_is_refused_and_not_cut(server):
    server.context = 8
    with pytest.raises(ValueError, match="a prompt of 3 tokens and max_completion_length 6 do not fit in the 8"):
        opened(server).sample(PROMPT, MASK, 1, rng())


# Servers that cannot be used


def test_a_server_that_is_absent_old_or_another_is_named(server):
    for word, message in (
        ("vllm:http://127.0.0.1:9", "sampler: no answer from http://127.0.0.1:9; start it with `vllm serve MODEL`"),
        (f"{server.word}#other", "serves m, not other"),
        ("vllm:localhost", "expected a URL"),
    ):
        with pytest.raises(ValueError, match=message):
            VLLM.open(word, where="sampler", backoff=0.0)
    server.number = "0.11.2"
    with pytest.raises(ValueError, match="is vLLM 0.11.2, expected 0.32 or newer"):
        VLLM.open(server.word, where="sampler")
    with running(Server(lambda body: None)) as other:
        other.answer = lambda path, body: (404, b"no such page")
        with pytest.raises(ValueError, match="is no vLLM server"):
            VLLM.open(f"vllm:{other.url}", where="sampler", backoff=0.0)


def test_a_name_is_needed_where_several_models_are_served(server):
    server.adapters = {"a": None}
    assert VLLM.open(server.word, where="sampler").model == "m"  # an adapter is no second model
    assert VLLM.open(f"{server.word}#a", where="sampler").context == 128  # its base's
    two = {"data": [{"id": "m", "max_model_len": 8}, {"id": "n", "max_model_len": 8}]}
    before = server.answer
    server.answer = lambda path, body: two if path == "/v1/models" else before(path, body)
    with pytest.raises(ValueError, match="serves m, n, so which one"):
        VLLM.open(server.word, where="sampler")


@pytest.mark.parametrize(
    "change",
    [
        {"token_ids": None},
        {"token_ids": []},
        {"token_ids": [5, "6"]},
        {"token_ids": [5, -1]},
        {"token_ids": [5] * 7},
        {"token_ids": [5, 2, 5, 5, 5, 5], "finish_reason": "length"},
        {"token_ids": [5, 5], "finish_reason": "stop"},
        {"token_ids": [5, 5], "finish_reason": "length"},
        {"token_ids": [5, 2], "finish_reason": "abort"},
        {"logprobs": None},
        {"logprobs": {"token_logprobs": [float("nan")] * 6}},
        {"logprobs": {"token_logprobs": [0.5] * 6}},
        {"logprobs": {"token_logprobs": [None] * 6}},
        {"logprobs": [1, 2]},
    ],
    ids=json.dumps,
)
def test_an_answer_that_cannot_be_is_refused(server, change):
    def spoil(choice):
        n = len(change.get("token_ids") or [5] * NEW)
        sound = {"token_ids": [5] * NEW, "finish_reason": "length", "logprobs": {"token_logprobs": [-1.0] * n}}
        return {"index": choice["index"], **sound, **change}

    server.wrong = spoil
    with pytest.raises(ServerFailed, match="sampler: .* answered .*, expected"):
        opened(server).sample(PROMPT, MASK, 2, rng())


def test_a_token_that_the_policy_does_not_know_is_another_model_s(server):
    server.wrong = lambda choice: {**choice, "token_ids": [91] * len(choice["token_ids"])}
    with pytest.raises(ValueError, match="wrote token 91, and the policy knows 50: it serves another model"):
        opened(server, vocabulary=50).sample(PROMPT, MASK, 1, rng())


def test_trouble_that_passes_is_waited_out_and_what_stays_is_named(server, monkeypatch):
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    sampler, before, failures = opened(server), server.answer, [(503, b"busy"), (200, b"<html>"), (429, b"slow")]
    server.answer = lambda path, body: failures.pop() if failures else before(path, body)
    sampler.sample(PROMPT[:1], MASK[:1], 1, rng())
    assert waits == [1.0, 2.0, 4.0]
    server.answer = lambda path, body: (400, b"context")
    with pytest.raises(ServerFailed, match="/v1/completions failed, at last with 400 context"):
        sampler.sample(PROMPT[:1], MASK[:1], 1, rng())


def test_an_endless_answer_is_cut_and_a_key_is_never_shown(monkeypatch):
    monkeypatch.setattr("modeseek.policies.serving._AT_MOST", 1000)
    with running(Server(lambda body: None)) as server:
        server.answer = lambda path, body: (200, b"x" * 100_000)
        ask = Endpoint(url=server.url, where="sampler", key="secret", retries=0).ask
        with pytest.raises(ServerFailed, match="more than 1000 bytes"):
            ask("/v1/models")
        server.answer = lambda path, body: (403, b"your key secret is wrong")
        with pytest.raises(ServerFailed, match=r"your key \*\*\* is wrong"):
            ask("/v1/models")
    assert "secret" not in repr(Endpoint(url="http://127.0.0.1", where="sampler", key="secret"))


def test_the_key_is_read_where_vllm_reads_it(server, monkeypatch):
    monkeypatch.setenv(KEY, "abc")
    assert VLLM.open(server.word, where="sampler").endpoint.key == "abc"


# Weights in step


def test_full_weights_are_brought_when_they_changed_and_only_then(server, policy, tmp_path):
    drawn = in_step(server.word, policy, tmp_path, where="sampler")
    for step in range(3):
        own = drawn.sample(PROMPT, MASK, 2, rng())
        with torch.no_grad():
            torch.testing.assert_close(own["old_logp"][own.mask], policy.logp(own)[own.mask], atol=1e-5, rtol=0)
        assert drawn.gap < 1e-5 and drawn.syncs == step + 1
        drawn.sample(PROMPT, MASK, 2, rng())
        assert drawn.syncs == step + 1
        moved(policy, 0.05)
    assert [p.name for p in tmp_path.iterdir()] == [drawn.version]  # older weights are not kept
    salts = [body["cache_salt"] for body in server.asked if body["path"] == "/v1/completions"]
    assert len(set(salts)) == 3  # what was computed under other weights is not reused


def test_adapters_are_loaded_under_a_name_of_their_content(server, policy, tmp_path):
    learner = adapted(policy)
    drawn = in_step(server.word, learner, tmp_path, where="sampler")
    names = []
    for _ in range(3):
        moved(learner, 0.3)
        own = drawn.sample(PROMPT, MASK, 2, rng())
        with torch.no_grad():
            torch.testing.assert_close(own["old_logp"][own.mask], learner.logp(own)[own.mask], atol=1e-5, rtol=0)
        names.append(drawn.sampler.model)
        assert list(server.adapters) == [names[-1]]  # the one before is gone
    assert len(set(names)) == 3


@pytest.mark.parametrize("full", [True, False], ids=["full", "adapters"])
def test_a_server_that_keeps_its_old_weights_is_found_out(server, policy, tmp_path, full):
    learner = policy if full else adapted(policy)
    drawn = in_step(server.word, learner, tmp_path, where="sampler")
    drawn.sample(PROMPT, MASK, 1, rng())
    server.deaf = True
    moved(learner, 0.05 if full else 0.3)
    for _ in range(2):  # and again: a failure is not forgotten
        with pytest.raises(OutOfStep, match="what was loaded is not what it serves"):
            drawn.sample(PROMPT, MASK, 1, rng())


def test_under_noise_the_weights_of_before_are_told_from_those_of_now(policy, server, tmp_path):
    """A server in half precision differs by 0.01; 0.03 away from now and none from before is stale, not noise."""
    drawn = in_step(server.word, policy, tmp_path, where="sampler")
    drawn.prove(PROMPT, MASK)
    drawn.floor, drawn.syncs = 0.009, 2
    before = drawn._before
    assert before is not None and drawn._probes is not None
    there = drawn._probes.mask
    drawn.policy = type("Moved", (), {"logp": lambda self, b: policy.logp(b).detach() - 0.04 * b.mask})()  # type: ignore[assignment]
    said = torch.zeros(there.shape)
    said[there] = before.float()
    with pytest.raises(OutOfStep, match="still has the weights of before"):
        drawn._agree(said, "says")


def test_another_model_or_temperature_is_found_before_anything_is_learnt(server, policy, tmp_path):
    server.model = copy.deepcopy(server.model)
    torch.manual_seed(3)
    server.model.lm_head.weight.data += 0.5 * torch.randn_like(server.model.lm_head.weight)
    server.deaf = True
    with pytest.raises(OutOfStep, match="samples with log-probabilities that differ .* does it serve this model"):
        in_step(server.word, policy, tmp_path, where="sampler").prove(PROMPT, MASK)


def test_a_server_that_was_started_anew_is_given_the_weights_again(server, policy, tmp_path):
    for learner in (policy, adapted(policy)):
        drawn = in_step(server.word, learner, tmp_path / str(learner.has_adapter), where="sampler")
        moved(learner, 0.05)
        drawn.sample(PROMPT, MASK, 1, rng())
        server.mark, server.adapters = "default", {}
        server.model = AutoModelForCausalLM.from_pretrained(server.folder)
        own = drawn.sample(PROMPT, MASK, 1, rng())
        assert drawn.syncs == 2
        with torch.no_grad():
            torch.testing.assert_close(own["old_logp"][own.mask], learner.logp(own)[own.mask], atol=1e-5, rtol=0)


def test_a_server_that_another_run_writes_to_is_noticed(server, policy, tmp_path):
    drawn = in_step(server.word, policy, tmp_path, where="sampler")
    drawn.prove(PROMPT, MASK)
    before = server.answer

    def told_meanwhile(path, body):
        said = before(path, body)
        if path == "/v1/completions":
            server.mark = "theirs"
        return said

    server.answer = told_meanwhile
    with pytest.raises(OutOfStep, match="was given other weights while it sampled"):
        drawn.sample(PROMPT, MASK, 1, rng())


def test_a_server_that_takes_no_weights_says_how_to_start_it(server, policy, tmp_path):
    server.dev = False
    for learner, flag in ((policy, "VLLM_SERVER_DEV_MODE=1"), (adapted(policy), "--enable-lora")):
        with pytest.raises(ServerFailed, match=f"takes no weights: start it with .*{flag}"):
            in_step(server.word, learner, tmp_path, where="sampler").prove(PROMPT, MASK)


# In a run, in a plan


def run_of(tiny, pairs, server, tmp_path, **more):
    tree = {"method": "online_dpo", "objective": {"type": "dpo"}, "stages": ["score", "best_worst", "refer"]}
    tree |= {"source": {"type": "on_policy", "num_generations": 2}, "reward": "length:prefer=shorter"}
    tree |= {"model": str(tiny), "data": str(pairs), "output_dir": str(tmp_path / "run"), "device": "cpu"}
    tree |= {"max_length": 64, "max_completion_length": 8, "prompts_per_round": 2, "max_steps": 3}
    tree |= {
        "sampler": server.word,
        "eval_prompts": 0,
        "eval_steps": 0,
        "eval_size": 0,
        "save_steps": 0,
        "learning_rate": 1e-2,
    }
    return from_dict(tree | more)


@pytest.mark.parametrize("lora", [None, {"r": 2}], ids=["full", "lora"])
def test_a_run_learns_from_what_the_server_samples(tiny, fable_pairs, server, tmp_path, lora):
    folder = train(run_of(tiny, fable_pairs, server, tmp_path, lora=lora), console=QUIET)
    card = json.loads((folder / "card.json").read_text())
    assert card["sampler"]["version"] == "vLLM 0.32.0" and card["sampler"]["weights"].startswith(
        "adapt" if lora else "all"
    )
    assert card["self_test"]["server_gap"] < 1e-4
    assert any("a run repeated or resumed draws others" in line for line in card["warnings"])
    rounds = {body["cache_salt"] for body in server.asked if body["path"] == "/v1/completions" and body["n"] == 2}
    assert len(rounds) == 3  # each round by the policy of then
    assert (folder / "model").is_dir()


def test_a_sampler_that_cannot_be_honoured_is_refused(tiny, fable_pairs, server, tmp_path):
    for changes, message in (
        ({"source": {"type": "offline"}, "reward": None, "stages": ["refer"]}, "draws no samples; leave it out"),
        ({"sampler": "http://127.0.0.1:8000"}, "expected vllm:URL"),
        ({"stop_strings": ["."]}, "stop_strings"),
    ):
        with pytest.raises(ValueError, match=message):
            build(run_of(tiny, fable_pairs, server, tmp_path, **changes))


def prompts_file(tmp_path) -> str:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": fables.PROMPT.format(animal=animal, place="marsh")} for animal in fables.ANIMALS[:3]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_plan_collects_from_a_model_that_only_its_server_has(server, tiny, tmp_path):
    plan = Plan(policies=(server.word,), label="length:prefer=shorter", store=str(tmp_path / "s.sqlite"))
    plan = Plan(**{**vars(plan), "max_length": 64, "max_completion_length": 8, "device": "cpu"})
    found = collect(plan, prompts_file(tmp_path), console=QUIET)
    assert found.counts["responses"] == 12
    with Store(plan.store) as store:
        (row,) = store.rows("select distinct writer, policy_hash, temperature from responses")
        assert row == (f"{server.word.removeprefix('vllm:')}#m", "", 1.0)
        assert store.rows("select count(*) from responses where logp < 0 and tokens between 1 and 8") == [(12,)]


def test_a_plan_s_own_policies_are_sampled_through_the_server(server, tiny, tmp_path):
    plan = Plan(policies=(str(tiny),), sampler=server.word, label="length:prefer=shorter", device="cpu")
    plan = Plan(**{**vars(plan), "max_length": 64, "max_completion_length": 8, "store": str(tmp_path / "s.sqlite")})
    collect(plan, prompts_file(tmp_path), console=QUIET)
    assert sum(body["path"] == "/collective_rpc" for body in server.asked) == 1
    with Store(plan.store) as store:
        ((name, known),) = store.rows("select distinct writer, policy_hash from responses")
        assert name == str(tiny) and len(known) == 32
    assert not list(Path(tmp_path).glob("*.sampler/draft"))


def test_hashes_tell_weights_apart():
    x = torch.arange(4.0)
    same = cache.tensors_hash([("a", x), ("b", x)])
    assert same == cache.tensors_hash([("b", x.clone()), ("a", x)]) and len(same) == 32
    others = (
        [("a", x), ("b", x + 1)],
        [("a", x), ("c", x)],
        [("a", x.double()), ("b", x)],
        [("a", x.view(2, 2)), ("b", x)],
    )
    assert same not in {cache.tensors_hash(other) for other in others}
    assert InStep.__doc__
