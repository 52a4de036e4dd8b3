"""A model as a folder for others: an adapter merged into its base, weights in shards, the tokenizer beside them.

One copy of the weights is held. The merge adds each layer's low-rank product to that layer in place, and what is
written is copied one shard at a time, so `shard_size` bounds the memory beside the model.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoTokenizer

Dtype = Literal["float32", "bfloat16", "float16"]
BESIDE = ("README.md", "chat_template.jinja")  # files that nothing writes anew


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    merged_into: str  # the adapter's base; empty where nothing was merged
    shards: int
    size: int  # bytes of weights
    dtype: str


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds a PEFT adapter and not a model."""
    return (Path(folder) / "adapter_config.json").is_file()


def export(
    source: str,
    out: Path,
    *,
    merge: bool = False,
    shard_size: str = "2GB",
    dtype: Dtype | None = None,
    trust_remote_code: bool = False,
) -> Exported:
    """Write `source`, a folder or hub name, to the new folder `out`; nothing is left there where it fails."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out: {out} is there already and not empty; give a new folder")
    adapter = is_adapter(source)
    if merge and not adapter:
        raise ValueError(f"merge: {source} is no adapter (it has no adapter_config.json); leave --merge out")
    if adapter and dtype and not merge:
        raise ValueError("dtype: an adapter is copied as it is; add --merge, or leave --dtype out")
    draft = out.with_name(out.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        if adapter and not merge:
            _copy_adapter(Path(source), draft)
            base = ""
        else:
            base = base_of(source) if adapter else ""
            model = (
                _merged(source, base, dtype, trust_remote_code) if adapter else _load(source, dtype, trust_remote_code)
            )
            model.save_pretrained(draft, max_shard_size=shard_size)  # type: ignore[operator]
            _tokenizer(source, base, trust_remote_code).save_pretrained(draft)
            _copy_beside(source, draft)
        if out.is_dir():
            out.rmdir()
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return _told(out, base)


def base_of(adapter: str | Path) -> str:
    """The model that an adapter was trained on, as its config names it."""
    told = json.loads((Path(adapter) / "adapter_config.json").read_text()).get("base_model_name_or_path")
    if not told:
        raise ValueError(f"merge: {adapter}/adapter_config.json names no base_model_name_or_path; write it there")
    return str(told)


def _merged(adapter: str, base: str, dtype: Dtype | None, trust_remote_code: bool) -> nn.Module:
    from peft import PeftModel

    model: Any = PeftModel.from_pretrained(_load(base, dtype, trust_remote_code), adapter)
    return model.merge_and_unload(safe_merge=True)  # safe: a NaN stops it


def _load(name: str, dtype: Dtype | None, trust_remote_code: bool) -> Any:
    """With the class that its config names, so that a reward model keeps its head; as stored without a dtype."""
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(name, **options)
        named = (config.architectures or [""])[0]
        made = getattr(transformers, named, transformers.AutoModelForCausalLM)
        return made.from_pretrained(name, dtype=getattr(torch, dtype) if dtype else "auto", **options).eval()
    except (OSError, ValueError) as error:
        raise ValueError(f"model: {name} cannot be loaded: {str(error).strip().splitlines()[0]}") from error


def _tokenizer(source: str, base: str, trust_remote_code: bool) -> Any:
    has_own = not base or (Path(source) / "tokenizer_config.json").is_file()
    return AutoTokenizer.from_pretrained(source if has_own else base, trust_remote_code=trust_remote_code)


def _copy_adapter(source: Path, draft: Path) -> None:
    for file in sorted(source.iterdir()):
        if file.is_file():
            shutil.copy2(file, draft / file.name)


def _copy_beside(source: str, draft: Path) -> None:
    for name in BESIDE:
        if (Path(source) / name).is_file() and not (draft / name).exists():
            shutil.copy2(Path(source) / name, draft / name)


def _told(out: Path, base: str) -> Exported:
    shards = sorted(out.glob("*.safetensors"))
    kinds = {kind for shard in shards for kind in header(shard).values()}
    return Exported(out, base, len(shards), sum(s.stat().st_size for s in shards), ", ".join(sorted(kinds)))


def header(shard: Path) -> dict[str, str]:
    """Name and dtype of each tensor of a safetensors file, without reading one."""
    with shard.open("rb") as file:
        told = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: entry["dtype"] for name, entry in told.items() if name != "__metadata__"}
