"""The sizes of gpu.py, and the memory that `modeseek plan` expects of its runs on an H200."""

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

NAMES = ("1.5B", "0.5B")
METHODS, WAYS = ("DPO", "HyPO"), ("full", "LoRA")


@dataclass(frozen=True)
class Scale:
    """How large everything is made; lengths in tokens."""

    models: dict[str, dict[str, Any]]  # keys of a Qwen2Config
    pairs: int  # of a step that is timed
    packed: int  # tokens of a packed row at most
    rows: int  # pairs of TRL's micro-batch
    times: int
    head: tuple[int, int, int]  # vocabulary, width, tokens
    rollout: tuple[int, int, int]  # prompts, responses to each, tokens of a response
    # of a run in the real loop
    prompt: int
    response: int
    round: int  # pairs a step
    micro: int  # pairs a pass
    steps: int
    device: str  # as plan knows it

    @property
    def new(self) -> int:
        return self.rollout[2]


def _qwen(width: int, inner: int, layers: int, heads: int, kv: int, vocab: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


FULL = Scale(
    models={
        "1.5B": _qwen(1536, 8960, 28, 12, 2, 151_936),
        "0.5B": _qwen(896, 4864, 24, 14, 2, 151_936),
        "equality": _qwen(256, 512, 4, 4, 2, 2048),
    },
    pairs=128,
    packed=16_384,
    rows=16,
    times=3,
    head=(151_936, 4096, 8192),
    rollout=(16, 4, 128),
    prompt=256,
    response=128,
    round=32,
    micro=16,
    steps=20,
    device="H200",
)
TINY = Scale(
    models={
        "1.5B": _qwen(64, 128, 2, 4, 2, 600),
        "0.5B": _qwen(32, 64, 2, 4, 2, 600),
        "equality": _qwen(32, 64, 2, 4, 2, 300),
    },
    pairs=4,
    packed=600,
    rows=2,
    times=1,
    head=(600, 32, 64),
    rollout=(2, 2, 8),
    prompt=16,
    response=8,
    round=4,
    micro=2,
    steps=2,
    device="cpu",
)


def key(model: str, method: str, way: str) -> str:
    return f"{model}, {method}, {way}"


def expected(scale: Scale) -> dict[str, float]:
    """Bytes of the allocator at the fullest moment of each run: without what the runtime takes for itself."""
    from modeseek.plan.devices import device
    from modeseek.plan.lengths import Length, Lengths
    from modeseek.plan.memory import moments

    where, found = device(scale.device), {}
    fixed = lambda n: Length(mean=n, most=n)
    told = Lengths(
        prompt=fixed(scale.prompt), told=fixed(scale.response), sampled=fixed(scale.response), rows=None, said="known"
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(scale.models[NAMES[0]] | {"model_type": "qwen2"}))
        for method in METHODS:
            for way in WAYS:
                every = moments(_run(scale, folder, method, way), where, 1, told)
                found[key(NAMES[0], method, way)] = max(m.total - m.parts.get("runtime", 0.0) for m in every)
    return found


def expected_here(scale: Scale) -> dict[str, float]:
    """The same, or nothing where a package that `plan` needs is not there."""
    try:
        return expected(scale)
    except ModuleNotFoundError:
        return {}


def _run(scale: Scale, folder: str, method: str, way: str) -> Any:
    from modeseek.config import Hybrid, Run, StageSpec
    from modeseek.objectives import DPO, HyPO
    from modeseek.policies.adapter import Lora

    made = Run(
        model=folder,
        objective=DPO(),
        stages=(StageSpec(name="refer"),),
        prompts_per_round=scale.round,
        microbatch=scale.micro,
        bf16=True,
        max_steps=scale.steps,
        max_length=scale.prompt + scale.response,
        max_completion_length=scale.response,
        eval_prompts=0,
    )
    if method == "HyPO":
        made = replace(made, objective=HyPO(), source=Hybrid(num_generations=1))
    return replace(made, lora=Lora()) if way == "LoRA" else made
