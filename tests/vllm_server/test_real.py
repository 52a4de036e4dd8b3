"""vLLM itself: what it samples is what the policy says, before and after each change of weights."""

import json
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from torch import Generator
from transformers import AutoModelForCausalLM

from modeseek.batch import Batch
from modeseek.collect.chunks import collect
from modeseek.collect.plan import Plan
from modeseek.collect.store import Store
from modeseek.config import from_dict
from modeseek.data import fables
from modeseek.policies.hf import HFPolicy
from modeseek.policies.sync import in_step
from modeseek.policies.vllm import Server, VLLMSampler
from modeseek.runs import train

pytestmark = pytest.mark.vllm
ENDS, NEW = (2,), 24
QUIET = Console(quiet=True)
PROMPT = torch.tensor([[0, 0, 1, 5], [0, 1, 6, 7], [1, 8, 9, 10]])
MASK = PROMPT != 0


@pytest.fixture
def policy(served):
    return HFPolicy(AutoModelForCausalLM.from_pretrained(served), eos=ENDS, max_new=NEW)


@pytest.fixture
def sampler(server):
    return VLLMSampler(Server.open(server, where="sampler"), ends=ENDS, max_new=NEW)


def rng(seed=0) -> Generator:
    return Generator().manual_seed(seed)


def nexts(policy: HFPolicy, prompt: list[int], temperature: float = 1.0) -> torch.Tensor:
    """The log-probability of every token after a prompt."""
    every = [[token] for token in range(policy.model.config.vocab_size)]  # type: ignore[union-attr]
    with torch.no_grad():
        return (policy.logp(Batch.of([prompt], [every]))[0, :, 0].double() / temperature).log_softmax(-1)


def gap(a: torch.Tensor, b: torch.Tensor, batch: Batch) -> float:
    return float((a - b).abs()[batch.mask].max())


def moved(policy: HFPolicy, by: float, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in policy.model.parameters():
        if parameter.requires_grad:
            parameter.data += by * torch.randn_like(parameter)


@torch.no_grad()
def test_its_log_probabilities_are_ours_whether_it_sampled_or_is_asked(sampler, policy):
    own = sampler.sample(PROMPT, MASK, 16, rng())
    assert gap(own["old_logp"], policy.logp(own), own) < 1e-4
    assert gap(sampler.logp(own), policy.logp(own), own) < 1e-4
    assert 0 < own["finished"].float().mean() < 1  # both kinds are there
    last = own.response.gather(-1, own.mask.sum(-1, keepdim=True) - 1).squeeze(-1)
    assert ((last == 2) == own["finished"]).all()


def test_its_samples_follow_the_whole_distribution_whatever_the_generation_config_says(sampler, policy):
    sampler.max_new, n = 1, 2000
    first = sampler.sample(PROMPT[:1], MASK[:1], n, rng(1)).response[0, :, 0]
    p = nexts(policy, [1, 5]).exp()
    seen = torch.bincount(first, minlength=len(p)).double()
    order = p.argsort(descending=True)
    cells = torch.bucketize((p[order].cumsum(0) - p[order] / 2), torch.linspace(0, 1, 41)[1:-1].double())
    expected = torch.zeros(40, dtype=torch.float64).index_add_(0, cells, n * p[order])
    found = torch.zeros(40, dtype=torch.float64).index_add_(0, cells, seen[order])
    there = expected > 0
    chi2, df = float(((found - expected) ** 2 / expected)[there].sum()), int(there.sum()) - 1
    assert abs(chi2 - df) < 4 * math.sqrt(2 * df)  # mean df, variance 2 df; top_p 0.8 would empty a fifth


def test_a_seed_draws_the_same_again(sampler):
    draw = lambda seed: sampler.sample(PROMPT, MASK, 2, rng(seed)).response.tolist()
    assert draw(3) == draw(3) != draw(4)


def test_at_another_temperature_it_says_what_it_sampled_from(sampler, policy):
    assert sampler.processed
    own = sampler.sample(PROMPT, MASK, 4, rng(), temperature=0.7)
    said = nexts(policy, [1, 8, 9, 10], 0.7)[own.response[2, :, 0]]
    assert (own["old_logp"][2, :, 0] - said).abs().max() < 1e-4
    greedy = sampler.sample(PROMPT, MASK, 2, rng(), temperature=0.0)
    assert greedy.response[2, 0, 0] == nexts(policy, [1, 8, 9, 10]).argmax()


@torch.no_grad()
def test_full_weights_are_in_step_after_each_change(server, policy, tmp_path):
    drawn = in_step(server, policy, tmp_path, where="sampler")
    try:
        for step in range(3):
            own = drawn.sample(PROMPT, MASK, 4, rng())
            assert gap(own["old_logp"], policy.logp(own), own) < 1e-4 and drawn.syncs == step + 1
            moved(policy, 0.02, step)
        assert drawn.gap < 1e-5
    finally:  # the other tests find the server as it was
        drawn.policy.model.load_state_dict(AutoModelForCausalLM.from_pretrained(drawn.sampler.server.root).state_dict())
        drawn.prove(PROMPT, MASK)


@torch.no_grad()
def test_adapters_are_in_step_after_each_change(server, policy, tmp_path):
    torch.manual_seed(0)
    model = get_peft_model(policy.model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))  # type: ignore[arg-type]
    learner = HFPolicy(model, eos=ENDS, max_new=NEW)
    drawn = in_step(server, learner, tmp_path, where="sampler")
    for step in range(4):
        own = drawn.sample(PROMPT, MASK, 4, rng())
        assert gap(own["old_logp"], learner.logp(own), own) < 1e-4 and drawn.syncs == step + 1
        moved(learner, 0.2, step)
    names = drawn.sampler.server.names()
    assert sum(name.startswith("modeseek-") for name in names) == 1


@pytest.mark.parametrize("lora", [{"r": 4}, None], ids=["lora", "full"])
def test_a_run_learns_from_its_samples(server, served, fable_pairs, tmp_path, lora):
    tree = {"method": "online_dpo", "objective": {"type": "dpo"}, "stages": ["score", "best_worst", "refer"]}
    tree |= {"source": {"type": "on_policy", "num_generations": 4}, "reward": "length:prefer=shorter"}
    tree |= {"model": str(served), "data": str(fable_pairs), "output_dir": str(tmp_path / "run"), "device": "cpu"}
    tree |= {"max_length": 64, "max_completion_length": 16, "prompts_per_round": 4, "max_steps": 4, "lora": lora}
    tree |= {"sampler": server, "eval_prompts": 0, "eval_steps": 0, "eval_size": 0, "save_steps": 0}
    folder = train(from_dict(tree | {"learning_rate": 1e-3}), console=QUIET)
    card = json.loads((folder / "card.json").read_text())
    assert card["self_test"]["server_gap"] < 1e-4 and card["sampler"]["version"].startswith("vLLM 0.32")


def test_a_plan_collects_from_it(server, tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": fables.PROMPT.format(animal=animal, place="marsh")} for animal in fables.ANIMALS[:3]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = Plan(
        policies=(server,),
        label="length:prefer=shorter",
        store=str(tmp_path / "s.sqlite"),
        max_length=64,
        max_completion_length=16,
    )
    assert collect(plan, str(path), console=QUIET).counts["responses"] == 12
    with Store(plan.store) as store:
        assert store.rows("select count(*) from responses where logp < 0 and tokens between 1 and 16") == [(12,)]
