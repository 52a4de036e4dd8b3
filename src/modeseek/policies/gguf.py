"""Whether llama.cpp's converter will take a folder: what would stop it, and what it would change. Reads files only."""

import importlib
import importlib.util
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from modeseek.policies.merge import header, is_adapter

# Of TEXT_MODEL_MAP in conversion/__init__.py of https://github.com/ggml-org/llama.cpp at
# 00bdaa105cb03380daf899b4fc9f026555745269, read on 2026-11-21: those that transformers 5.23 loads as causal LMs.
SINCE = "2026-11-21"
_NAMES = """
AfmoeForCausalLM ApertusForCausalLM ArceeForCausalLM BambaForCausalLM BloomForCausalLM Cohere2ForCausalLM
Cohere2MoeForCausalLM CohereForCausalLM DbrxForCausalLM DeepseekV2ForCausalLM DeepseekV32ForCausalLM
DeepseekV3ForCausalLM Dots1ForCausalLM Ernie4_5ForCausalLM Ernie4_5_MoeForCausalLM Exaone4ForCausalLM
FalconForCausalLM FalconH1ForCausalLM FalconMambaForCausalLM GPT2LMHeadModel GPTBigCodeForCausalLM
GPTNeoXForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM Gemma3ForConditionalGeneration Gemma3nForCausalLM
Gemma3nForConditionalGeneration Gemma4ForCausalLM Gemma4ForConditionalGeneration GemmaForCausalLM Glm4ForCausalLM
Glm4MoeForCausalLM Glm4MoeLiteForCausalLM GlmForCausalLM GlmMoeDsaForCausalLM GptOssForCausalLM GraniteForCausalLM
GraniteMoeForCausalLM GraniteMoeHybridForCausalLM GraniteMoeSharedForCausalLM HunYuanDenseV1ForCausalLM
HunYuanMoEV1ForCausalLM Jais2ForCausalLM JambaForCausalLM KimiLinearForCausalLM Lfm2ForCausalLM Lfm2MoeForCausalLM
Llama4ForCausalLM LlamaForCausalLM Mamba2ForCausalLM MambaForCausalLM MellumForCausalLM MiMoV2FlashForCausalLM
MiniCPM3ForCausalLM MiniMaxM2ForCausalLM Ministral3ForCausalLM MistralForCausalLM MixtralForCausalLM
NemotronForCausalLM NemotronHForCausalLM Olmo2ForCausalLM Olmo3ForCausalLM OlmoForCausalLM OlmoeForCausalLM
Phi3ForCausalLM PhiForCausalLM Qwen2ForCausalLM Qwen2MoeForCausalLM Qwen3ForCausalLM Qwen3MoeForCausalLM
Qwen3NextForCausalLM Qwen3_5ForCausalLM Qwen3_5MoeForCausalLM SeedOssForCausalLM SmolLM3ForCausalLM
SolarOpenForCausalLM StableLmForCausalLM Starcoder2ForCausalLM YoutuForCausalLM
"""
KNOWN = frozenset(_NAMES.split())
# Of the same files: what llama.cpp's own package `gguf` calls those whose tensors it knows by their names there.
ARCHITECTURES = {
    "FalconForCausalLM": "FALCON",
    "GPT2LMHeadModel": "GPT2",
    "GPTNeoXForCausalLM": "GPTNEOX",
    "Gemma2ForCausalLM": "GEMMA2",
    "Gemma3ForCausalLM": "GEMMA3",
    "GemmaForCausalLM": "GEMMA",
    "GraniteForCausalLM": "GRANITE",
    "LlamaForCausalLM": "LLAMA",
    "MistralForCausalLM": "LLAMA",
    "MixtralForCausalLM": "LLAMA",
    "Olmo2ForCausalLM": "OLMO2",
    "OlmoForCausalLM": "OLMO",
    "Phi3ForCausalLM": "PHI3",
    "PhiForCausalLM": "PHI2",
    "Qwen2ForCausalLM": "QWEN2",
    "Qwen3ForCausalLM": "QWEN3",
    "SmolLM3ForCausalLM": "SMOLLM3",
    "StableLmForCausalLM": "STABLELM",
}
UNWRITTEN = ("rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias", ".attn.bias", ".attn.masked_bias")
TYPES = {"BF16": "bf16", "F16": "f16"}  # of weights: the converter's `--outtype auto`


@dataclass(frozen=True)
class Finding:
    """`stop`: the converter would not go on; `note`: it would, and here is what to know."""

    kind: Literal["stop", "note", "good"]
    what: str


def check(folder: Path) -> list[Finding]:
    """What there is to say of a folder that save_pretrained wrote."""
    if is_adapter(folder):
        return [
            Finding("stop", "an adapter: export it with --merge (llama.cpp has convert_lora_to_gguf.py for adapters)")
        ]
    if not (folder / "config.json").is_file():
        return [Finding("stop", "no config.json: this is no folder that save_pretrained wrote")]
    config = _json(folder / "config.json")
    return [*_architecture(config), *_weights(folder, config), *_words(folder, config)]


def _architecture(config: dict[str, Any]) -> Iterator[Finding]:
    named = (config.get("architectures") or ["none"])[0]
    if named in KNOWN:
        yield Finding("good", f"{named} is known to the converter")
    else:
        yield Finding("stop", f"{named} is not among the causal LMs that the converter knew on {SINCE}")
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method == "bitsandbytes":
        yield Finding("stop", "weights quantised by bitsandbytes are not read: export from the unquantised base")
    elif method:
        yield Finding("note", f"weights quantised by {method}: the converter undoes some such methods, not all")


def _weights(folder: Path, config: dict[str, Any]) -> Iterator[Finding]:
    shards = sorted(folder.glob("model*.safetensors"))
    if not shards:
        yield Finding("stop", "no model*.safetensors: the converter reads such files")
        return
    found = {name: kind for shard in shards for name, kind in header(shard).items()}
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = set(_json(index)["weight_map"])
        if listed != set(found):
            odd = sorted(listed ^ set(found))
            yield Finding("stop", f"the index and the shards differ in {len(odd)} tensors, such as {odd[0]}")
    elif len(shards) > 1:
        yield Finding("note", f"{len(shards)} files of weights and no index: all of them are read")
    kinds = {kind for name, kind in found.items()}
    first = next((TYPES[kind] for kind in ("BF16", "F16") if kind in kinds), None)
    if first:
        yield Finding("good", f"weights are {', '.join(sorted(kinds))}: `--outtype auto` writes {first}")
    else:
        yield Finding(
            "note", f"weights are {', '.join(sorted(kinds))}: `--outtype auto` writes f16, `--outtype f32` all"
        )
    yield from _names(config, found)
    text = config.get("text_config") or config
    tied, head = bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings"))), _has_head(found)
    if tied and head:
        yield Finding("note", "embeddings are tied and the output layer is stored too: both are written")
    elif tied:
        yield Finding("good", "embeddings are tied and stored once, and llama.cpp ties them again")
    elif not head and (config.get("architectures") or [""])[0] in KNOWN:
        yield Finding(
            "stop", "embeddings are not tied and no output layer is stored: the model's answers would be noise"
        )


def _names(config: dict[str, Any], tensors: Iterable[str]) -> Iterator[Finding]:
    """Whether each tensor has a name in the file to be written, by llama.cpp's own table."""
    named = (config.get("architectures") or [""])[0]
    if named not in ARCHITECTURES:
        return
    if importlib.util.find_spec("gguf") is None:
        yield Finding("note", "names of tensors were not looked up: that needs the package gguf (modeseek[gguf])")
        return
    gguf: Any = importlib.import_module("gguf")
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH[ARCHITECTURES[named]], int(config["num_hidden_layers"]))
    written = [name for name in tensors if not name.endswith(UNWRITTEN)]
    nameless = sorted(name for name in written if table.get_name(name, try_suffixes=(".weight", ".bias")) is None)
    if nameless:
        yield Finding("stop", f"{len(nameless)} tensors have no name in a GGUF file, such as {nameless[0]}")
    else:
        yield Finding("good", f"each of {len(written)} tensors has its name in a GGUF file ({ARCHITECTURES[named]})")


def _has_head(tensors: dict[str, str]) -> bool:
    return any(name.rpartition(".")[0].endswith(("lm_head", "embed_out", "output_layer")) for name in tensors)


def _words(folder: Path, config: dict[str, Any]) -> Iterator[Finding]:
    path, told = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if (folder / "tokenizer.model").is_file():
        yield Finding("good", "the tokenizer is a SentencePiece model")
    elif not path.is_file():
        yield Finding("stop", "no tokenizer.model and no tokenizer.json")
        return
    else:
        yield _kind(_json(path))
    if path.is_file():
        tokenizer = _json(path)
        vocab = tokenizer["model"].get("vocab") or {}
        ids = [*(vocab.values() if isinstance(vocab, dict) else range(len(vocab)))]
        ids += [token["id"] for token in tokenizer.get("added_tokens", ())]
        size = (config.get("text_config") or config).get("vocab_size")
        if ids and size is not None and max(ids) >= size:
            yield Finding(
                "stop", f"the tokenizer writes id {max(ids)} and the model has {size} rows: resize its embeddings"
            )
    options = _json(told) if told.is_file() else {}
    if options.get("prompt_prefix"):
        words = options["prompt_prefix"]
        yield Finding(
            "note", f"prompts of this model begin with {words!r}; GGUF does not say so: write it in the prompt"
        )
    if not options.get("chat_template") and not (folder / "chat_template.jinja").is_file():
        yield Finding("note", "no chat template: llama.cpp's chat will use one of its own")


def _kind(tokenizer: dict[str, Any]) -> Finding:
    model = tokenizer["model"]
    kind = model.get("type") or "BPE"
    if kind == "BPE" and model.get("byte_fallback"):
        return Finding("good", "the tokenizer is BPE with byte fallback, as Llama 2's")
    if kind == "BPE" and not model.get("byte_fallback") and not model.get("merges"):
        return Finding("stop", "the tokenizer is BPE without merges: what is converted would not load")
    if kind == "BPE" and "ByteLevel" in json.dumps([tokenizer.get("pre_tokenizer"), tokenizer.get("decoder")]):
        return Finding(
            "note",
            "the tokenizer is byte-level BPE: the converter knows those of published models by a hash; at one that was "
            "trained anew it stops with `BPE pre-tokenizer was not recognized`",
        )
    return Finding("stop", f"the tokenizer is {kind} without a SentencePiece file, which the converter does not read")


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
