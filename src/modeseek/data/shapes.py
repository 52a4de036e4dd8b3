"""The shapes that a row of preference data can have, and the Record of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from modeseek.data.columns import SCORES, TEXTS, Columns, Row, listing, show
from modeseek.data.records import DataError, Record
from modeseek.data.texts import beside_prompt, prompt_of, reply_of, text_of

_LOOKS_LIKE_RESPONSES = re.compile(r"respon|complet|chosen|reject|winner|prefer|choice", re.I)
_LOOKS_LIKE_ONE_OF_TWO = re.compile(
    r"(^|_)(accepted|better|worse|good|bad|best|worst|positive|negative|win|lose)(_|$)|(answer|output|text)s?_?[12ab]$",
    re.I,
)


def parse(row: Mapping[str, Any], *, source: str = "data", number: int = 1, columns: Columns | None = None) -> Record:
    """The Record that a row holds. Its shape is told by its columns; `columns` maps our names to other ones.

    Understood: `chosen, rejected` with an explicit or implicit prompt; `response_a, response_b, winner`;
    `completion, label`; rated lists (`completions` with a score each, or `responses, rewards`);
    demonstrations (`completion`, `output`, or messages that end with the assistant); prompts alone. A text may
    be a string, messages (`role, content` or `from, value`) or an HH transcript.
    """
    r = Row(row, f"{source}, row {number}", columns)
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
        raise r.bad("weight", show(weight), "a number of at least 0", "mend the value")
    own = r.get("source") if r.has("source") and isinstance(row[r.column("source")], str) else source
    meta = {name: value for name, value in row.items() if name not in r.read}
    return Record(**parts, weight=1.0 if weight is None else weight, source=own, row=number, meta=meta)


def _pair(r: Row) -> dict[str, Any]:
    for side, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if not r.has(side):
            found = "nothing" if side in r.names else f"no such column among {listing(r.row)}"
            raise r.bad(side, found, f"the {side} response", f"add it beside {r.column(other)!r} or leave the row out")
    chosen, rejected = (text_of(r, side, r.get(side)) for side in ("chosen", "rejected"))
    parts = beside_prompt(r, chosen, rejected)
    margin = r.number("margin")
    scores = tuple(r.number(name) for name in ("chosen_score", "rejected_score"))
    if None not in scores:
        a, b = (s for s in scores if s is not None)
        parts["rewards"] = (a, b)
        margin = a - b if margin is None else margin
    return parts | {"margin": margin, "tie": margin == 0}


def _comparison(r: Row) -> dict[str, Any]:
    for side in ("response_a", "response_b", "winner"):
        if not r.has(side):
            raise r.bad(side, "nothing", "two responses and which one won", f"name it: columns: {{{side}: ...}}")
    a, b = (text_of(r, side, r.get(side)) for side in ("response_a", "response_b"))
    winner, codes = r.get("winner"), r.names["winner"]
    if isinstance(codes, dict):
        said = {str(code): name for name, code in codes.items() if name != "column"}.get(str(winner))
    else:
        said = _WINNERS.get(winner.strip().lower()) if isinstance(winner, str) else None
    if said is None:
        fix = f"say what its values mean: columns: {{winner: {{column: {r.column('winner')}, a: 1, b: 2, tie: 0}}}}"
        raise r.bad("winner", show(winner), "a, b or tie", fix)
    parts = beside_prompt(r, *((b, a) if said == "b" else (a, b)))
    return parts | {"margin": 0.0 if said == "tie" else r.number("margin"), "tie": said == "tie"}


_WINNERS = {"tie (bothbad)": "tie", "both": "tie"} | {
    spelling: name
    for name in ("a", "b", "tie")
    for spelling in (name, f"model_{name}", f"response_{name}", f"conversation_{name}")
}


def _rated(r: Row) -> dict[str, Any]:
    entries = r.row[r.column("responses")]
    if isinstance(r.names["responses"], list):
        r.read.update(r.names["responses"])
        entries = [r.row[column] for column in r.names["responses"]]
    r.read.add(r.column("responses"))
    if not isinstance(entries, list | tuple) or not entries:
        raise r.bad("responses", show(entries), "a list of responses", "write a list, one entry a response")
    if all(isinstance(entry, Mapping) and any(key in entry for key in SCORES) for entry in entries):
        score = next(key for key in SCORES if key in entries[0])
        key = next((key for key in TEXTS if key in entries[0]), None)
        if key is None or any(key not in entry or score not in entry for entry in entries):
            raise r.bad(
                "responses", show(entries[0]), f"a text ({', '.join(TEXTS)}) and a score in every entry", "add it"
            )
        texts = [entry[key] for entry in entries]
        rewards = [entry[score] for entry in entries]
    elif r.has("rewards"):
        texts, rewards = list(entries), r.get("rewards")
        if not isinstance(rewards, list | tuple) or len(rewards) != len(texts):
            raise r.bad("rewards", show(rewards), f"one number for each of the {len(texts)} responses", "mend the row")
    else:
        raise r.bad(
            "responses",
            "responses without scores",
            f"a score in every entry ({', '.join(SCORES)}) or a column of rewards",
            "name it: columns: {rewards: ...}",
        )
    prompt = prompt_of(r)
    rated = [(r.as_number("responses", s), text_of(r, "responses", t)) for s, t in zip(rewards, texts, strict=True)]
    rated.sort(key=lambda pair: -pair[0])  # stable: equal scores keep the file's order
    scores = tuple(score for score, _ in rated)
    return {
        "prompt": prompt,
        "responses": tuple(reply_of(r, "responses", reply) for _, reply in rated),
        "rewards": scores,
        "margin": scores[0] - scores[1] if len(scores) == 2 else None,
        "tie": len(scores) > 1 and scores[0] == scores[-1],
    }


def _unpaired(r: Row) -> dict[str, Any]:
    if not r.has("completion") and not r.has("messages"):
        raise r.bad(
            "label",
            f"a label and no completion among {listing(r.row)}",
            "the response that it judges",
            "name it: columns: {completion: ...}, or for two responses columns: {response_a: ..., response_b: ...,"
            f" winner: {{column: {r.column('label')}, a: 0, b: 1, tie: 2}}}}",
        )
    label = r.get("label")
    said = {"true": True, "1": True, "false": False, "0": False}.get(str(label).strip().lower())
    if said is None or isinstance(label, float):
        raise r.bad("label", show(label), "true or false", "mend the value or leave the row out")
    parts = _demonstration_or_prompt(r)
    if not parts["responses"]:
        raise r.bad("messages", "a conversation that ends before the response", "an assistant's turn last", "add it")
    return parts | {"labels": (said,)}


def _demonstration_or_prompt(r: Row) -> dict[str, Any]:
    if r.has("completion"):
        completion = text_of(r, "completion", r.get("completion"))
        return {"prompt": prompt_of(r), "responses": (reply_of(r, "completion", completion),)}
    there = [str(name) for name in r.row if r.row[name] is not None]
    two = [name for name in there if _LOOKS_LIKE_ONE_OF_TWO.search(name)]
    odd = len(two) > 1 or any(_LOOKS_LIKE_RESPONSES.search(name) for name in there)
    if odd or not (r.has("prompt") or r.has("messages")):
        raise DataError(
            f"{r.at}: found the columns {listing(r.row)}, expected prompt, chosen, rejected or another known shape;"
            " name them: columns: {prompt: ..., chosen: ..., rejected: ...}"
            " or {prompt: ..., response_a: ..., response_b: ..., winner: ...}"
        )
    prompt = prompt_of(r)
    if not isinstance(prompt, str) and prompt[-1].role == "assistant" and len(prompt) > 1:
        return {"prompt": prompt[:-1], "responses": (prompt[-1].content,)}
    return {"prompt": prompt, "responses": ()}
