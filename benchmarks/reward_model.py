"""A reward model from nothing but its training pairs: `python benchmarks/reward_model.py PAIRS.jsonl.gz`.

Pairs are split by prompt. A byte-pair tokenizer and a small random Llama are made from the training side, `modeseek
train reward_model` trains it, and the held-out accuracy is printed beside that of "the longer one is better".
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from modeseek import config
from modeseek.data.files import load, split_holdout
from modeseek.data.template import Template
from modeseek.data.tokenise import tokenise
from modeseek.estimate import share
from modeseek.policies.scratch import as_pretrained, small_llama
from modeseek.rewards.assess import Assessment, assess
from modeseek.rewards.model import RewardModel
from modeseek.runs import train

SPECIAL = ["<pad>", "<bos>", "<eos>"]


def text(part) -> str:
    """A prompt or a response as plain text."""
    return part if isinstance(part, str) else "\n".join(turn.content for turn in part)


def tokenizer(texts: list[str], size: int, context: int):
    """Byte-pair encoding of the training texts alone."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return as_pretrained(made, pad="<pad>", bos="<bos>", eos="<eos>", context=context)


@torch.no_grad()
def judged(folder: Path, held: list, context: int) -> Assessment:
    """Every held-out pair that has two responses, scored by the saved model."""
    template, model = Template.load(str(folder)), RewardModel.load(str(folder))
    pairs = tokenise(
        held,
        template,
        max_length=context,
        max_completion_length=context // 2,
        truncate_responses=True,
        responses="best_worst",
    )
    score = torch.cat([model.score(part.trim()) for part in pairs.prompts(slice(0, len(pairs))).split(32)])
    length = np.array([[len(text(x)) for x in pairs.records[i].responses] for i in range(len(pairs))])
    return assess(score.double().numpy(), length)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("pairs")
    ask.add_argument("--out", default="runs/small_reward_model")
    ask.add_argument("--width", type=int, default=128)
    ask.add_argument("--layers", type=int, default=2)
    ask.add_argument("--vocabulary", type=int, default=4096)
    ask.add_argument("--context", type=int, default=320)
    ask.add_argument("--epochs", type=int, default=1)
    ask.add_argument("--learning_rate", type=float, default=1e-3)
    ask.add_argument("--limit", type=int, default=0, help="training pairs at most; 0: all")
    ask.add_argument("--seed", type=int, default=0)
    asked = ask.parse_args()
    torch.set_num_threads(1)
    out = Path(asked.out)
    out.mkdir(parents=True, exist_ok=True)
    told, held = split_holdout(load(asked.pairs), 0.1, asked.seed)
    told = [r for r in told if len(r.responses) == 2]
    held = [r for r in held if len(r.responses) == 2]
    random.Random(asked.seed).shuffle(told)
    told = told[: asked.limit or len(told)]
    for name, records in (("train", told), ("held_out", held)):
        rows = [
            {"prompt": text(r.prompt), "chosen": text(r.responses[0]), "rejected": text(r.responses[1])}
            for r in records
        ]
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = tokenizer([text(x) for r in told for x in (r.prompt, *r.responses)], asked.vocabulary, asked.context)
    torch.manual_seed(asked.seed)
    shape = {
        "width": asked.width,
        "layers": asked.layers,
        "heads": 4,
        "inner": 2 * asked.width,
        "context": asked.context,
    }
    small_llama(len(words), **shape, pad=0, bos=1, eos=2).save_pretrained(out / "start")
    words.save_pretrained(out / "start")
    flags = {
        "model": out / "start",
        "data": out / "train.jsonl",
        "eval_data": out / "held_out.jsonl",
        "output_dir": out / "run",
        "num_train_epochs": asked.epochs,
        "learning_rate": asked.learning_rate,
        "prompts_per_round": 32,
        "warmup_steps": 50,
        "max_length": asked.context,
        "max_completion_length": asked.context // 2,
        "eval_steps": 100,
        "save_steps": 100,
        "seed": asked.seed,
    }
    said = [w for key, value in flags.items() for w in (f"--{key}", str(value))]
    folder = train(config.load("reward_model", [*said, "--truncate_responses", "--schedule", "cosine"]))
    found = judged(folder / "model", held, asked.context)
    print(f"accuracy {found.accuracy} of {found.accuracy.n} held-out pairs, ECE {found.ece:.3f}")
    print(f"rank correlation of score and length {found.length_correlation:.2f}")
    longer = [np.sign(len(text(r.responses[0])) - len(text(r.responses[1]))) / 2 + 0.5 for r in held]
    print(f"the longer one is better: {share(longer)} of {len(longer)} held-out pairs")


if __name__ == "__main__":
    main()
