"""A server draws the samples of several processes: it is played by a policy of ours, given weights over the disk."""

import contextlib
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from collect.stub import running
from distributed.launch import torchrun
from vllm_server.stub import FakeVLLM

pytestmark = pytest.mark.slow
CASES = ["rloo-ddp-full", "rloo-fsdp-full", "rloo-fsdp-lora"]


def steps(root: Path, out: Path, *cases: str) -> tuple[int, str]:
    done = torchrun(2, str(Path(__file__).with_name("steps.py")), str(root), str(out), *cases)
    said, _ = done.communicate(timeout=300)
    return done.returncode, said


@pytest.fixture
def root(tiny, fable_pairs, tmp_path) -> Path:
    (tmp_path / "model").symlink_to(tiny)
    (tmp_path / "pairs.jsonl").symlink_to(fable_pairs)
    return tmp_path


def server(root: Path) -> FakeVLLM:
    ends = (AutoTokenizer.from_pretrained(root / "model").eos_token_id,)
    return FakeVLLM(str(root / "model"), ends=ends, context=512)


def test_one_rank_tells_a_server_the_weights_and_all_learn_from_its_samples(root):
    """After each step the gate compares what both say: a piece of the weights, or old ones, would end the run."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(running(server(root))) for _ in CASES]
        cases = [f"{case}:serve:{fake.server_address[1]}" for case, fake in zip(CASES, servers, strict=True)]
        code, said = steps(root, root / "found.pt", *cases)
    assert code == 0, said
    for case, found, fake in zip(CASES, torch.load(root / "found.pt").values(), servers, strict=True):
        for mine, theirs in zip(*found["heard"], strict=True):
            assert torch.equal(mine["response"], theirs["response"])
            assert torch.equal(mine["old_logp"], theirs["old_logp"])
            assert mine["moved"] > 1e-4  # the weights are others than those that wrote it
        assert found["syncs"] == 2 and found["gap"] < 1e-4
        brought = "/v1/load_lora_adapter" if case.endswith("lora") else "/collective_rpc"
        assert [body["path"] for body in fake.asked].count(brought) == 2  # one rank alone spoke with it


def test_a_server_that_keeps_old_weights_ends_all_ranks(root):
    with running(server(root)) as fake:
        fake.deaf = True
        code, said = steps(root, root / "none.pt", f"rloo-fsdp-full:serve:{fake.server_address[1]}")
    assert code != 0
    assert "what was loaded is not what it serves" in said
    assert "the leading rank gave up" in said
