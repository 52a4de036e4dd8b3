"""Both sides of peer_losses.py: a loss and its gradient by TRL's own trainer, and by a run of ours.

The models are tiny Llamas of random weights, the policy, an older policy and the reference each a little apart; lengths
are ragged. TRL's fused output layer is in float32 whatever the model is, so TRL runs in float32 and ours in float64.
"""

import copy
import dataclasses
import math
import os
import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", TQDM_DISABLE="1", TRL_EXPERIMENTAL_SILENCE="1")

import torch
import yaml
from datasets import Dataset, disable_progress_bars
from peer_loss_cases import LENGTH, Case
from peer_ways import tokenizer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from modeseek.batch import Batch
from modeseek.build.needs import corrected
from modeseek.build.stages import stage_of
from modeseek.config import Run
from modeseek.migrate import Translation, translate
from modeseek.migrate.translation import Said
from modeseek.policies.hf import HFPolicy
from modeseek.rewards.model import RewardModel
from modeseek.train import Loop, Steps

Found = tuple[float, dict[str, Tensor]]  # the loss, and its gradient by parameter
VOCAB, END = 48, 2
OWN = ("grpo", "rloo", "online_dpo")
disable_progress_bars()


@cache
def weights(kind: str, step: float, seed: int) -> nn.Module:
    """The same random Llama, its weights `step` away; a `lm` or a reward model."""
    torch.manual_seed(0)
    shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=VOCAB)
    config = LlamaConfig(
        **shape, pad_token_id=0, bos_token_id=1, eos_token_id=END, initializer_range=0.2, tie_word_embeddings=False
    )
    config.num_labels = 1
    made = {"lm": LlamaForCausalLM, "reward": LlamaForSequenceClassification}[kind](config).eval()
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for x in made.parameters():
            x += step * torch.randn(x.shape, generator=noise)
    return made


def policy(case: Case) -> nn.Module:
    """What is trained, as it is at the step."""
    kind = "reward" if case.trainer == "reward" else "lm"
    return copy.deepcopy(weights(kind, 0.03 if case.swapped else 0.0, 1))


def older(case: Case) -> nn.Module:
    """What wrote the samples."""
    return copy.deepcopy(weights("lm", 0.01, 2)) if case.moved else policy(case)


def reference(case: Case) -> nn.Module:
    return copy.deepcopy(weights("lm", 0.0 if case.swapped else 0.03, 1))


def responses(case: Case) -> int:
    return {"grpo": 4, "rloo": 4, "kto": 1, "sft": 1}.get(case.trainer, 2)


@cache
def data(k: int) -> Batch:
    """Six prompts of 3 to 9 tokens with k responses of 2 to 12, the end token included."""
    draw = random.Random(k)
    ids = lambda least, most: [draw.randrange(4, VOCAB) for _ in range(draw.randint(least, most))]
    prompts = [[1, *ids(2, 8)] for _ in range(6)]
    told = Batch.of(prompts, [[[*ids(1, 11), END] for _ in range(k)] for _ in prompts])
    if k == 1:
        told = told.fill(label=torch.tensor([True, False, True, True, False, False])[:, None])
    return told


def rewards(case: Case) -> Tensor:
    """[P, K], no two alike."""
    noise = torch.Generator().manual_seed(3)
    return case.rewards * torch.randn(6, responses(case), generator=noise, dtype=torch.float64)


# ours


def imported(case: Case, folder: Path) -> Translation:
    """TRL's config as `import-config trl` reads it."""
    path = folder / "theirs.yaml"
    keys = {key: x for key, x in case.keys.items() if key not in case.unsaid}
    more = {"num_generations": responses(case), "max_completion_length": LENGTH} if case.trainer in OWN else {}
    path.write_text(yaml.safe_dump({"model_name_or_path": "m", "dataset_name": "d", **more, **keys}))
    found = translate("trl", path, trainer=case.trainer)
    for key, x in case.ours.items():
        found.set(f"objective.{key}", Said(x, "by hand"))
    return found


def ours(case: Case, run: Run) -> Found:
    """A step of our own loop: the run's stages, its objective, the packed path, in float64."""
    batch = data(responses(case))
    batch = batch.fill(margin=margins().double()) if "margin_weight" in case.ours else batch
    model = policy(case).double()
    trained = RewardModel(model) if case.trainer == "reward" else HFPolicy(model, eos=[END], max_new=LENGTH)
    if case.trainer in OWN:
        batch = dataclasses.replace(batch, fresh=batch.present)
    parts = {
        "policy": trained,
        "reference": HFPolicy(reference(case).double(), eos=[END], max_new=LENGTH),
        "reward": lambda _: rewards(case),
    }
    stages, before = ([stage_of(s, parts) for s in specs] for specs in (run.stages, corrected(run)))
    if case.level is not None:
        before.append(lambda b: b.fill(**{n: torch.full_like(b[n], case.level) for n in ("z0", "midpoint") if n in b}))
    steps = Steps(learning_rate=0.0, max_grad_norm=math.inf)
    loop = Loop(trained, run.objective, lambda rng: batch, stages, steps, before)
    if case.trainer in OWN and case.moved:
        now = copy.deepcopy(model.state_dict())
        model.load_state_dict(older(case).state_dict())
        loop.round = loop.draw()
        model.load_state_dict(now)
    row = loop.advance()
    return row["loss"], gradient(model)


def gradient(model: nn.Module) -> dict[str, Tensor]:
    return {name: x.grad.double() for name, x in model.named_parameters() if x.grad is not None}


@cache
def margins() -> Tensor:
    return torch.tensor([0.5, 0.0, 1.5, 0.25, 2.0, 0.75])


# TRL's


def theirs(case: Case, folder: Path) -> Found:
    """The same by TRL's trainer as it is."""
    batch, model = data(responses(case)), policy(case)
    trainer = trainer_of(case, batch, model, folder)
    trainer.current_gradient_accumulation_steps = 1  # the training loop's to set
    model.train()
    if case.trainer == "online_dpo":
        value = float(trainer.training_step(model, {"prompt": [row["prompt"] for row in texts(case, batch)]}))
        return value, gradient(model)
    if case.trainer in OWN:
        now = copy.deepcopy(model.state_dict())
        model.load_state_dict(older(case).state_dict())
        rows = [{"prompt": row["prompt"]} for row in texts(case, batch) for _ in range(responses(case))]
        inputs = trainer._generate_and_score_completions(rows)
        model.load_state_dict(now)
    else:
        inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])
        same_tokens(inputs, batch)
    loss = trainer.compute_loss(model, inputs)
    loss.backward()
    return float(loss.detach()), gradient(model)


def texts(case: Case, batch: Batch) -> list[dict[str, Any]]:
    """The rows of a data set, as words."""
    words = lambda ids: " ".join({1: "<s>", END: "</s>"}.get(i, f"t{i}") for i in ids.tolist())
    rows: list[dict[str, Any]] = []
    for p in range(len(batch)):
        told = [" " + words(batch.response[p, k][batch.mask[p, k]]) for k in range(batch.present.shape[1])]
        rows.append({"prompt": words(batch.prompt[p][batch.prompt_mask[p]])})
        if case.trainer in ("kto", "sft"):
            rows[-1] |= {"completion": told[0]} | ({"label": bool(batch["label"][p])} if case.trainer == "kto" else {})
        elif case.trainer not in OWN:
            rows[-1] |= {"chosen": told[0], "rejected": told[1]}
        if "margin_weight" in case.ours:
            rows[-1]["margin"] = float(margins()[p])
    return rows


def trainer_of(case: Case, batch: Batch, model: nn.Module, folder: Path) -> Any:
    """TRL's trainer with the case's config; own samples are given instead of drawn."""
    import trl
    from trl.experimental import cpo, online_dpo, orpo

    kinds: dict[str, tuple[Any, Any]] = {
        "dpo": (trl.DPOConfig, trl.DPOTrainer),
        "kto": (trl.KTOConfig, trl.KTOTrainer),
        "sft": (trl.SFTConfig, trl.SFTTrainer),
        "reward": (trl.RewardConfig, trl.RewardTrainer),
        "grpo": (trl.GRPOConfig, trl.GRPOTrainer),
        "rloo": (trl.RLOOConfig, trl.RLOOTrainer),
        "cpo": (cpo.CPOConfig, cpo.CPOTrainer),
        "orpo": (orpo.ORPOConfig, orpo.ORPOTrainer),
        "online_dpo": (online_dpo.OnlineDPOConfig, online_dpo.OnlineDPOTrainer),
    }
    reference(case).save_pretrained(folder / "reference")
    model.config._name_or_path = str(folder / "reference")  # where GRPO and RLOO read their reference
    config, trainer = kinds[case.trainer]
    rows = len(batch) * (responses(case) if case.trainer in ("grpo", "rloo") else 1)
    told: dict[str, Any] = {"bf16": False, "gradient_checkpointing": False, "use_cpu": True, "report_to": []}
    told |= {"per_device_train_batch_size": rows, "output_dir": str(folder / "out"), "save_strategy": "no"}
    told |= {"remove_unused_columns": False} if case.trainer in ("cpo", "orpo") else {}
    if case.trainer in ("grpo", "rloo"):
        told |= {"num_generations": responses(case), "max_completion_length": LENGTH}
        told |= {"num_iterations": 2} if case.moved else {}  # else it keeps no log-probabilities of the samples
    given: dict[str, Any] = {"processing_class": tokenizer(VOCAB), "args": config(**told, **case.keys)}
    if case.trainer in ("dpo", "kto", "online_dpo"):
        given["ref_model"] = reference(case)
    if case.trainer in OWN:
        order = rewards(case).T if case.trainer == "online_dpo" else rewards(case)
        given["reward_funcs"] = lambda completions, **_: order.flatten().tolist()
    made = trainer(model, train_dataset=Dataset.from_list(texts(case, batch)), **given)
    samples = [
        batch.response[p, k][batch.mask[p, k]].tolist() for p in range(len(batch)) for k in range(responses(case))
    ]
    if case.trainer == "grpo":
        made._generate_single_turn = lambda *_, **__: (samples, None)
    if case.trainer == "rloo":
        made._generate_single_turn = lambda *_, **__: samples
    if case.trainer == "online_dpo":
        made._generate = lambda *_, **__: _both(batch)
    return made


def _both(batch: Batch) -> tuple[Any, ...]:
    """What online DPO's `_generate` says: all first samples in front of all second ones."""
    prompts = (batch.prompt.repeat(2, 1), batch.prompt_mask.long().repeat(2, 1))
    return *prompts, *(torch.cat([x[:, 0], x[:, 1]]) for x in (batch.response, batch.mask.long())), None


def same_tokens(inputs: dict[str, Any], batch: Batch) -> None:
    """TRL tokenises the texts itself: the same rows, or the comparison is of nothing."""
    prompts = [batch.prompt[p][batch.prompt_mask[p]].tolist() for p in range(len(batch))]
    want = {
        tuple(ids + batch.response[p, k][batch.mask[p, k]].tolist())
        for p, ids in enumerate(prompts)
        for k in range(batch.present.shape[1])
    }
    found = {
        tuple(row[mask.bool()].tolist())
        for key, x in inputs.items()
        if key.endswith("input_ids") and not key.startswith(("KL", "prompt"))
        for row, mask in zip(x, inputs[key.replace("input_ids", "attention_mask")], strict=True)
    }
    if found != want:
        raise ValueError(f"TRL reads other tokens: {sorted(found ^ want)[:2]}")


def both(case: Case) -> tuple[Found, Found, Translation]:
    """TRL's, ours, and what the importer said."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        said = imported(case, folder)
        return theirs(case, folder), ours(case, said.run()), said
