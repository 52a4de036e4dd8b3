"""The ways that peers.py compares: ours, TRL's trainers as they are, TRL's step rebuilt, and transformers' rollouts."""

import copy
import os
import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", TQDM_DISABLE="1")

NEW = 64  # tokens of a sample at most
PAIRS = {"S": (40, 8), "M": (12, 4)}  # in all, and a step
STEPS = 3  # of a method that samples, behind one that is not timed
RATE = {"dpo": 1e-4, "rloo": 1e-7, "online_dpo": 1e-7}  # samples that grew longer would be another task
OURS = "modeseek, fp32, cached reference"
TRL_STEPS = {  # how TRL is told to make the DPO step; what is not named is off
    "its defaults (bf16, checkpointing)": {"bf16": True, "checkpointing": True},
    "fp32, checkpointing": {"checkpointing": True},
    "fp32, precomputed": {"precompute": True},
    "fp32, precomputed, compacted": {"precompute": True, "compact": True},
}
REBUILT = ("its defaults (bf16, checkpointing)", "fp32, precomputed", "fp32, precomputed, compacted")


class Clock:
    """CPU seconds, and memory above the level at the start."""

    def __init__(self) -> None:
        self.level = _memory(reset=True)
        self.begun = time.process_time()

    def read(self, losses: list[float], **more: Any) -> dict[str, Any]:
        seconds = time.process_time() - self.begun
        return {"seconds": seconds, "peak_mib": _memory() - self.level, "losses": losses, **more}


def _memory(*, reset: bool = False) -> float:
    """MiB: resident now where the peak is set back, else the peak since. Linux's own account of the process."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:" if reset else "VmHWM:")[2].split()[0]) / 1024


def ends(vocab: int) -> list[int]:
    """The tokens that end a sample; 2, which ends a pair's responses, is one of them."""
    return [2, *sorted(random.Random(5).sample(range(4, vocab), vocab // 40))]


def tokenizer(vocab: int) -> Any:
    """A word a token: text and ids are the same thing said twice."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {f"t{i}": i for i in range(4, vocab)}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, padding_side="left", **names)


def prepared(model: str, n: int) -> tuple[Any, Any]:
    """The model, and n pairs."""
    from step import make_groups, make_model

    made = make_model(model)
    made.generation_config.eos_token_id = ends(made.config.vocab_size)
    return made, make_groups(n, made.config.vocab_size)


# ours


def ours(case: str, model: str, kept: bool) -> dict[str, Any]:
    """Our own loop, as a run has it; `kept`: the reference's log-probabilities are in the cache already."""
    import torch

    from modeseek.objectives import DPO, PolicyGradient
    from modeseek.policies.cache import Cached
    from modeseek.policies.hf import HFPolicy
    from modeseek.sources import Sampler
    from modeseek.stages import best_worst, leave_one_out, refer, score
    from modeseek.train import Loop, Steps

    pairs, size = PAIRS[model]
    made, batch = prepared(model, pairs if case == "dpo" else 8 * (1 + STEPS))
    policy = HFPolicy(made, eos=ends(made.config.vocab_size), max_new=NEW)
    reference: Any = policy.reference()
    rounds = iter(batch.split(size if case == "dpo" else 8))
    with tempfile.TemporaryDirectory() as folder:
        if kept:
            reference = Cached(reference, folder)
            for part in batch.split(size):
                reference.logp(part)
        each = lambda rng: next(rounds)
        if case != "dpo":
            draw = Sampler(policy=policy, k=4 if case == "rloo" else 2)
            each = lambda rng: draw(next(rounds), rng)
        steps = Steps(max_steps=99, learning_rate=RATE[case])
        objective, stages = {
            "dpo": (DPO(), [refer(reference)]),
            "rloo": (PolicyGradient(), [score(longer), leave_one_out]),
            "online_dpo": (DPO(), [score(longer), best_worst, refer(reference)]),
        }[case]
        loop = Loop(
            policy, objective, each, stages, steps, (), partial(torch.optim.AdamW, fused=True)
        )  # as a run has it
        if case != "dpo":
            loop.advance()
        clock, losses = Clock(), []
        for _ in range(pairs // size if case == "dpo" else STEPS):
            losses.append(loop.advance()["loss"])
        return clock.read(losses, dtype="fp32")


def longer(batch: Any) -> Any:
    return batch.mask.sum(-1).float()


def rebuilt(
    model: str, *, bf16: bool = False, checkpointing: bool = False, precompute: bool = False, compact: bool = False
) -> dict[str, Any]:
    """TRL's DPO step as trl_step.py makes it, on the same pairs in the same order."""
    import torch
    from step import Fast
    from trl_step import Rebuilt

    pairs, size = PAIRS[model]
    made, batch = prepared(model, pairs)
    with torch.no_grad():
        parts = [p.trim() for p in batch.fill(ref_logp=Fast(made).logp(batch)).split(size)]
    way = Rebuilt(made, bf16=bf16, checkpointing=checkpointing, given=precompute, compact=compact)
    optimiser = torch.optim.AdamW(made.parameters(), lr=RATE["dpo"], weight_decay=0.0, fused=True)
    clock, losses = Clock(), []
    for part in parts:
        loss = way.loss(part)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss))
    return clock.read(losses, dtype="bf16" if bf16 else "fp32")


# TRL


def trl(case: str, model: str, *, bf16: bool, checkpointing: bool, precompute: bool, compact: bool) -> dict[str, Any]:
    """TRL's own trainer, its data in their order; `compact` on its GPU-only row compaction."""
    import torch
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback

    if compact:
        import trl.trainer.utils as inner

        inner._use_triton = lambda device: True
    pairs, size = PAIRS[model]
    made, batch = prepared(model, pairs if case == "dpo" else 8 * (1 + STEPS))
    words = lambda ids: " ".join("</s>" if i == 2 else f"t{i}" for i in ids)
    rows = [{"prompt": words(batch.prompt[p][batch.prompt_mask[p]].tolist())} for p in range(len(batch))]
    if case == "dpo":
        for p, row in enumerate(rows):
            told = [batch.response[p, k][batch.mask[p, k]].tolist() for k in range(2)]
            row |= {"chosen": " " + words(told[0]), "rejected": " " + words(told[1])}
    told: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "learning_rate": RATE[case],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": bf16,
        "gradient_checkpointing": checkpointing,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "max_steps": pairs // size if case == "dpo" else 1 + STEPS,
    }
    trainer = _trainer(case, made, rows, told, size, precompute)
    data = trainer.train_dataset
    if case != "rloo":  # RLOO repeats each prompt by a sampler of its own
        trainer._get_train_sampler = lambda *_, **__: SequentialSampler(data)
    found: dict[str, Any] = {}

    class Timed(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == (0 if case == "dpo" else 1):
                found["clock"] = Clock()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if "clock" in found:
                found["read"] = found["clock"].read([])

    assert isinstance(data, Dataset)
    trainer.add_callback(Timed())
    torch.manual_seed(0)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return found["read"] | {"losses": losses, "dtype": "bf16" if bf16 else "fp32"}


def _trainer(
    case: str, made: Any, rows: list[dict[str, Any]], told: dict[str, Any], size: int, precompute: bool
) -> Any:
    from datasets import Dataset

    data, words = Dataset.from_list(rows), tokenizer(made.config.vocab_size)
    if case == "dpo":
        from trl import DPOConfig, DPOTrainer

        more = {"per_device_train_batch_size": size, "precompute_ref_log_probs": precompute, "beta": 0.1}
        frozen = None if precompute else copy.deepcopy(made)
        return DPOTrainer(made, frozen, args=DPOConfig(**told, **more), train_dataset=data, processing_class=words)
    length = lambda completions, **_: [float(len(text.split())) for text in completions]
    if case == "rloo":
        from trl import RLOOConfig, RLOOTrainer

        more = {"per_device_train_batch_size": 32, "num_generations": 4, "max_completion_length": NEW, "beta": 0.0}
        options = {"args": RLOOConfig(**told, **more, shuffle_dataset=False), "train_dataset": data}
        return RLOOTrainer(made, reward_funcs=length, processing_class=words, **options)
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    more = {"per_device_train_batch_size": 8, "max_new_tokens": NEW, "temperature": 1.0, "beta": 0.1}
    options = {"args": OnlineDPOConfig(**told, **more), "train_dataset": data}
    return OnlineDPOTrainer(made, copy.deepcopy(made), reward_funcs=length, processing_class=words, **options)


def rollouts(model: str, k: int, way: str) -> dict[str, Any]:
    """One way of `rollout.py`, a seed a call."""
    import rollout
    import transformers

    transformers.logging.set_verbosity_error()
    run = rollout.ways(model, rollout.make_prompts(model, 8), k)[way]
    if way == "ours":
        run(0)
    clock = Clock()
    return clock.read([], tokens=[run(seed) for seed in range(2)])


def ways(case: str, model: str) -> dict[str, Callable[[], dict[str, Any]]]:
    """Each way to do a case, ours first."""
    plain = {"bf16": False, "checkpointing": False, "precompute": False, "compact": False}
    if case.startswith("rollout"):
        k = int(case.rpartition("=")[2])
        names = {"modeseek": "ours", "generate()": "generate", "generate(), static cache": "generate, static"}
        names |= {"generate_batch": "generate_batch"}
        return {name: lambda way=way: rollouts(model, k, way) for name, way in names.items()}
    if case != "dpo":
        return {"modeseek": lambda: ours(case, model, kept=False), "TRL": lambda: trl(case, model, **plain)}
    peers = {f"TRL, {n}": lambda more=more: trl(case, model, **(plain | more)) for n, more in TRL_STEPS.items()}
    peers |= {f"rebuilt, {n}": lambda n=n: rebuilt(model, **TRL_STEPS[n]) for n in REBUILT}
    mine = {OURS: lambda: ours(case, model, kept=True)}
    return mine | {"modeseek, fp32, reference each step": lambda: ours(case, model, kept=False)} | peers
