"""Labels by machine: what a rule, a reward model or a judge says of texts, whoever wrote them and in whatever tokens.

A reward reads a Batch through a decoder. Here a response's tokens are its number in the chunk, as many of them as it
really had, and the decoder looks the number up: every reward works as it is, and the text is exactly what was stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from modeseek.batch import Batch
from modeseek.collect.rows import Label, Preferred, Response
from modeseek.config import converter, snake
from modeseek.data.records import Text, text
from modeseek.rewards import AnyReward, Ensemble, Judge, JudgeReward, Length, Model, build_reward
from modeseek.rewards.text import replies
from modeseek.stages import Reward, score

Sampled = tuple[Text, Sequence[Response]]  # a prompt and the responses to it
FIRST = {"A": "a", "B": "b", "C": "tie", "unclear": "unclear"}  # a verdict as a side of the pair, a shown as A
SECOND = FIRST | {"A": "b", "B": "a"}  # and b shown as A


@dataclass
class Lexicon:
    """The texts of the chunk in hand, by number."""

    texts: list[str] = field(default_factory=list)
    prompts: list[Text] = field(default_factory=list)

    def decode(self, ids: list[int]) -> str:
        """A response from its tokens, which all are its number."""
        return self.texts[ids[0]] if ids else ""

    def batch(self, groups: Sequence[Sampled]) -> Batch:
        """The groups as a Batch, `response[p, k, 0]` the number of each response."""
        self.prompts = [prompt for prompt, _ in groups]
        self.texts = [text(one.text) for _, responses in groups for one in responses]
        numbers, n = list[list[list[int]]](), 0
        for _, responses in groups:
            numbers.append([[n + i] * max(one.tokens or 0, 1) for i, one in enumerate(responses)])
            n += len(responses)
        made = Batch.of([[0]] * len(groups), numbers)
        finished = torch.zeros(made.present.shape, dtype=torch.bool)
        for p, (_, responses) in enumerate(groups):
            finished[p, : len(responses)] = torch.tensor([one.finished for one in responses], dtype=torch.bool)
        return made.fill(row=torch.arange(len(groups)), finished=finished)


@dataclass(frozen=True)
class Labeller:
    """A reward that says what it thinks of texts, under a name of its own."""

    name: str
    kind: Literal["rule", "model", "judge"]
    lexicon: Lexicon
    reward: Reward

    @staticmethod
    def open(config: AnyReward) -> Labeller:
        """Loads what the reward needs."""
        lexicon = Lexicon()
        reward = build_reward(config, lexicon, lambda batch: [lexicon.prompts[i] for i in batch["row"].tolist()])
        return Labeller(name_of(config), kind_of(config), lexicon, reward)

    def scored(self, groups: Sequence[Sampled]) -> Batch:
        """The groups with their `reward`."""
        return score(self.reward)(self.lexicon.batch(groups))

    def label(self, ours: float, theirs: float, orders: str = "") -> Label:
        """The label that two rewards make. A model's confidence is Bradley and Terry's.

        Where a judge's verdict was none in either order, no winner is a skip: a tie is something that it says.
        """
        none: Preferred = "skip" if "unclear" in orders else "tie"
        preferred: Preferred = "a" if ours > theirs else "b" if theirs > ours else none
        sure = 1 / (1 + math.exp(-min(abs(ours - theirs), 700.0))) if self.kind == "model" else None
        return Label(
            annotator=self.name,
            kind=self.kind,
            preferred=preferred,
            confidence=sure,
            shown="both" if self.kind == "judge" else "",
            orders=orders,
        )

    def orders(self, pairs: Sequence[Sampled]) -> list[str]:
        """What a judge said of each pair with its first response shown first, and then second; of others nothing.

        It has been asked already: the answers come from its cache.
        """
        if not isinstance(self.reward, JudgeReward):
            return [""] * len(pairs)
        rows = replies(self.lexicon.batch(pairs), self.lexicon, self.reward.prompts)
        said = self.reward.comparison.recalled([(one, other) for one, other in rows if one and other])
        return ["" if both is None else f"{FIRST[both[0]]} {SECOND[both[1]]}" for both in said]


def kind_of(config: AnyReward) -> Literal["rule", "model", "judge"]:
    """What sort of labeller a reward is."""
    if isinstance(config, Judge):
        return "judge"
    return "model" if isinstance(config, Model | Ensemble) else "rule"


def name_of(config: AnyReward) -> str:
    """`rule:length:prefer=shorter`, `model:PATH`, `judge:NAME`: who labelled, as the store says it."""
    if isinstance(config, Judge):
        return f"judge:{config.model}"
    if isinstance(config, Model):
        return f"model:{config.path}"
    told: dict[str, Any] = converter().unstructure(config)
    usual = {name: value for name, value in _defaults(type(config)).items()}
    changed = [f"{k}={v}" for k, v in told.items() if k != "type" and (k not in usual or usual[k] != v)]
    return ":".join(filter(None, [kind_of(config), snake(type(config)), ",".join(changed)]))


def check_tokens(config: AnyReward, groups: Sequence[Sampled]) -> None:
    """A length in tokens needs a writer that counts them."""
    counted = all(one.tokens is not None for _, responses in groups for one in responses)
    if isinstance(config, Length) and config.unit == "tokens" and not counted:
        raise ValueError("label.unit: tokens, but the server did not say how many there are; write unit: words")


def _defaults(kind: type) -> dict[str, Any]:
    import dataclasses

    return {f.name: f.default for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
