"""Fables: a world small enough to train on the spot, whose reward is known for every text.

A prompt names an animal and a place, `tell of the fox in the forest :`. A fable answers with an opening, some
acts (kind, plain or grim) and an ending:

    once the fox woke in the forest . the fox argued with a turnip . the fox shared warm soup with the widow .
    so the fox had many friends .

`judge` reads any text, also one that no author would write, and says what it is worth and whether it has
fallen apart. The best fables, kind twice and kind at the end, are worth 3; nothing is worth less than -4.

Two distributions stand here. `pretraining` is what a reference model learns: mostly grim, of any length, now
and then rambling. `pairs` is what somebody else wrote for it to prefer: short and well-formed without
exception, so that the pairs say nothing about the rambling and broken text that a policy can drift to.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from scipy.special import expit
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

Mood = Literal["kind", "plain", "grim"]

ANIMALS = ("fox", "hare", "owl", "bear", "mouse", "goat", "crow", "toad")
PLACES = ("forest", "village", "marsh", "castle", "valley", "orchard")
OTHERS = ("baker", "widow", "child", "miller", "knight", "piper")

PROMPT = "tell of the {animal} in the {place} :"
OPENINGS = ("once the {animal} woke in the {place} .", "one day the {animal} came to the {place} .")
ACTS: Mapping[Mood, tuple[str, ...]] = {
    "kind": (
        "the {animal} shared warm soup with the {other} .",
        "the {animal} helped the old {other} .",
        "the {animal} sang softly to the {other} .",
        "the {animal} hugged the tired {other} .",
        "the {animal} gave bread to the {other} .",
        "the {animal} mended a cloak for the {other} .",
    ),
    "plain": (
        "the {animal} walked to the river .",
        "the {animal} counted the clouds .",
        "the {animal} slept under a tree .",
        "the {animal} bowed to the moon .",
        "the {animal} met the {other} .",
        "the {animal} argued with a turnip .",
    ),
    "grim": (
        "the {animal} stole bread from the {other} .",
        "the {animal} shouted at the old {other} .",
        "the {animal} broke the lamp of the {other} .",
        "the {animal} laughed at the tired {other} .",
        "the {animal} threw mud at the {other} .",
        "the {animal} lied to the {other} .",
    ),
}
ENDINGS: Mapping[Mood, tuple[str, ...]] = {
    "kind": ("so everyone danced with the {animal} .", "so the {animal} had many friends ."),
    "plain": ("then it was night .", "and that was all ."),
    "grim": ("so the {animal} ate supper alone .", "so nobody loved the {animal} ."),
}

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
MAX_NEW_TOKENS = 96  # the length limit for a fable, end token included: about ten acts
HIGHEST, FLOOR = 3.0, -4.0

PRETRAINING_MOODS: Mapping[Mood, float] = {"grim": 0.5, "plain": 0.35, "kind": 0.15}
PRETRAINING_STOP = 0.45  # the chance that an act is the last
PRETRAINING_MOST_ACTS = 11
AUTHOR_MOODS: Mapping[Mood, float] = {"grim": 0.3, "plain": 0.4, "kind": 0.3}
AUTHOR_ACTS = (1, 3)

_ACT_KEEPS_MOOD = 0.7  # otherwise the act's mood is any of the three
_ENDING_KEEPS_MOOD = 0.75


class Topic(NamedTuple):
    """What a prompt asks to be told about."""

    animal: str
    place: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What `judge` found in a text."""

    kind: int  # acts of each mood
    plain: int
    grim: int
    ending: Mood | None
    broken: int  # sentences that are not of the grammar, or stand where the grammar has no place for them
    off_topic: int  # sentences about another animal or place than the prompt's
    most_told: int  # how often the most repeated act is told
    repeats: int  # acts told before, word for word
    empty: bool
    finished: bool  # the text ended by itself, not by the length limit

    @property
    def acts(self) -> int:
        return self.kind + self.plain + self.grim

    @property
    def rambling(self) -> bool:
        """It goes on for more than six acts, or was cut off."""
        return self.acts > 6 or not self.finished

    @property
    def looping(self) -> bool:
        """The same act is told three times."""
        return self.most_told >= 3

    @property
    def degenerate(self) -> bool:
        """It is no fable any more, whatever it is worth."""
        return bool(self.broken) or self.rambling or self.looping or self.empty

    @property
    def reward(self) -> float:
        """Kindness counts twice at most, and four acts are enough: longer is never better."""
        ending = {"kind": 1.0, "plain": 0.0, "grim": -1.0, None: -1.0}[self.ending]
        worth = min(self.kind, 2) - 0.5 * self.grim + ending
        faults = 0.5 * (max(0, self.acts - 4) + self.off_topic + self.repeats)
        faults += 1.0 * self.broken + (0.0 if self.finished else 1.0)
        return max(worth - faults, FLOOR)


def judge(prompt: str, response: str, finished: bool) -> Verdict:
    """Read a response to a prompt. Spaces around full stops do not matter; the end token must be cut off."""
    topic = _topic(prompt)
    sentences = _sentences(response)
    acts: Counter[str] = Counter()
    moods: Counter[Mood] = Counter()
    ending: Mood | None = None
    broken = off_topic = 0
    for i, sentence in enumerate(sentences):
        line = _LINES.get(sentence)
        if line is None:
            broken += 1
            continue
        if line.part == "opening":
            broken += i > 0
        elif line.part == "act":
            acts[sentence] += 1
            moods[line.mood] += 1
        elif i == len(sentences) - 1:
            ending = line.mood
        else:
            broken += 1
        off_topic += line.animal not in (None, topic.animal) or line.place not in (None, topic.place)
    return Verdict(
        kind=moods["kind"],
        plain=moods["plain"],
        grim=moods["grim"],
        ending=ending,
        broken=broken,
        off_topic=off_topic,
        most_told=max(acts.values(), default=0),
        repeats=acts.total() - len(acts),
        empty=not sentences,
        finished=finished,
    )


def prompts(n: int, seed: int) -> list[str]:
    """Prompts drawn with replacement from the 48 that there are."""
    rng = _stream("prompts", seed)
    return [PROMPT.format(**_draw_topic(rng)._asdict()) for _ in range(n)]


def pretraining(n: int, seed: int) -> list[dict[str, str]]:
    """Rows of `prompt, completion` for the reference to learn from: 2 in 1000 do not fit MAX_NEW_TOKENS."""
    rng = _stream("pretraining", seed)
    rows = []
    for _ in range(n):
        topic = _draw_topic(rng)
        acts = 1
        while acts < PRETRAINING_MOST_ACTS and rng.random() > PRETRAINING_STOP:
            acts += 1
        fable = _fable(rng, topic, _draw_mood(rng, PRETRAINING_MOODS), acts)
        rows.append({"prompt": PROMPT.format(**topic._asdict()), "completion": fable})
    return rows


def pairs(n: int, seed: int, *, temperature: float = 1.0) -> list[dict[str, str]]:
    """Rows of `prompt, chosen, rejected`: two fables of one author, never of equal reward.

    The label is a draw from the Bradley-Terry model: a is chosen over b with the probability
    sigmoid((r(a) - r(b)) / temperature), so some pairs have the worse fable first, as a person's labels do.
    """
    if temperature <= 0:
        raise ValueError(f"temperature: found {temperature}, expected a number above 0")
    rng = _stream("pairs", seed)
    rows: list[dict[str, str]] = []
    while len(rows) < n:
        topic = _draw_topic(rng)
        prompt = PROMPT.format(**topic._asdict())
        a, b = _author(rng, topic), _author(rng, topic)
        gap = judge(prompt, a, True).reward - judge(prompt, b, True).reward
        if gap == 0:
            continue
        a_wins = rng.random() < expit(gap / temperature)
        chosen, rejected = (a, b) if a_wins else (b, a)
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def tokenizer() -> Tokenizer:
    """One token a word; `<pad>` is 0, `<bos>` 1 and put before every text, `<eos>` 2; any other word is `<unk>`."""
    texts = [PROMPT, *OPENINGS, *(t for half in (ACTS, ENDINGS) for ts in half.values() for t in ts)]
    words = {word for text in texts for word in text.split() if "{" not in word}
    vocabulary = [PAD, BOS, EOS, UNK, *sorted(words | {*ANIMALS, *PLACES, *OTHERS})]
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNK))
    made.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    made.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])  # type: ignore[assignment]
    made.add_special_tokens([PAD, BOS, EOS, UNK])
    return made


class _Line(NamedTuple):
    """A sentence of the grammar: what it does in a fable and what it is about."""

    part: Literal["opening", "act", "ending"]
    mood: Mood
    animal: str | None = None
    place: str | None = None


def _all_lines() -> dict[str, _Line]:
    """Every sentence that the grammar can make; there are few enough to list."""
    lines: dict[str, _Line] = {}
    for animal in ANIMALS:
        for text in OPENINGS:
            for place in PLACES:
                lines[text.format(animal=animal, place=place)] = _Line("opening", "plain", animal, place)
        for mood, acts in ACTS.items():
            for text in acts:
                for other in OTHERS:
                    lines[text.format(animal=animal, other=other)] = _Line("act", mood, animal)
        for mood, endings in ENDINGS.items():
            for text in endings:
                about = animal if "{animal}" in text else None
                lines[text.format(animal=animal)] = _Line("ending", mood, about)
    return lines


_LINES = _all_lines()
_TOPICS = {PROMPT.format(animal=a, place=p): Topic(a, p) for a in ANIMALS for p in PLACES}


def _topic(prompt: str) -> Topic:
    topic = _TOPICS.get(" ".join(prompt.replace(":", " : ").split()))
    if topic is None:
        raise ValueError(
            f"prompt: found {prompt!r}, expected one like {PROMPT.format(animal='fox', place='forest')!r} "
            f"with an animal of {', '.join(ANIMALS)} and a place of {', '.join(PLACES)}"
        )
    return topic


def _sentences(text: str) -> list[str]:
    """Cut after each full stop. What is left without one is a sentence too, though none of the grammar."""
    parts = " ".join(text.split()).replace(".", " .\n").split("\n")
    return [" ".join(part.split()) for part in parts if part.strip()]


def _fable(rng: random.Random, topic: Topic, mood: Mood, acts: int) -> str:
    told = [rng.choice(OPENINGS)]
    told += [rng.choice(ACTS[_stray(rng, mood, _ACT_KEEPS_MOOD)]) for _ in range(acts)]
    told.append(rng.choice(ENDINGS[_stray(rng, mood, _ENDING_KEEPS_MOOD)]))
    return " ".join(text.format(**topic._asdict(), other=rng.choice(OTHERS)) for text in told)


def _author(rng: random.Random, topic: Topic) -> str:
    """A fable of one to three acts. The author notices when an act is told three times, and begins again."""
    prompt = PROMPT.format(**topic._asdict())
    while True:
        fable = _fable(rng, topic, _draw_mood(rng, AUTHOR_MOODS), rng.randint(*AUTHOR_ACTS))
        if not judge(prompt, fable, True).degenerate:
            return fable


def _stray(rng: random.Random, mood: Mood, keep: float) -> Mood:
    return mood if rng.random() < keep else rng.choice(tuple(ACTS))


def _draw_mood(rng: random.Random, moods: Mapping[Mood, float]) -> Mood:
    return rng.choices(tuple(moods), tuple(moods.values()))[0]


def _draw_topic(rng: random.Random) -> Topic:
    return Topic(rng.choice(ANIMALS), rng.choice(PLACES))


def _stream(purpose: str, seed: int) -> random.Random:
    """Apart for each purpose: pairs and prompts of one seed are unrelated. The same on every machine."""
    return random.Random(f"fables {purpose} {seed}")
