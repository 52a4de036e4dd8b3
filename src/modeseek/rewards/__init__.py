"""What a response is worth. A reward is a function from a Batch to numbers `[P, K]`, and `stages.score` runs it.

The union of the configurations is the registry; `build_reward` turns one into the function. A reward that counts what
it did has `counts`: how many responses it scored, how many of them were cut off at the length limit, and more.
"""

from collections.abc import Callable
from typing import assert_never

import torch
from torch import Tensor

from modeseek.batch import Batch
from modeseek.rewards.endpoint import JudgeFailed
from modeseek.rewards.ensemble import AnyMember, Ensemble, EnsembleReward
from modeseek.rewards.judge import Comparison, Judge, JudgeReward
from modeseek.rewards.pretrained import Model, ModelReward
from modeseek.rewards.pretrained import load as load_model
from modeseek.rewards.rules import JsonValid, Keyword, Length, Python, Regex, Rule
from modeseek.rewards.table import Table, table
from modeseek.rewards.text import Decoder, Prompts, Reply, TextReward, by_tokens

AnyReward = Length | Regex | Keyword | JsonValid | Python | Table | Model | Judge | Ensemble
Reward = Callable[[Batch], Tensor]  # [P, K]


def build_reward(config: AnyReward, decoder: Decoder | None = None, prompts: Prompts | None = None) -> Reward:
    """The reward that a configuration describes.

    A reward that reads text needs `decoder`; `prompts` gives it each prompt as it stood in the data, where the
    decoded one would show the chat template.
    """
    match config:
        case Table():
            return table(torch.tensor(config.values, dtype=torch.float32))
        case Length() | Regex() | Keyword() | JsonValid() | Python():
            if isinstance(config, Python):
                config.load()  # a wrong name is an error now, not after the first round is sampled
            return TextReward(config, _needed(decoder, config), config.unfinished, prompts)
        case Model():
            return load_model(config, decoder, prompts)
        case Judge():
            return JudgeReward(Comparison(config), _needed(decoder, config), prompts)
        case Ensemble():
            members = [build_reward(member, decoder, prompts) for member in config.members]
            return EnsembleReward(members, config.combine, 1.0 if config.penalty is None else config.penalty)
        case _:
            assert_never(config)


def _needed(decoder: Decoder | None, config: AnyReward) -> Decoder:
    if decoder is None:
        raise ValueError(f"reward.type: {type(config).__name__} reads text, but the policy has no tokenizer; use table")
    return decoder


__all__ = [
    "AnyMember",
    "AnyReward",
    "Comparison",
    "Decoder",
    "Ensemble",
    "EnsembleReward",
    "JsonValid",
    "Judge",
    "JudgeFailed",
    "JudgeReward",
    "Keyword",
    "Length",
    "Model",
    "ModelReward",
    "Prompts",
    "Python",
    "Regex",
    "Reply",
    "Reward",
    "Rule",
    "Table",
    "TextReward",
    "build_reward",
    "by_tokens",
    "table",
]
