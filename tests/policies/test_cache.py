"""The reference's log-probabilities on disk: found for the same question only, and equal to what was computed."""

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from modeseek.batch import Batch
from modeseek.config import load, to_dict
from modeseek.policies.adapter import Lora
from modeseek.policies.cache import Cached, identity, weights_hash
from modeseek.policies.hf import HFPolicy
from modeseek.policies.load import load_model
from modeseek.policies.packed import Packed
from modeseek.record import read
from modeseek.runs import train

ROOT = Path(__file__).parents[2]


def pairs():
    """Ragged: an absent place, an empty response, the same response to two prompts."""
    told = [[[8, 9, 2], [10, 2]], [[10, 2], []], [[3, 4, 5, 2]]]
    return Batch.of([[1, 5, 6], [1, 7], [1, 7, 8, 9]], told)


def policy(tiny, **options):
    model = load_model(str(tiny), **{k: v for k, v in options.items() if k in ("dtype", "lora")})
    return HFPolicy(model, eos=[2], max_new=4, fast=options.get("fast", True))


class Counted:
    """A reference that counts the responses it is asked about."""

    def __init__(self, reference):
        self.reference, self.module, self.asked = reference, reference.module, 0

    def logp(self, batch):
        self.asked += int((batch.present & batch.mask.any(-1)).sum())
        return self.reference.logp(batch)


def cached(reference, folder):
    made = Cached(reference, folder)
    made._reference = Counted(reference)
    return made


def asked_anew(reference, folder, batch=None):
    """How many responses are computed, with what the folder holds."""
    made = cached(reference, folder)
    made.logp(pairs() if batch is None else batch)
    return made._reference.asked


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("fast", [True, False])
def test_what_is_found_is_bit_for_bit_what_was_computed(tiny, tmp_path, dtype, fast):
    reference = policy(tiny, dtype=dtype, fast=fast).reference()
    want = reference.logp(pairs())
    for computed in (4, 0, 0):  # the absent and the empty response are no question
        made = cached(reference, tmp_path)
        got = made.logp(pairs())
        assert torch.equal(got, want) and got.dtype == want.dtype
        assert made._reference.asked == computed
        assert made.counts == {"found": 4 - computed, "computed": computed}


def test_only_what_is_missing_is_computed(tiny, tmp_path):
    reference = policy(tiny, dtype="float64").reference()
    assert asked_anew(reference, tmp_path, pairs().prompts(torch.tensor([1]))) == 1
    some = pairs().take(torch.tensor([[1, 0]] * 3))
    some = replace(some, present=some.present & torch.tensor([[True, False], [True, True], [True, True]]))
    assert asked_anew(reference, tmp_path, some) == 2  # prompt 0's second, prompt 2's
    made = cached(reference, tmp_path)
    torch.testing.assert_close(made.logp(pairs()), reference.logp(pairs()), rtol=1e-9, atol=1e-9)
    assert made._reference.asked == 1


def test_fresh_responses_are_computed_and_never_kept(tiny, tmp_path):
    reference = policy(tiny, dtype="float64").reference()
    fresh = torch.tensor([[False, True]] * 3)
    batch = replace(pairs(), fresh=fresh)
    assert [asked_anew(reference, tmp_path, batch) for _ in range(2)] == [4, 1]  # prompt 0's second is fresh
    made = Cached(reference, tmp_path)
    torch.testing.assert_close(made.logp(batch), reference.logp(batch), rtol=1e-9, atol=1e-9)
    assert len(made._shards) == 3


def test_a_number_that_is_not_finite_is_not_kept(tiny, tmp_path):
    made = cached(policy(tiny).reference(), tmp_path)
    right, at = made._reference.reference.logp(pairs()), torch.zeros(pairs().mask.shape, dtype=torch.bool)
    at[0, 0, 1] = True
    made._reference.reference = SimpleNamespace(logp=lambda batch: right.masked_fill(at, float("nan")))
    assert made.logp(pairs()).isnan().sum() == 1
    assert len(made._shards) == 3


def test_any_change_of_what_decides_the_numbers_misses(tiny, tmp_path):
    """Weights, dtype, attention path, temperature, prompt and response, each changed alone."""
    base = policy(tiny)
    assert asked_anew(base.reference(), tmp_path) == 4
    assert asked_anew(policy(tiny).reference(), tmp_path) == 0

    other = policy(tiny)
    with torch.no_grad():
        next(other.model.parameters()).view(-1)[0] += 1e-6
    assert asked_anew(other.reference(), tmp_path) == 4
    assert asked_anew(policy(tiny, dtype="float64").reference(), tmp_path) == 4
    assert asked_anew(policy(tiny, fast=False).reference(), tmp_path) == 4

    warm = policy(tiny).reference()
    warm.module._packed = Packed(warm.module.model, temperature=0.7)
    assert asked_anew(warm, tmp_path) == 4

    turned = policy(tiny)
    turned.model.config.rms_norm_eps *= 2
    assert asked_anew(turned.reference(), tmp_path) == 4
    with torch.autocast("cpu", torch.bfloat16):
        assert asked_anew(base.reference(), tmp_path) == 4
    assert asked_anew(base.reference(), tmp_path) == 0


TOLD = {
    "a prompt's token": ([1, 5, 7], [8, 9]),
    "a prompt's length": ([1, 5], [8, 9]),
    "a response's token": ([1, 5, 6], [8, 3]),
    "a response's length": ([1, 5, 6], [8]),
    "where the prompt ends": ([1, 5], [6, 8, 9]),
}


@pytest.mark.parametrize("change", TOLD)
def test_a_token_more_or_less_misses(tiny, tmp_path, change):
    reference = policy(tiny).reference()
    prompt, response = TOLD[change]
    assert asked_anew(reference, tmp_path, Batch.of([[1, 5, 6]], [[[8, 9]]])) == 1
    assert asked_anew(reference, tmp_path, Batch.of([prompt], [[response]])) == 1
    assert asked_anew(reference, tmp_path, Batch.of([[9, 9, 1], [1, 5, 6]], [[[4]], [[8, 9]]])) == 1  # the other stays


def test_an_adapters_base_is_the_model_it_sits_on_whatever_the_adapter_has_learnt(tiny, tmp_path):
    assert asked_anew(policy(tiny).reference(), tmp_path) == 4
    adapted = policy(tiny, lora=Lora(r=2))
    for learnt in (0.0, 0.5):
        with torch.no_grad():
            for name, x in adapted.model.named_parameters():
                x += learnt * ("lora_B" in name)
        made = cached(adapted.reference(), tmp_path)
        torch.testing.assert_close(made.logp(pairs()), policy(tiny).logp(pairs()), rtol=1e-5, atol=1e-5)
        assert made._reference.asked == 0
    assert weights_hash(adapted.model, adapters=True) != weights_hash(copy.deepcopy(policy(tiny).model), adapters=True)


def test_what_decides_the_numbers_is_stated(tiny, tmp_path):
    found = Cached(policy(tiny).reference(), tmp_path).describe()
    assert found["weights"] == weights_hash(policy(tiny).model, adapters=True) and len(found["weights"]) == 32
    assert found["dtype"] == "float32" and "packed" in found["path"] and found["temperature"] == "1.0"
    assert {**identity(policy(tiny)), "folder": str(tmp_path), "rows": {"found": 0, "computed": 0}} == found


def run(tiny, data, folder, *words, method="dpo"):
    short = ["--max-steps", "6", "--prompts-per-round", "4", "--max-length", "120", "--max-completion-length", "60"]
    short += ["--eval-prompts", "0", "--eval-steps", "0", "--dtype", "float64", "--learning-rate", "0.001"]
    return load(method, [*short, "--model", str(tiny), "--data", str(data), "--output-dir", str(folder), *words])


def test_a_run_finds_what_another_has_computed_and_takes_the_same_steps(tiny, fable_pairs, tmp_path):
    cache = ["--reference-cache", str(tmp_path / "cache")]
    rows = [read(train(run(tiny, fable_pairs, tmp_path / name, *flags))) for name, flags in RUNS(cache)]
    losses = [[row["loss"] for row in found.rows if "loss" in row] for found in rows]
    assert losses[1] == pytest.approx(losses[0], rel=1e-9) and losses[2] == pytest.approx(losses[0], rel=1e-9)
    told = [found.card.get("reference_cache") for found in rows]
    assert told[0] is None and told[1]["weights"] == told[2]["weights"]
    assert told[1]["rows"]["computed"] > 40 and told[2]["rows"]["computed"] == 0 and told[2]["rows"]["found"] > 40


def RUNS(cache):
    return [("plain", []), ("fills", cache), ("finds", cache)]


@pytest.mark.slow
def test_a_resumed_run_with_a_cache_goes_on_bit_for_bit(tiny, fable_pairs, tmp_path):
    """HyPO: pairs from the cache, fresh responses beside them; the data are gone through more than once."""
    more = ["--save-steps", "4", "--eval-size", "30"]
    part = lambda name, steps: run(
        tiny,
        fable_pairs,
        tmp_path / name,
        *more,
        *("--max-steps", str(steps), "--reference-cache", str(tmp_path / f"cache-{name}")),
        method="hypo",
    )
    whole = read(train(part("whole", 7)))
    train(part("cut", 4))
    resumed = read(train(part("cut", 7), resume=True))
    losses = [[(row["step"], row["loss"]) for row in found.rows if "loss" in row] for found in (whole, resumed)]
    assert losses[0] == losses[1] and len(losses[0]) == 7
    assert whole.card["reference_cache"]["rows"]["found"] > 10


@pytest.mark.parametrize(
    ("method", "words"),
    [("pref_ft", []), ("online_dpo", ["--reward", "length"])],
)
def test_a_cache_that_nothing_would_read_is_refused(tiny, fable_pairs, tmp_path, method, words):
    flags = ["--reference-cache", str(tmp_path / "cache"), *words]
    with pytest.raises(ValueError, match="reference_cache: .* asks no reference about the data's responses"):
        train(run(tiny, fable_pairs, tmp_path / "run", *flags, method=method))


@pytest.mark.slow
def test_two_processes_of_a_run_write_each_row_once(tiny, fable_pairs, tmp_path):
    alone = read(train(run(tiny, fable_pairs, tmp_path / "alone", "--reference-cache", str(tmp_path / "one"))))
    script = tmp_path / "run.py"
    words = run(tiny, fable_pairs, tmp_path / "both", "--reference-cache", str(tmp_path / "two"))
    script.write_text(
        "import sys\nfrom modeseek.config import from_dict\nfrom modeseek.runs import train\n"
        f"train(from_dict({to_dict(words)!r}))\n"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(launch, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    both = read(tmp_path / "both")
    losses = [[row["loss"] for row in found.rows if "loss" in row] for found in (alone, both)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    records = lambda folder: sum(path.stat().st_size for path in (tmp_path / folder).glob("*.index"))
    assert records("two") == records("one") and len(list((tmp_path / "two").glob("*.index"))) == 2
    computed = [found.card["reference_cache"]["rows"]["computed"] for found in (alone, both)]
    assert computed[0] <= computed[1] < 2 * computed[0]  # both prove the set-up right on the same four prompts
