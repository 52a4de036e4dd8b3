"""A model for others: the same answers after the merge, one copy in memory, nothing pushed unasked, no token kept."""

import base64
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeseek.cli import main as modeseek
from modeseek.commands.export import main
from modeseek.data.template import Template
from modeseek.policies import gguf
from modeseek.policies.adapter import Lora
from modeseek.policies.hf import HFPolicy
from modeseek.policies.load import load_model
from modeseek.policies.merge import export


@pytest.fixture
def adapter(tiny, tmp_path):
    """A folder with an adapter that changes every answer, and the policy that it is of."""
    torch.manual_seed(0)
    policy = HFPolicy(load_model(str(tiny), lora=Lora(r=2, alpha=8)), eos=[2], max_new=6)
    with torch.no_grad():
        for x in policy.parameters():
            if x.requires_grad:
                x.add_(0.2 * torch.randn_like(x))
    policy.save(tmp_path / "adapter", Template.load(str(tiny)).tokenizer)
    return policy, tmp_path / "adapter"


def some_responses(policy):
    prompt = torch.tensor([[5, 6, 7], [8, 9, 10]])
    ones = torch.ones_like(prompt, dtype=torch.bool)
    return policy.sample(prompt, ones, 3, torch.Generator().manual_seed(0))


def test_a_merged_adapter_says_what_base_and_adapter_said(tiny, adapter, tmp_path):
    policy, folder = adapter
    batch = some_responses(policy)
    done = export(str(folder), tmp_path / "out", merge=True)
    merged = HFPolicy(load_model(str(tmp_path / "out")), eos=[2], max_new=6)
    want = policy.logp(batch).detach()
    torch.testing.assert_close(merged.logp(batch).detach(), want, rtol=1e-5, atol=1e-5)
    assert (policy.reference().logp(batch) - want).abs().max() > 0.05  # the adapter does something
    assert done.merged_into == str(tiny) and done.shards == 1 and done.dtype == "F32"
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert Template.load(str(tmp_path / "out")).prompt_ids("the fox") == Template.load(str(tiny)).prompt_ids("the fox")


def test_shards_hold_every_tensor_once_and_load_as_one_model(tiny, tmp_path):
    done = export(str(tiny), tmp_path / "out", shard_size="4KB")
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert done.shards == len(shards) > 2
    whole, parts = load_file(tiny / "model.safetensors"), [load_file(shard) for shard in shards]
    assert sum(map(len, parts)) == len(whole)
    assert all(torch.equal(x, whole[name]) for part in parts for name, x in part.items())
    again = load_model(str(tmp_path / "out"))
    assert all(torch.equal(again.state_dict()[name], x) for name, x in whole.items())


def test_weights_are_written_in_the_dtype_that_is_asked_for(tiny, tmp_path):
    assert export(str(tiny), tmp_path / "same").dtype == "F32"
    assert export(str(tiny), tmp_path / "half", dtype="bfloat16").dtype == "BF16"


def test_an_adapter_is_copied_where_nobody_asks_for_the_merge(adapter, tmp_path):
    _, folder = adapter
    done = export(str(folder), tmp_path / "out")
    assert done.merged_into == "" and (tmp_path / "out" / "adapter_config.json").is_file()
    assert {f.name for f in folder.iterdir()} == {f.name for f in (tmp_path / "out").iterdir()}


def test_what_cannot_be_done_is_said_and_leaves_nothing(tiny, adapter, tmp_path):
    _, folder = adapter
    with pytest.raises(ValueError, match="merge: .* is no adapter"):
        export(str(tiny), tmp_path / "out", merge=True)
    with pytest.raises(ValueError, match="dtype: an adapter is copied as it is"):
        export(str(folder), tmp_path / "out", dtype="bfloat16")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(ValueError, match="out: .* not empty"):
        export(str(tiny), tmp_path / "full")
    told = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(told | {"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(ValueError, match="model: .*gone cannot be loaded"):
        export(str(folder), tmp_path / "out", merge=True)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["adapter", "full"]


PEAK = """
import sys, resource, torch
from pathlib import Path
from modeseek.policies import merge
import peft, transformers.models.llama.modeling_llama
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
merge.export(sys.argv[1], Path(sys.argv[2]), merge=True, shard_size="20MB")
print(peak() - before)
"""


@pytest.mark.slow
def test_the_model_is_held_once(tiny, tmp_path):
    """200 MB of weights are merged and written with less than 1.6 times as much memory."""
    from modeseek.policies.scratch import small_llama

    shape = {"width": 512, "layers": 12, "heads": 4, "inner": 2048, "context": 64}
    model = small_llama(1000, **shape, pad=0, bos=1, eos=2)
    model.save_pretrained(tmp_path / "base")
    policy = HFPolicy(load_model(str(tmp_path / "base"), lora=Lora(r=2)), eos=[2], max_new=4)
    policy.save(tmp_path / "adapter", Template.load(str(tiny)).tokenizer)
    size = sum(x.numel() * x.element_size() for x in model.parameters())
    words = [sys.executable, "-c", PEAK, str(tmp_path / "adapter"), str(tmp_path / "out")]
    grown = int(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])
    assert size > 190e6 and grown < 1.6 * size, (grown / 1e6, size / 1e6)


# the check for llama.cpp


def said(folder, kind):
    return [finding.what for finding in gguf.check(folder) if finding.kind == kind]


def changed(folder, file, **entries):
    told = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(told | entries))


@pytest.fixture
def ready(tiny, tmp_path):
    """A Llama with a tokenizer of Llama 2's kind: nothing stops the converter."""
    export(str(tiny), tmp_path / "ready")
    changed(tmp_path / "ready", "tokenizer.json", model={"type": "BPE", "vocab": {"a": 0}, "byte_fallback": True})
    return tmp_path / "ready"


def test_a_llama_with_a_known_kind_of_tokenizer_is_ready(ready):
    assert said(ready, "stop") == []
    assert any("LlamaForCausalLM is known" in x for x in said(ready, "good"))
    assert any("embeddings are tied and stored once" in x for x in said(ready, "good"))
    assert any("writes f16" in x for x in said(ready, "note"))  # float32 is not what `auto` writes


@pytest.mark.parametrize(
    ("file", "entries", "match"),
    [
        ("config.json", {"architectures": ["OPTForCausalLM"]}, "OPTForCausalLM is not among"),
        ("config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes are not read"),
        ("config.json", {"tie_word_embeddings": False}, "no output layer is stored"),
        ("tokenizer.json", {"model": {"type": "WordLevel", "vocab": {"a": 0}}}, "tokenizer is WordLevel"),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 0}}}, "BPE without merges"),
        ("tokenizer.json", {"added_tokens": [{"id": 10**6, "content": "<x>"}]}, "the tokenizer writes id 1000000"),
    ],
)
def test_what_would_stop_the_converter_is_found(ready, file, entries, match):
    changed(ready, file, **entries)
    assert len(said(ready, "stop")) == 1 and match in said(ready, "stop")[0]


def test_shards_that_are_not_those_of_the_index_are_found(tiny, ready, tmp_path):
    export(str(tiny), tmp_path / "cut", shard_size="4KB")
    (tmp_path / "cut" / "tokenizer.json").write_text((ready / "tokenizer.json").read_text())
    assert said(tmp_path / "cut", "stop") == []
    last = sorted((tmp_path / "cut").glob("model-*.safetensors"))[-1]
    save_file({"odd": torch.zeros(1)}, last)
    assert "the index and the shards differ" in said(tmp_path / "cut", "stop")[0]


def test_byte_level_tokenizers_and_control_words_are_noted(ready):
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
    changed(ready, "tokenizer.json", model=model, pre_tokenizer={"type": "ByteLevel"})
    changed(ready, "tokenizer_config.json", prompt_prefix="<good> ")
    notes = " ".join(said(ready, "note"))
    assert "by a hash" in notes and "begin with '<good> '" in notes and said(ready, "stop") == []


SMALL = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 2, "max_position_embeddings": 32}
FEW, TIED = {"num_key_value_heads": 1, "head_dim": 8}, {"tie_word_embeddings": True}


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", FEW),
        ("mistral", FEW),
        ("qwen2", {"num_key_value_heads": 1}),
        ("qwen3", FEW),
        ("gemma", FEW | TIED),
        ("gemma2", FEW | TIED),
        ("gemma3_text", FEW | TIED),
        ("phi3", {"num_key_value_heads": 1, "pad_token_id": 0}),
        ("gpt_neox", {}),
        ("smollm3", FEW | {"pad_token_id": 0}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_llama_cpp_has_a_name_for_every_tensor_of_the_models_that_people_train(kind, more, tmp_path):
    """Looked up in llama.cpp's own table; a tensor that it does not know stops the converter."""
    pytest.importorskip("gguf", reason="llama.cpp's package gguf has the table of names")
    from transformers import AutoConfig, AutoModelForCausalLM

    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL, **more)).save_pretrained(tmp_path)
    assert [x for x in said(tmp_path, "good") if x.startswith("each of")], said(tmp_path, "stop")
    shard = tmp_path / "model.safetensors"
    save_file(load_file(shard) | {"model.layers.0.extra.weight": torch.zeros(1)}, shard)
    assert "1 tensors have no name in a GGUF file, such as model.layers.0.extra.weight" in said(tmp_path, "stop")


def test_without_the_table_names_are_not_looked_up_and_it_says_so(ready, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert any("were not looked up" in x for x in said(ready, "note")) and said(ready, "stop") == []


def test_an_adapter_is_not_ready(adapter):
    assert "export it with --merge" in said(adapter[1], "stop")[0]


# the command


def test_the_command_writes_checks_and_ends_with_one_where_the_converter_would_stop(tiny, tmp_path, capsys):
    """The tokenizer of the fables is one of words."""
    assert modeseek(["export", str(tiny), str(tmp_path / "plain")]) == 0
    assert main([str(tiny), str(tmp_path / "out"), "--gguf-check"]) == 1
    told = capsys.readouterr().out
    assert "1 file(s) of weights" in told and "stop: the tokenizer is WordLevel" in told
    assert modeseek(["export", str(tiny), str(tmp_path / "out")]) == 2
    assert modeseek(["export", str(tiny), str(tmp_path / "new"), "--public"]) == 2
    assert modeseek(["export", str(tiny), str(tmp_path / "new"), "--push", "name"]) == 2


class Hub(ThreadingHTTPServer):
    """A stand-in for a hub: it takes repositories and commits whose files come along, and remembers what was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.asked, self.files, self.refuses = [], {}, False

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.path, self.headers.get("Authorization"), body))
        if self.server.refuses:
            return self._say({"error": "no"}, 403)
        if self.path == "/api/repos/create":
            return self._say({"url": f"{self.server.address}/me/model"})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            return self._say({"files": [{**f, "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        for line in filter(None, body.split(b"\n")) if "/commit/" in self.path else ():
            told = json.loads(line)
            if told["key"] == "file":
                self.server.files[told["value"]["path"]] = base64.b64decode(told["value"]["content"])
        return self._say({"commitUrl": f"{self.server.address}/me/model/commit/1", "commitOid": "1", "success": True})

    do_GET = do_POST

    def _say(self, told, status=200):
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_push_uploads_the_files_to_a_private_repository_and_keeps_no_token(hub, tiny, tmp_path, capsys):
    assert main([str(tiny), str(tmp_path / "out"), "--push", "me/model"]) == 0
    told = capsys.readouterr().out
    assert "/me/model/commit/1" in told and "hf_secret" not in told
    path, token, body = hub.asked[0]
    assert path == "/api/repos/create" and token == "Bearer hf_secret"
    assert json.loads(body).get("visibility") == "private" or json.loads(body)["private"] is True  # by the hub's client
    written = {f.name: f.read_bytes() for f in (tmp_path / "out").iterdir()}
    assert {n: x for n, x in hub.files.items() if n != ".gitattributes"} == written
    assert not any(b"hf_secret" in content for content in written.values())


def test_nothing_is_asked_of_the_hub_without_push(hub, tiny, tmp_path):
    assert main([str(tiny), str(tmp_path / "out")]) == 0 and hub.asked == []


def test_a_push_without_a_token_or_that_the_hub_refuses_is_said_without_the_token(hub, tiny, tmp_path, monkeypatch):
    hub.refuses = True
    with pytest.raises(ValueError, match="push: me/model was not uploaded: .*403") as error:
        main([str(tiny), str(tmp_path / "out"), "--push", "me/model"])
    assert "hf_secret" not in str(error.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="push: no token"):
        main([str(tiny), str(tmp_path / "again"), "--push", "me/model"])
