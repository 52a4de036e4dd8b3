"""Prompts that stand inside the responses: transcripts of turns, and what two texts or conversations share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from modeseek.data.records import ROLES, Message, Text

_TURN = re.compile(r"\n\n(Human|Assistant):")
_TRANSCRIPT = re.compile(r"\s*Human:")
_HEADERS = re.compile(  # where an assistant's turn begins, in the usual ways of writing conversations as text
    r"\n\nAssistant:|\nASSISTANT:|\n### ?(?:Response|Assistant|Answer):|\[/INST\]|<\|assistant\|>\n?"
    r"|<\|im_start\|>assistant\n|<start_of_turn>model\n|<\|start_header_id\|>assistant<\|end_header_id\|>\n\n"
)


def turns_of(prompt: str) -> tuple[Message, ...] | None:
    """The turns of an HH transcript that waits for the assistant; None where the text is no such thing."""
    if not _TRANSCRIPT.match(prompt) or not prompt.rstrip().endswith("\n\nAssistant:"):
        return None
    _, *parts = _TURN.split("\n\n" + prompt.lstrip())
    roles, contents = parts[:-2:2], parts[1:-2:2]
    return tuple(
        Message(ROLES[role.lower()], content.removeprefix(" ")) for role, content in zip(roles, contents, strict=True)
    )


def is_conversation(x: Text) -> bool:
    """Whether it begins with the prompt's turns, not with the response."""
    return bool(_TRANSCRIPT.match(x)) if isinstance(x, str) else x[0].role != "assistant"


def goes_on(response: Text) -> bool:
    """Whether a response holds further turns, so that the turns before it were not those of the other side."""
    if isinstance(response, str):
        return bool(_TURN.search(response))
    return len(response) != 1 or response[0].role != "assistant"


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
