"""A row of preference data, whatever its columns were called: one prompt, its responses, what was said of them."""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class DataError(ValueError):
    """One line: the file, the row, the column, what was found, what was expected, and the fix."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `role` is system, user, assistant or tool."""

    role: str
    content: str


Text = str | tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """One prompt and its group of responses: best first where an order is known, none where only prompts are.

    A response that is a single assistant message is kept as its text. A prompt is messages where the row gave
    turns (messages, sharegpt, HH transcripts), else the text as it stood.
    """

    prompt: Text
    responses: tuple[Text, ...] = ()
    rewards: tuple[float, ...] | None = None  # of each response, where the row rates them
    labels: tuple[bool, ...] | None = None  # of each response, where it was judged alone
    weight: float = 1.0
    margin: float | None = None  # by how much the first is better than the second
    source: str = ""  # the row's own `source` or `model`, else the file
    row: int = 0  # counted from 1, in its file
    tie: bool = False  # nobody said which response is better
    prompts_differ: bool = False  # the two sides were written to different prompts: no pair at all
    meta: Mapping[str, Any] = field(default_factory=dict)  # the columns that are not read


def text(x: Text) -> str:
    """The words alone, turns on lines of their own."""
    return x if isinstance(x, str) else "\n".join(message.content for message in x)


def normalise(prompt: Text) -> str:
    """What two prompts share that a reader would call the same: case, spacing and roles do not count."""
    return " ".join(unicodedata.normalize("NFKC", text(prompt)).casefold().split())


# Column names: ours, and those that are understood without a mapping

KNOWN = {
    "prompt": ("prompt", "instruction", "question", "query"),
    "input": ("input",),  # only beside an instruction
    "system": ("system", "system_prompt"),
    "messages": ("messages", "conversations", "conversation"),
    "chosen": ("chosen", "response_j"),
    "rejected": ("rejected", "response_k"),
    "completion": ("completion", "response", "output"),
    "label": ("label", "kto_tag"),
    "responses": ("responses", "completions"),
    "rewards": ("rewards", "scores", "ratings"),
    "response_a": ("response_a", "conversation_a"),
    "response_b": ("response_b", "conversation_b"),
    "winner": ("winner",),
    "margin": ("margin", "preference_strength"),
    "chosen_score": ("chosen_score", "score_chosen", "chosen_reward", "chosen_rating"),
    "rejected_score": ("rejected_score", "score_rejected", "rejected_reward", "rejected_rating"),
    "weight": ("weight",),
    "source": ("source", "model"),
}
SCORES = ("overall_score", "score", "reward", "rating", "fine-grained_score")  # of one entry of a rated list
TEXTS = ("response", "completion", "text", "content", "output")  # of one entry of a rated list
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
Column = str | list[str] | dict[str, Any]
Columns = Mapping[str, Column]
_LOOKS_LIKE_RESPONSES = re.compile(r"respon|complet|chosen|reject|winner|prefer|choice", re.I)
_LOOKS_LIKE_ONE_OF_TWO = re.compile(
    r"(^|_)(accepted|better|worse|good|bad|best|worst|positive|negative|win|lose)(_|$)|(answer|output|text)s?_?[12ab]$",
    re.I,
)


def check_columns(columns: Columns | None) -> None:
    """Refuses a mapping whose keys are not names of ours, or whose values are not columns."""
    for name, column in (columns or {}).items():
        if name not in KNOWN:
            near = difflib.get_close_matches(name, KNOWN, 1, 0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(f"columns: unknown name {name!r}; {hint}write one of {', '.join(KNOWN)}")
        if isinstance(column, list) and name not in ("prompt", "responses"):
            raise DataError(f"columns.{name}: found a list, expected one column; only prompt and responses take more")
        if isinstance(column, dict) and (name != "winner" or not {"column", "a", "b"} <= set(column)):
            raise DataError(
                f"columns.{name}: found {column}, expected a column name"
                " (winner also takes {column: label, a: 0, b: 1, tie: 2}: the codes of its values)"
            )


class _Row:
    """A row seen through our names, that remembers which of its columns were read."""

    def __init__(self, row: Mapping[str, Any], at: str, columns: Columns | None):
        check_columns(columns)
        self.row, self.at, self.read = row, at, set[str]()
        self.names: dict[str, Column] = {}
        claimed = set[str]()
        for name, column in (columns or {}).items():
            wanted = [column["column"]] if isinstance(column, dict) else [column] if isinstance(column, str) else column
            for one in wanted:
                if one not in row:
                    raise DataError(
                        f"{at}, column {one!r}: not there, expected because columns.{name} names it;"
                        f" the columns are {_listing(row)}"
                    )
            claimed.update(wanted)
            self.names[name] = column
        for name, candidates in KNOWN.items():
            if name not in self.names:
                found = next((c for c in candidates if c in row and c not in claimed), None)
                if found is not None:
                    self.names[name] = found

    def has(self, name: str) -> bool:
        """Whether the row has the column with something in it."""
        column = self.names.get(name)
        first = column["column"] if isinstance(column, dict) else column[0] if isinstance(column, list) else column
        return first is not None and self.row[first] is not None

    def column(self, name: str) -> str:
        """What the file calls it."""
        column = self.names.get(name, name)
        return column["column"] if isinstance(column, dict) else column if isinstance(column, str) else column[0]

    def get(self, name: str) -> Any:
        column = self.column(name)
        self.read.add(column)
        return self.row[column]

    def bad(self, name: str, found: Any, expected: str, fix: str) -> DataError:
        return DataError(f"{self.at}, column {self.column(name)!r}: found {found}, expected {expected}; {fix}")

    def number(self, name: str) -> float | None:
        if not self.has(name):
            return None
        return self.as_number(name, self.get(name))

    def as_number(self, name: str, value: Any) -> float:
        if not isinstance(value, bool):
            try:
                number = float(value)
                if math.isfinite(number):
                    return number
            except (TypeError, ValueError):
                pass
        raise self.bad(name, _show(value), "a finite number", "mend the value or leave the row out")


def _listing(row: Mapping[str, Any]) -> str:
    return ", ".join(str(name) for name in row) or "none"


def _show(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return f"{str(value).lower()} (a boolean)"
        case int() | float():
            return f"{value} (a number)"
        case str():
            return f"the text {value[:40] + ('...' if len(value) > 40 else '')!r}"
        case list() | tuple():
            inside = _show(value[0]).split(" '")[0].split(' "')[0] if value else "nothing"
            return f"a list of {len(value)} ({inside} first)"
        case Mapping():
            return f"an object with {_listing(value)}"
        case _:
            return f"a {type(value).__name__}"


def parse(row: Mapping[str, Any], *, source: str = "data", number: int = 1, columns: Columns | None = None) -> Record:
    """The Record that a row holds. Its shape is told by its columns; `columns` maps our names to other ones.

    Understood: `chosen, rejected` with an explicit or implicit prompt; `response_a, response_b, winner`;
    `completion, label`; rated lists (`completions` with a score each, or `responses, rewards`);
    demonstrations (`completion`, `output`, or messages that end with the assistant); prompts alone. A text may
    be a string, messages (`role, content` or `from, value`) or an HH transcript.
    """
    r = _Row(row, f"{source}, row {number}", columns)
    if row.get("tools"):
        raise DataError(
            f"{r.at}, column 'tools': found tool definitions, expected none: they are not rendered; leave them out"
        )
    if "chosen" in r.names or "rejected" in r.names:
        parts = _pair(r)
    elif r.has("response_a") or r.has("response_b"):
        parts = _comparison(r)
    elif r.has("responses"):
        parts = _rated(r)
    elif r.has("label") or ("label" in r.names and r.has("completion")):
        parts = _unpaired(r)
    else:
        parts = _demonstration_or_prompt(r)
    weight = r.number("weight")
    if weight is not None and weight < 0:
        raise r.bad("weight", _show(weight), "a number of at least 0", "mend the value")
    own = r.get("source") if r.has("source") and isinstance(row[r.column("source")], str) else source
    meta = {name: value for name, value in row.items() if name not in r.read}
    return Record(**parts, weight=1.0 if weight is None else weight, source=own, row=number, meta=meta)


# The shapes


def _pair(r: _Row) -> dict[str, Any]:
    for side, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if not r.has(side):
            found = "nothing" if side in r.names else f"no such column among {_listing(r.row)}"
            raise r.bad(side, found, f"the {side} response", f"add it beside {r.column(other)!r} or leave the row out")
    chosen, rejected = (_text(r, side, r.get(side)) for side in ("chosen", "rejected"))
    parts = _beside_prompt(r, chosen, rejected)
    margin = r.number("margin")
    scores = tuple(r.number(name) for name in ("chosen_score", "rejected_score"))
    if None not in scores:
        a, b = (s for s in scores if s is not None)
        parts["rewards"] = (a, b)
        margin = a - b if margin is None else margin
    return parts | {"margin": margin, "tie": margin == 0}


def _comparison(r: _Row) -> dict[str, Any]:
    for side in ("response_a", "response_b", "winner"):
        if not r.has(side):
            raise r.bad(side, "nothing", "two responses and which one won", f"name it: columns: {{{side}: ...}}")
    a, b = (_text(r, side, r.get(side)) for side in ("response_a", "response_b"))
    winner, codes = r.get("winner"), r.names["winner"]
    if isinstance(codes, dict):
        said = {str(code): name for name, code in codes.items() if name != "column"}.get(str(winner))
    else:
        said = _WINNERS.get(winner.strip().lower()) if isinstance(winner, str) else None
    if said is None:
        fix = f"say what its values mean: columns: {{winner: {{column: {r.column('winner')}, a: 1, b: 2, tie: 0}}}}"
        raise r.bad("winner", _show(winner), "a, b or tie", fix)
    parts = _beside_prompt(r, *((b, a) if said == "b" else (a, b)))
    return parts | {"margin": 0.0 if said == "tie" else r.number("margin"), "tie": said == "tie"}


_WINNERS = {"tie (bothbad)": "tie", "both": "tie"} | {
    spelling: name
    for name in ("a", "b", "tie")
    for spelling in (name, f"model_{name}", f"response_{name}", f"conversation_{name}")
}


def _rated(r: _Row) -> dict[str, Any]:
    entries = r.row[r.column("responses")]
    if isinstance(r.names["responses"], list):
        r.read.update(r.names["responses"])
        entries = [r.row[column] for column in r.names["responses"]]
    r.read.add(r.column("responses"))
    if not isinstance(entries, list | tuple) or not entries:
        raise r.bad("responses", _show(entries), "a list of responses", "write a list, one entry a response")
    if all(isinstance(entry, Mapping) and any(key in entry for key in SCORES) for entry in entries):
        score = next(key for key in SCORES if key in entries[0])
        key = next((key for key in TEXTS if key in entries[0]), None)
        if key is None or any(key not in entry or score not in entry for entry in entries):
            raise r.bad(
                "responses", _show(entries[0]), f"a text ({', '.join(TEXTS)}) and a score in every entry", "add it"
            )
        texts = [entry[key] for entry in entries]
        rewards = [entry[score] for entry in entries]
    elif r.has("rewards"):
        texts, rewards = list(entries), r.get("rewards")
        if not isinstance(rewards, list | tuple) or len(rewards) != len(texts):
            raise r.bad("rewards", _show(rewards), f"one number for each of the {len(texts)} responses", "mend the row")
    else:
        raise r.bad(
            "responses",
            "responses without scores",
            f"a score in every entry ({', '.join(SCORES)}) or a column of rewards",
            "name it: columns: {rewards: ...}",
        )
    prompt = _prompt(r)
    rated = [(r.as_number("responses", s), _text(r, "responses", t)) for s, t in zip(rewards, texts, strict=True)]
    rated.sort(key=lambda pair: -pair[0])  # stable: equal scores keep the file's order
    scores = tuple(score for score, _ in rated)
    return {
        "prompt": prompt,
        "responses": tuple(_reply(r, "responses", reply) for _, reply in rated),
        "rewards": scores,
        "margin": scores[0] - scores[1] if len(scores) == 2 else None,
        "tie": len(scores) > 1 and scores[0] == scores[-1],
    }


def _unpaired(r: _Row) -> dict[str, Any]:
    if not r.has("completion") and not r.has("messages"):
        raise r.bad(
            "label",
            f"a label and no completion among {_listing(r.row)}",
            "the response that it judges",
            "name it: columns: {completion: ...}, or for two responses columns: {response_a: ..., response_b: ...,"
            f" winner: {{column: {r.column('label')}, a: 0, b: 1, tie: 2}}}}",
        )
    label = r.get("label")
    said = {"true": True, "1": True, "false": False, "0": False}.get(str(label).strip().lower())
    if said is None or isinstance(label, float):
        raise r.bad("label", _show(label), "true or false", "mend the value or leave the row out")
    parts = _demonstration_or_prompt(r)
    if not parts["responses"]:
        raise r.bad("messages", "a conversation that ends before the response", "an assistant's turn last", "add it")
    return parts | {"labels": (said,)}


def _demonstration_or_prompt(r: _Row) -> dict[str, Any]:
    if r.has("completion"):
        completion = _text(r, "completion", r.get("completion"))
        return {"prompt": _prompt(r), "responses": (_reply(r, "completion", completion),)}
    there = [str(name) for name in r.row if r.row[name] is not None]
    two = [name for name in there if _LOOKS_LIKE_ONE_OF_TWO.search(name)]
    odd = len(two) > 1 or any(_LOOKS_LIKE_RESPONSES.search(name) for name in there)
    if odd or not (r.has("prompt") or r.has("messages")):
        raise DataError(
            f"{r.at}: found the columns {_listing(r.row)}, expected prompt, chosen, rejected or another known shape;"
            " name them: columns: {prompt: ..., chosen: ..., rejected: ...}"
            " or {prompt: ..., response_a: ..., response_b: ..., winner: ...}"
        )
    prompt = _prompt(r)
    if not isinstance(prompt, str) and prompt[-1].role == "assistant" and len(prompt) > 1:
        return {"prompt": prompt[:-1], "responses": (prompt[-1].content,)}
    return {"prompt": prompt, "responses": ()}


# The texts of a row


def _text(r: _Row, name: str, value: Any) -> Text:
    """A string, or messages however they are written."""
    if isinstance(value, str):
        return _whole(r, name, value)
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, list | tuple) and value and all(isinstance(m, Mapping) for m in value):
        return tuple(_message(r, name, m) for m in value)
    fix = "write one row for each pair" if isinstance(value, list) else "mend the value or leave the row out"
    raise r.bad(name, _show(value), "a text or a list of messages", fix)


def _message(r: _Row, name: str, m: Mapping[str, Any]) -> Message:
    role, content = m.get("role", m.get("from")), m.get("content", m.get("value"))
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        content = "".join(str(part["text"]) for part in content)
    if not isinstance(role, str) or role.lower() not in ROLES:
        expected = "messages with a role (system, user, assistant, tool; or from: human, gpt)"
        raise r.bad(name, f"a message whose role is {_show(role)}", expected, "mend the role")
    if not isinstance(content, str):
        raise r.bad(name, f"a message whose content is {_show(content)}", "a text", "mend it or leave the row out")
    return Message(ROLES[role.lower()], _whole(r, name, content))


def _whole(r: _Row, name: str, value: str) -> str:
    """The text, where every character of it can be written: JSON can hold half of one, which no tokenizer reads."""
    if not value.isascii() and (half := _HALF.search(value)):
        fix = "mend the value or leave the row out"
        raise r.bad(name, f"half a character (\\u{ord(half[0]):04x}) at {half.start()}", "Unicode text", fix)
    return value


_HALF = re.compile("[\ud800-\udfff]")


def _prompt(r: _Row) -> Text:
    name = "prompt" if r.has("prompt") else "messages"
    if not r.has(name):
        raise r.bad(
            "prompt", f"no such column among {_listing(r.row)}", "the prompt", "name it: columns: {prompt: ...}"
        )
    column = r.names[name]
    if isinstance(column, list):
        values = [r.row[one] for one in column]
        r.read.update(column)
        odd = next((v for v in values if v is not None and not isinstance(v, str)), None)
        if odd is not None:
            raise r.bad(name, _show(odd), "texts, where several columns make the prompt", "mend the value")
        prompt: Text = "\n\n".join(v for v in values if v)
    else:
        prompt = _text(r, name, r.get(name))
        if r.column(name) == "instruction" and r.has("input") and isinstance(prompt, str):
            extra = _text(r, "input", r.get("input"))
            prompt = f"{prompt}\n\n{text(extra)}" if extra else prompt
    if isinstance(prompt, str):
        prompt = _turns(prompt) or prompt
    if r.has("system") and r.get("system"):
        system = _text(r, "system", r.get("system"))
        prompt = (Message("system", text(system)), *((Message("user", prompt),) if isinstance(prompt, str) else prompt))
    return prompt


def _reply(r: _Row, name: str, value: Text) -> Text:
    if isinstance(value, str):
        return value
    if any(message.role != "assistant" for message in value):
        roles = ", ".join(message.role for message in value)
        raise r.bad(
            name, f"a response with turns of {roles}", "the assistant's alone", "put the others into the prompt"
        )
    return value[0].content if len(value) == 1 else value


def _beside_prompt(r: _Row, chosen: Text, rejected: Text) -> dict[str, Any]:
    """The prompt, from its column or from what the two sides share, and the two responses."""
    explicit = r.has("prompt") or r.has("messages")
    whole = _is_conversation(chosen) and _is_conversation(rejected)
    if explicit and not whole:
        prompt = _prompt(r)
        return {"prompt": prompt, "responses": (_reply(r, "chosen", chosen), _reply(r, "rejected", rejected))}
    shared = extract_prompt(chosen, rejected)
    prompt, responses = shared["prompt"], (shared["chosen"], shared["rejected"])
    differ = any(_goes_on(response) for response in responses)
    if isinstance(prompt, str):
        turns = _turns(prompt)
        if turns is not None:
            prompt, responses = turns, (responses[0].removeprefix(" "), responses[1].removeprefix(" "))
    else:
        responses = tuple(x[0].content if len(x) == 1 and x[0].role == "assistant" else x for x in responses)
    if explicit and normalise(_prompt(r)) not in normalise(prompt) and not differ:
        raise r.bad("prompt", "a prompt that the two conversations do not share", "the one they share", "mend the row")
    if not prompt and not differ:
        raise r.bad("chosen", "no words shared with the rejected text", "texts that begin with one prompt", "add one")
    return {"prompt": prompt, "responses": responses, "prompts_differ": differ}


def _is_conversation(x: Text) -> bool:
    return bool(_TRANSCRIPT.match(x)) if isinstance(x, str) else x[0].role != "assistant"


def _goes_on(response: Text) -> bool:
    """Whether a response holds further turns, so that the turns before it were not those of the other side."""
    if isinstance(response, str):
        return bool(_TURN.search(response))
    return len(response) != 1 or response[0].role != "assistant"


# Prompts that stand inside the responses

_TURN = re.compile(r"\n\n(Human|Assistant):")
_TRANSCRIPT = re.compile(r"\s*Human:")
_HEADERS = re.compile(  # where an assistant's turn begins, in the usual ways of writing conversations as text
    r"\n\nAssistant:|\nASSISTANT:|\n### ?(?:Response|Assistant|Answer):|\[/INST\]|<\|assistant\|>\n?"
    r"|<\|im_start\|>assistant\n|<start_of_turn>model\n|<\|start_header_id\|>assistant<\|end_header_id\|>\n\n"
)


def _turns(prompt: str) -> tuple[Message, ...] | None:
    """The turns of an HH transcript that waits for the assistant; None where the text is no such thing."""
    if not _TRANSCRIPT.match(prompt) or not prompt.rstrip().endswith("\n\nAssistant:"):
        return None
    _, *parts = _TURN.split("\n\n" + prompt.lstrip())
    roles, contents = parts[:-2:2], parts[1:-2:2]
    return tuple(
        Message(ROLES[role.lower()], content.removeprefix(" ")) for role, content in zip(roles, contents, strict=True)
    )


def extract_prompt(chosen: Any, rejected: Any) -> dict[str, Any]:
    """Splits what two texts, or two conversations, share off as their prompt: `prompt, chosen, rejected`.

    The cut falls where the last shared turn of the assistant begins, else between two words (the space goes with
    the responses), never inside one: a shared beginning of two responses is not part of the prompt. Writing
    without spaces is cut at its punctuation, else between ideographs. Texts that share no word have the prompt "".
    """
    if isinstance(chosen, str) and isinstance(rejected, str):
        cut = _common(chosen, rejected)
        headers = list(_HEADERS.finditer(chosen, 0, cut))
        at = headers[-1].end() if headers else _between_words(chosen, rejected, cut)
    else:
        limit = min(len(chosen), len(rejected)) - 1
        at = min(_common(chosen, rejected), limit)
        while at > 0 and {_role(chosen[at]), _role(rejected[at])} != {"assistant"}:
            at -= 1
    return {"prompt": chosen[:at], "chosen": chosen[at:], "rejected": rejected[at:]}


def unpair(prompt: Sequence[Any], chosen: Sequence[Any], rejected: Sequence[Any]) -> dict[str, list[Any]]:
    """Columns of pairs as columns of single responses with a label: all the chosen, then all the rejected."""
    return {
        "prompt": [*prompt, *prompt],
        "completion": [*chosen, *rejected],
        "label": [True] * len(chosen) + [False] * len(rejected),
    }


def _role(message: Any) -> str:
    role = message.role if isinstance(message, Message) else message.get("role", message.get("from"))
    return ROLES.get(role, role)


def _common(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many of the first places of two sequences are equal."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _between_words(a: str, b: str, cut: int) -> int:
    cut = min(cut, len(a) - 1, len(b) - 1)  # both sides keep something
    for apart in (_spaced, _ideographs):
        for at in range(cut, 0, -1):
            if not a[at - 1].isspace() and apart(a[at - 1], a[at]) and apart(a[at - 1], b[at]):
                return at
    return 0


def _spaced(before: str, after: str) -> bool:
    return after.isspace() or before in "。！？；：，、」』）" or after in "「『（"


def _ideographs(before: str, after: str) -> bool:
    return _ideograph(before) and _ideograph(after)


def _ideograph(c: str) -> bool:
    return "\u4e00" <= c <= "\u9fff" or "\u3400" <= c <= "\u4dbf" or "\U00020000" <= c <= "\U0003ffff"
