"""Answers in the forms that AlpacaEval 2 and MT-Bench read, so that their own judges can be asked.

AlpacaEval (https://github.com/tatsu-lab/alpaca_eval): a JSON list of instruction, output, generator, dataset.
MT-Bench (https://github.com/lm-sys/FastChat, llm_judge): `data/mt_bench/model_answer/NAME.jsonl`, a line for each
question with the answers to its turns in order; the second turn is asked with the first answer in the conversation.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from rich.progress import track

from modeseek.data.records import Message, Text
from modeseek.data.template import Template
from modeseek.data.tokenise import tokenise_prompts
from modeseek.policies.base import Policy
from modeseek.sources import Sampler

Form = Literal["alpaca_eval", "mt_bench"]
Row = dict[str, Any]
Ask = Callable[[Sequence[Text], float], list[str]]  # conversations and a temperature -> one answer to each

# FastChat's temperature for each category of MT-Bench (llm_judge/common.py, temperature_config); 0 is greedy.
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
_OTHERS = 0.7  # of a category that is not among them


class Answerer:
    """A policy that is asked in conversations."""

    def __init__(
        self,
        policy: Policy,
        template: Template,
        *,
        max_length: int,
        max_completion_length: int,
        batch_size: int = 32,
        seed: int = 0,
    ):
        self.policy, self.template, self.batch_size = policy, template, batch_size
        self.room = {"max_length": max_length, "max_completion_length": max_completion_length}
        self.rng = torch.Generator().manual_seed(seed)

    def __call__(self, conversations: Sequence[Text], temperature: float) -> list[str]:
        """One answer to each, in order. A conversation that is too long loses its left side."""
        prompts = tokenise_prompts(conversations, self.template, **self.room)
        if len(prompts) < len(conversations):
            raise ValueError(
                f"prompts: {prompts.counts['dropped']} cannot be rendered, and every question needs an answer"
            )
        draw, said = Sampler(policy=self.policy, k=1, temperature=temperature), list[str]()
        for index in track(torch.arange(len(prompts)).split(self.batch_size), description="answers", transient=True):
            own = draw(prompts.prompts(index), self.rng)
            said += [self.template.decode(own.response[p, 0][own.mask[p, 0]]).strip() for p in range(len(own))]
        return said


def questions(path: str | Path, form: Form) -> list[Row]:
    """AlpacaEval's evaluation set (JSON, or JSON lines) or MT-Bench's question.jsonl."""
    text = Path(path).read_text(encoding="utf-8")
    try:
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(x) for x in text.splitlines() if x]
    except json.JSONDecodeError as error:
        raise ValueError(f"prompts: {path} is neither a JSON list nor JSON lines ({error.msg})") from None
    needed = {"alpaca_eval": ("instruction",), "mt_bench": ("question_id", "turns")}[form]
    for number, row in enumerate(rows, 1):
        missing = [key for key in needed if key not in row]
        if missing:
            raise ValueError(f"prompts: {path}, row {number} has no {missing[0]}, which {form} needs")
    return rows


def answers(rows: Sequence[Row], form: Form, ask: Ask, generator: str, temperature: float) -> list[Row]:
    """What the tool reads. `temperature` is AlpacaEval's; MT-Bench has one for each category of questions."""
    if form == "alpaca_eval":
        said = ask([row["instruction"] for row in rows], temperature)
        return [
            {"dataset": row.get("dataset", "alpaca_eval"), "instruction": row["instruction"], "output": one}
            | {"generator": generator}
            for row, one in zip(rows, said, strict=True)
        ]
    made: dict[int, Row] = {}
    degrees = [TEMPERATURES.get(row.get("category", ""), _OTHERS) for row in rows]
    for degree in sorted(set(degrees)):
        at = [i for i, d in enumerate(degrees) if d == degree]
        made |= zip(at, _turns([rows[i] for i in at], ask, generator, degree), strict=True)
    return [made[i] for i in range(len(rows))]


def _turns(rows: Sequence[Row], ask: Ask, generator: str, temperature: float) -> list[Row]:
    """Turn after turn, all conversations side by side."""
    talk: list[tuple[Message, ...]] = [() for _ in rows]
    for turn in range(max(len(row["turns"]) for row in rows)):
        at = [i for i, row in enumerate(rows) if turn < len(row["turns"])]
        for i in at:
            talk[i] = (*talk[i], Message("user", rows[i]["turns"][turn]))
        for i, said in zip(at, ask([talk[i] for i in at], temperature), strict=True):
            talk[i] = (*talk[i], Message("assistant", said))
    return [_model_answer(row, [m.content for m in t[1::2]], generator) for row, t in zip(rows, talk, strict=True)]


def _model_answer(row: Mapping[str, Any], said: list[str], generator: str) -> Row:
    key = json.dumps([row["question_id"], generator, said])
    return {
        "question_id": row["question_id"],
        "answer_id": hashlib.sha256(key.encode()).hexdigest()[:22],
        "model_id": generator,
        "choices": [{"index": 0, "turns": said}],
        "tstamp": time.time(),
    }


def write(rows: Sequence[Row], form: Form, path: str | Path) -> Path:
    """The file, whole or not at all."""
    path = Path(path)
    if form == "alpaca_eval":
        text = json.dumps(list(rows), indent=2, ensure_ascii=False) + "\n"
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".draft")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
    return path
