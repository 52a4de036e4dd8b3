"""The texts of a row: strings and messages however they are written, its prompt, and what stands beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from modeseek.data.columns import Row, listing, show
from modeseek.data.records import ROLES, Message, Text, normalise, text
from modeseek.data.transcripts import extract_prompt, goes_on, is_conversation, turns_of

_HALF = re.compile("[\ud800-\udfff]")


def text_of(r: Row, name: str, value: Any) -> Text:
    """A string, or messages however they are written."""
    if isinstance(value, str):
        return _whole(r, name, value)
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, list | tuple) and value and all(isinstance(m, Mapping) for m in value):
        return tuple(_message(r, name, m) for m in value)
    fix = "write one row for each pair" if isinstance(value, list) else "mend the value or leave the row out"
    raise r.bad(name, show(value), "a text or a list of messages", fix)


def _message(r: Row, name: str, m: Mapping[str, Any]) -> Message:
    role, content = m.get("role", m.get("from")), m.get("content", m.get("value"))
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        content = "".join(str(part["text"]) for part in content)
    if not isinstance(role, str) or role.lower() not in ROLES:
        expected = "messages with a role (system, user, assistant, tool; or from: human, gpt)"
        raise r.bad(name, f"a message whose role is {show(role)}", expected, "mend the role")
    if not isinstance(content, str):
        raise r.bad(name, f"a message whose content is {show(content)}", "a text", "mend it or leave the row out")
    return Message(ROLES[role.lower()], _whole(r, name, content))


def _whole(r: Row, name: str, value: str) -> str:
    """The text, where every character of it can be written: JSON can hold half of one, which no tokenizer reads."""
    if not value.isascii() and (half := _HALF.search(value)):
        fix = "mend the value or leave the row out"
        raise r.bad(name, f"half a character (\\u{ord(half[0]):04x}) at {half.start()}", "Unicode text", fix)
    return value


def prompt_of(r: Row) -> Text:
    """The prompt: an instruction with its input, a transcript as turns, the system's words before them."""
    name = "prompt" if r.has("prompt") else "messages"
    if not r.has(name):
        raise r.bad("prompt", f"no such column among {listing(r.row)}", "the prompt", "name it: columns: {prompt: ...}")
    column = r.names[name]
    if isinstance(column, list):
        values = [r.row[one] for one in column]
        r.read.update(column)
        odd = next((v for v in values if v is not None and not isinstance(v, str)), None)
        if odd is not None:
            raise r.bad(name, show(odd), "texts, where several columns make the prompt", "mend the value")
        prompt: Text = "\n\n".join(v for v in values if v)
    else:
        prompt = text_of(r, name, r.get(name))
        if r.column(name) == "instruction" and r.has("input") and isinstance(prompt, str):
            extra = text_of(r, "input", r.get("input"))
            prompt = f"{prompt}\n\n{text(extra)}" if extra else prompt
    if isinstance(prompt, str):
        prompt = turns_of(prompt) or prompt
    if r.has("system") and r.get("system"):
        system = text_of(r, "system", r.get("system"))
        prompt = (Message("system", text(system)), *((Message("user", prompt),) if isinstance(prompt, str) else prompt))
    return prompt


def reply_of(r: Row, name: str, value: Text) -> Text:
    """A response: the words alone where it is a single message of the assistant's."""
    if isinstance(value, str):
        return value
    if any(message.role != "assistant" for message in value):
        roles = ", ".join(message.role for message in value)
        raise r.bad(
            name, f"a response with turns of {roles}", "the assistant's alone", "put the others into the prompt"
        )
    return value[0].content if len(value) == 1 else value


def beside_prompt(r: Row, chosen: Text, rejected: Text) -> dict[str, Any]:
    """The prompt, from its column or from what the two sides share, and the two responses."""
    explicit = r.has("prompt") or r.has("messages")
    whole = is_conversation(chosen) and is_conversation(rejected)
    if explicit and not whole:
        prompt = prompt_of(r)
        return {"prompt": prompt, "responses": (reply_of(r, "chosen", chosen), reply_of(r, "rejected", rejected))}
    shared = extract_prompt(chosen, rejected)
    prompt, responses = shared["prompt"], (shared["chosen"], shared["rejected"])
    differ = any(goes_on(response) for response in responses)
    if isinstance(prompt, str):
        turns = turns_of(prompt)
        if turns is not None:
            prompt, responses = turns, (responses[0].removeprefix(" "), responses[1].removeprefix(" "))
    else:
        responses = tuple(x[0].content if len(x) == 1 and x[0].role == "assistant" else x for x in responses)
    if explicit and normalise(prompt_of(r)) not in normalise(prompt) and not differ:
        raise r.bad("prompt", "a prompt that the two conversations do not share", "the one they share", "mend the row")
    if not prompt and not differ:
        raise r.bad("chosen", "no words shared with the rejected text", "texts that begin with one prompt", "add one")
    return {"prompt": prompt, "responses": responses, "prompts_differ": differ}
