"""The gates of many devices, with two and four processes on a CPU: equal gradients, resharding, killing, hanging."""

import importlib.util
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed.launch import torchrun
from modeseek import checkpoint
from modeseek.distributed import ALONE

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("steps.py")
_spec = importlib.util.spec_from_file_location("distributed_steps", WORKER)
assert _spec is not None and _spec.loader is not None
worker: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(worker)

GATES = ("pref_ft", "dpo", "hypo", "rloo", "ppo_critic")
ON_TWO = [f"{method}-fsdp-{kind}" for kind in ("full", "lora") for method in GATES]
ON_TWO += ["kto-fsdp-full", "pref_ft-ddp-full", "hypo-ddp-full", "dpo-fsdp-whole"]
ON_FOUR = ["kto-fsdp-full", "pref_ft-fsdp-full", "dpo-fsdp-lora", "hypo-fsdp-lora", "rloo-ddp-lora", "rloo-fsdp-full"]
ON_FOUR += ["ppo_critic-fsdp-full"]
SAVED = {2: ["rloo-fsdp-full:save:of-two", "dpo-fsdp-lora:save:of-two-lora"], 4: []}
RESUMED = {
    2: ["rloo-fsdp-full:resume:of-one"],
    4: ["rloo-ddp-full:resume:of-two", "dpo-fsdp-lora:resume:of-two-lora"],
}
LOADED = {2: ["dpo-fsdp-full:load:odd", "reward_model-fsdp-full:load:odd", "ppo_critic-fsdp-lora:load:model"]}
LOADED |= {4: ["dpo-fsdp-lora:load:odd", "dpo-fsdp-full:load:model"]}
PEAK, CACHED = "pref_ft-fsdp-full:peak:large", ["dpo-fsdp-full:cache:rows-fsdp", "dpo-ddp-full:cache:rows-ddp"]


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """A small Llama of two layers, pairs, and a checkpoint of one process."""
    from modeseek.data import fables
    from modeseek.policies.scratch import as_pretrained, small_llama

    root = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    words = fables.tokenizer()
    ends = {"pad": words.token_to_id(fables.PAD), "bos": words.token_to_id(fables.BOS)}
    shape = {"width": 16, "layers": 2, "heads": 2, "inner": 32, "context": 128}
    model = small_llama(words.get_vocab_size(), **shape, **ends, eos=words.token_to_id(fables.EOS))
    model.save_pretrained(root / "model")
    tokenizer = as_pretrained(words, pad=fables.PAD, bos=fables.BOS, eos=fables.EOS, context=128)
    tokenizer.save_pretrained(root / "model")
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in fables.pairs(40, seed=0)))
    large = {"width": 512, "layers": 12, "heads": 4, "inner": 2048, "context": 128}
    other = {
        "odd": _odd(words.get_vocab_size()),
        "large": small_llama(words.get_vocab_size(), **large, **ends, eos=words.token_to_id(fables.EOS)).bfloat16(),
    }
    for name, model in other.items():
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


def _odd(vocabulary: int) -> Any:
    """Untied, with biases, and no size that four processes could share out evenly."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    shape = {"hidden_size": 18, "intermediate_size": 22, "num_hidden_layers": 2, "num_attention_heads": 3}
    return GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=vocabulary, max_position_embeddings=128, **shape))


@pytest.fixture(scope="session")
def alone(world) -> dict[str, Any]:
    """What one process does in each case."""
    kinds = {tuple(c.replace("-whole", "-lora").split("-")[::2]) for c in [*ON_TWO, *ON_FOUR]}
    found = {f"{method}-{kind}": worker.steps(world, f"{method}-auto-{kind}", ALONE) for method, kind in sorted(kinds)}
    found |= {c.replace("-fsdp-", "-auto-"): None for c in [*LOADED[2], *LOADED[4]]}
    for case in (c for c in found if ":load:" in c):
        found[case] = worker.loaded(world, case, ALONE)
    found["cached"] = worker.cached(world, "dpo-auto-full:cache:rows-alone", ALONE)
    found["saved"] = worker.rows(world, "rloo-auto-full:save:of-one", ALONE)
    found["saved-lora"] = worker.rows(world, "dpo-auto-lora:save:of-one-lora", ALONE)
    return found


def together(world: Path, processes: int, cases: list[str]) -> dict[str, Any]:
    out = world / f"of-{processes}.pt"
    team = torchrun(processes, str(WORKER), str(world), str(out), *cases)
    said, _ = team.communicate(timeout=400)
    (world / f"of-{processes}.log").write_text(said)
    assert team.returncode == 0, "\n".join(x for x in said.splitlines() if not x.startswith(("  File", "E1", "W1")))
    return torch.load(out)


@pytest.fixture(scope="session")
def two(world, alone) -> dict[str, Any]:
    return together(world, 2, [PEAK, *ON_TWO, *SAVED[2], *RESUMED[2], *LOADED[2], *CACHED])


@pytest.fixture(scope="session")
def four(world, two) -> dict[str, Any]:
    return together(world, 4, [*ON_FOUR, *RESUMED[4], *LOADED[4]])


@pytest.mark.parametrize(
    ("size", "case"), [("two", c) for c in ON_TWO] + [("four", c) for c in ON_FOUR], ids=lambda x: str(x)
)
def test_any_number_of_processes_gives_the_same_gradient(size, case, alone, request):
    """Prompts of unequal length, unequal counts, and with four a rank without any; 1e-6 relative in float64."""
    ours = request.getfixturevalue(size)[case]
    method, _, kind = case.split("-")
    told = alone[f"{method}-{'full' if kind == 'full' else 'lora'}"]
    assert ours["grads"].keys() == told["grads"].keys() and ours["grads"]
    for name, grad in told["grads"].items():
        torch.testing.assert_close(ours["grads"][name], grad, rtol=1e-6, atol=1e-6 * float(grad.abs().max()))
    assert max(float(g.abs().max()) for g in told["grads"].values()) > 1e-4  # there is something to compare
    assert torch.equal(ours["responses"], told["responses"])
    same_rows(ours["rows"], told["rows"])
    same_rows([ours["held_out"]], [told["held_out"]])
    for name, weight in told["weights"].items():
        torch.testing.assert_close(ours["weights"][name], weight, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("size", "case"), [("two", c) for c in RESUMED[2]] + [("four", c) for c in RESUMED[4]], ids=lambda x: str(x)
)
def test_a_run_saved_on_some_processes_goes_on_with_the_same_losses_on_others(size, case, alone, request):
    told = alone["saved-lora" if "lora" in case else "saved"]["rows"]
    same_rows(request.getfixturevalue(size)[case]["rows"], told)


def test_a_sharded_checkpoint_goes_on_in_one_process(world, alone, two):
    same_rows(two[SAVED[2][0]]["rows"], alone["saved"]["rows"])
    same_rows(worker.rows(world, "rloo-auto-full:resume:of-two", ALONE)["rows"], alone["saved"]["rows"])
    same_rows(worker.rows(world, "dpo-auto-lora:resume:of-two-lora", ALONE)["rows"], alone["saved-lora"]["rows"])
    assert len(list((world / "of-two").glob("step-*/shards/*.safetensors"))) == 2


@pytest.mark.parametrize(("size", "case"), [("two", c) for c in LOADED[2]] + [("four", c) for c in LOADED[4]])
def test_a_model_that_is_loaded_in_pieces_has_the_weights_of_one_that_is_loaded_whole(size, case, alone, request):
    """Policy, critic, adapters, reference and buffers, to the last bit; and it says the same."""
    ours, told = request.getfixturevalue(size)[case], alone[case.replace("-fsdp-", "-auto-")]
    assert ours.keys() == told.keys() and ours["paths"] == told["paths"]
    for who in ours.keys() - {"said", "paths"}:
        assert ours[who].keys() == told[who].keys()
        assert all(torch.equal(ours[who][name], x) for name, x in told[who].items()), who
    torch.testing.assert_close(ours["said"], told["said"], rtol=1e-6, atol=1e-9)


def test_loading_in_pieces_never_holds_the_whole_model_where_it_is_not_read(world, two):
    """A model of 200 MB in float32 (stored in bfloat16, so that reading it makes a copy): rank 0 has one copy and its
    half, rank 1 its half: 1.52 and 0.51 were measured. Read by both before it is cut, it takes 1.5 on each."""
    size = 2 * (world / "large" / "model.safetensors").stat().st_size
    first, second = two[PEAK]
    assert size > 190e6
    assert first < 1.75 * size and second < 0.75 * size, (first / size, second / size)


@pytest.mark.parametrize("case", CACHED)
def test_many_ranks_fill_one_cache_and_ask_the_reference_once_about_a_response(case, world, alone, two):
    """Whoever of them writes: 36 pairs are 72 rows, found again in the second pass and by a run of one process."""
    told, ours = alone["cached"], two[case]
    assert told["rows"] == ours["rows"] == told["asked"] == ours["asked"] > 0
    for a, b in zip(ours["ref"], told["ref"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    again = worker.cached(world, f"dpo-auto-full:cache:{case.rpartition(':')[2]}", ALONE)
    assert again["rows"] == 0 and again["asked"] == 2 * told["rows"]


def same_rows(ours: list[dict[str, float]], told: list[dict[str, float]]) -> None:
    for a, b in zip(ours, told, strict=True):
        assert a == pytest.approx(b, rel=1e-6, abs=1e-9)


def test_a_rank_that_hangs_inside_a_sharded_backward_pass_is_named_with_the_collective_it_was_last_in(world):
    """It has given its share of the gradients above its first layer, and the others wait for what comes next."""
    said, seconds = named(torchrun(2, str(WORKER), str(world), str(world / "none.pt"), "backward"))
    assert "rank 1 stopped answering at step 1, last seen at: forward and backward, adding gradients up" in said
    assert seconds < 100


@pytest.mark.parametrize("how", ["hang", "freeze"])
def test_a_rank_that_stops_answering_is_named_with_its_step_and_what_it_did(how, world):
    """One hangs with its threads alive, so that it is known by the others' waiting; one says nothing any more."""
    team = torchrun(2, str(WORKER), str(world), str(world / "none.pt"), how)
    said, seconds = named(team)
    assert "rank 1 stopped answering at step 3, last seen at: scoring" in said, said[-3000:]
    assert seconds < 60 and team.returncode != 0


def test_a_killed_rank_is_named_and_the_run_goes_on_from_its_checkpoint(world, tmp_path):
    folder = tmp_path / "run"
    words = ["dpo", "--model", str(world / "model"), "--data", str(world / "pairs.jsonl"), "--output-dir", str(folder)]
    words += [
        "--parallel",
        "fsdp",
        "--prompts-per-round",
        "4",
        "--max-completion-length",
        "8",
        "--truncate-responses",
        "--save-steps",
        "1",
    ]
    words += ["--eval-size", "4", "--eval-steps", "0", "--hang-timeout", "5", "--background-saves"]
    team = torchrun(2, "-m", "modeseek", "train", *words, "--max-steps", "100000")
    assert reached(folder, 3, team), team.communicate(timeout=5)[0][-3000:]
    os.kill(rank_of(team.pid, 1), signal.SIGKILL)
    said, seconds = named(team)
    assert "rank 1 stopped answering at step" in said and "go on with --resume" in said, said[-3000:]
    assert seconds < 60 and team.returncode != 0
    assert any("rank 1" in w for w in json.loads((folder / "card.json").read_text())["warnings"])
    last = checkpoint.latest(folder / "checkpoints")
    assert last is not None
    step = int(last.name.removeprefix("step-"))
    again = torchrun(2, "-m", "modeseek", "train", *words, "--max-steps", str(step + 2), "--resume")
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said[-3000:]
    steps = [json.loads(line)["step"] for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == list(range(1, step + 3)) and f"resumed from step {step}" in said
    same_model(folder)


def named(team: subprocess.Popen[str]) -> tuple[str, float]:
    """All that was said, and the seconds until a rank was named; torchrun then takes up to half a minute to end."""
    began, seconds, said = time.monotonic(), float("inf"), []
    assert team.stdout is not None
    with team.stdout as lines:
        for line in lines:
            said.append(line)
            if "stopped answering" in line:
                seconds = min(seconds, time.monotonic() - began)
    team.wait(60)
    return "".join(said), seconds


def same_model(folder: Path) -> None:
    """What was exported is what the last checkpoint holds, the tied output layer included."""
    from transformers import AutoModelForCausalLM

    last = checkpoint.latest(folder / "checkpoints")
    assert last is not None
    stored = {n.removeprefix("model."): x for n, x in checkpoint.weights(last).items()}
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    found = dict(model.named_parameters())
    assert found.keys() == stored.keys()
    assert all(torch.equal(found[n], stored[n]) for n in stored)


def reached(folder: Path, step: int, team: subprocess.Popen[str]) -> bool:
    for _ in range(600):
        if any(int(p.name.removeprefix("step-")) >= step for p in checkpoint.listed(folder / "checkpoints")):
            return True
        if team.poll() is not None:
            return False
        time.sleep(0.2)
    return False


def rank_of(launcher: int, rank: int) -> int:
    """The process that torchrun started as this rank."""
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"\0RANK={rank}\0".encode() in b"\0" + Path(f"/proc/{pid}/environ").read_bytes():
            return int(pid)
    raise AssertionError("torchrun has no such rank")
