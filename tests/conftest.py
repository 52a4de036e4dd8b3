"""Small real objects that the tests share."""

import dataclasses
import itertools
import json
import typing
from pathlib import Path

import pytest
import torch

from modeseek.batch import Batch
from modeseek.objectives import AnyObjective, HyPO
from modeseek.policies.bandit import Bandit
from modeseek.policies.gpt import gpt_policy
from wide import DAPO, KTO, ActorCriticPPO, WithValue

torch.set_num_threads(1)
SHARED = Path(__file__).parents[2] / "shared"  # real data and a real small model, beside some checkouts
VOCAB, EOS = 11, 0

POLICIES = {
    "bandit": lambda: Bandit(torch.randn(5, 7)),
    "gpt": lambda: gpt_policy(VOCAB, eos=EOS, max_new=4),
}


def objectives() -> list[typing.Any]:
    """Every objective of the union that reads a policy, options that change what is read included."""
    shipped = [cls() for cls in typing.get_args(AnyObjective) if cls.__name__ != "BradleyTerry"]
    variants = [
        HyPO(kl_baseline="leave_one_out"),
        HyPO(kl_baseline="running_mean"),
        *(type(o)(correction="ratio") for o in shipped if type(o).__name__ == "PolicyGradient"),
        *(type(o)(kl=0.1, logp_reduction="mean") for o in shipped if type(o).__name__ == "PPO"),
    ]
    return [*shipped, *variants, KTO(), DAPO(), ActorCriticPPO()]


def shared(path: str) -> Path:
    """A file beside the checkout, or a skip."""
    if not (SHARED / path).exists():
        pytest.skip(f"../shared/{path} is not beside this checkout")
    return SHARED / path


def reference_cases(*kinds: str) -> list[dict[str, typing.Any]]:
    """Input and output cases from other projects' tests, of these kinds."""
    cases = json.loads(shared("data/loss_reference/dev_cases.json").read_text())
    return [case for case in cases if case["kind"] in kinds]


@pytest.fixture(params=objectives(), ids=repr)
def objective(request):
    return request.param


@pytest.fixture(params=POLICIES)
def policy(request):
    torch.manual_seed(0)
    return WithValue(POLICIES[request.param]().double(), prompts=VOCAB)


@pytest.fixture
def batch(policy):
    """Six prompts of unequal length and weight; groups of 5, one of them ragged; every column filled with noise."""
    rng = torch.Generator().manual_seed(1)
    bandit = isinstance(policy.policy, Bandit)
    prompt = torch.randint(1, 5, (6, 1 if bandit else 3), generator=rng)
    prompt_mask = torch.ones_like(prompt, dtype=torch.bool)
    if not bandit:
        prompt_mask[::2, 0] = False
    drawn = policy.sample(prompt, prompt_mask, 5, rng)
    present = drawn.present.clone()
    present[1, 4] = False
    mask = drawn.mask & present[..., None]
    if not bandit:
        mask[2, 1] = False  # an empty response
    fresh = torch.tensor([[False, False, True, True, True]] * 6)
    drawn = dataclasses.replace(
        drawn, present=present, mask=mask, fresh=fresh, weight=torch.tensor([1.0, 2, 1, 0.5, 1, 3])
    )
    noise = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)
    P, K, T = drawn.response.shape
    with torch.no_grad():
        logp = policy.logp(drawn)
    share = drawn.weight.sum() / drawn.mask.sum()
    return drawn.fill(
        reward=noise(P, K),
        advantage=noise(P, K, T),
        returns=noise(P, K, T),
        old_value=noise(P, K, T),
        old_logp=logp + 0.1 * noise(P, K, T),
        ref_logp=logp + noise(P, K, T),
        baseline=noise(P),
        label=noise(P, K) > 0,
        z0=noise(P).abs(),
        token_share=share.double().expand(P).clone(),
        row=torch.arange(P),
    )


def every(vocab: int, length: int, prompt: list[int], pad: int = 0) -> Batch:
    """One prompt and all vocab ** length responses to it."""
    return Batch.of([prompt], [list(itertools.product(range(vocab), repeat=length))], pad=pad)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A folder with a small random Llama and the fables tokenizer, as save_pretrained writes it."""
    from modeseek.data import fables
    from modeseek.policies.scratch import as_pretrained, small_llama

    torch.manual_seed(0)
    words = fables.tokenizer()
    shape = {"width": 16, "layers": 1, "heads": 2, "inner": 32, "context": 128}
    ends = {"pad": words.token_to_id(fables.PAD), "bos": words.token_to_id(fables.BOS)}
    model = small_llama(words.get_vocab_size(), **shape, **ends, eos=words.token_to_id(fables.EOS))
    folder = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(folder)
    as_pretrained(words, pad=fables.PAD, bos=fables.BOS, eos=fables.EOS, context=128).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def fable_pairs(tmp_path_factory) -> Path:
    """Forty preference pairs of fables as JSONL."""
    from modeseek.data import fables

    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in fables.pairs(40, seed=0)))
    return path
