"""A real vLLM on this machine's CPU, in an environment of its own."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest
import torch

PYTHON = pathlib.Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"
PATIENCE = 300.0  # seconds until it answers


def pytest_collection_modifyitems(config, items):
    """Only those who ask for them by the mark get them."""
    if "vllm" not in (config.option.markexpr or ""):
        gone = [item for item in items if item.get_closest_marker("vllm")]
        config.hook.pytest_deselected(items=gone)
        items[:] = [item for item in items if item not in gone]


@pytest.fixture(scope="session")
def served(tmp_path_factory) -> pathlib.Path:
    """A random Llama with heads of 32, which vLLM has kernels for, and a generation config that would spoil samples."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from modeseek.data import fables
    from modeseek.policies.scratch import as_pretrained

    torch.manual_seed(0)
    words = fables.tokenizer()
    pad, bos, eos = (words.token_to_id(word) for word in (fables.PAD, fables.BOS, fables.EOS))
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 2, "max_position_embeddings": 128, "vocab_size": words.get_vocab_size()}
    ends = {"pad_token_id": pad, "bos_token_id": bos, "eos_token_id": eos}
    # Not tied: on a CPU, vLLM 0.32 keeps the old output layer of a tied model when weights are reloaded in place.
    model = LlamaForCausalLM(LlamaConfig(**shape, **ends, tie_word_embeddings=False, initializer_range=0.2))
    model.generation_config.update(do_sample=True, temperature=0.5, top_p=0.8, repetition_penalty=1.3)
    folder = tmp_path_factory.mktemp("served")
    model.save_pretrained(folder)
    as_pretrained(words, pad=fables.PAD, bos=fables.BOS, eos=fables.EOS, context=128).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def server(served, tmp_path_factory):
    """`vllm:URL` of the model, started with what takes adapters and weights."""
    if not (PYTHON.parents[1] / "ready").is_file():
        pytest.skip(f"vLLM is not installed in {PYTHON.parents[1].name}: `make test-vllm` tries to")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The package's metadata are not called `vllm`, which its command line asks for; the module is the same server.
    words = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(served)]
    words += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "m", "--dtype", "float32"]
    words += ["--enforce-eager", "--max-model-len", "128", "--enable-lora", "--max-lora-rank", "8"]
    words += ["--logprobs-mode", "processed_logprobs"]
    on = ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "HF_HUB_OFFLINE", "VLLM_CPU_KVCACHE_SPACE")
    on += ("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_SERVER_DEV_MODE")
    env = os.environ | dict.fromkeys(on, "1") | {"VLLM_TARGET_DEVICE": "cpu"}
    env["PATH"] = f"{PYTHON.parent}{os.pathsep}{env['PATH']}"
    log = tmp_path_factory.mktemp("log") / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, env=env, start_new_session=True)
    try:
        _wait(process, port, log)
        yield f"vllm:http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(process: subprocess.Popen, port: int, log: pathlib.Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        time.sleep(0.5)
    raise AssertionError(f"vLLM did not start:\n{log.read_text()[-4000:]}")
