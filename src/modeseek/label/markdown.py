"""What a model wrote as HTML that can do nothing: text, lists, tables, code; no link, no picture, no script.

Two layers that each suffice: Markdown is rendered with raw HTML, links and pictures off (they stand as they were
typed), and the result passes a sanitiser that knows a dozen tags and hardly an attribute.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import cache
from typing import Protocol, runtime_checkable

import nh3
from markdown_it import MarkdownIt

MOST = 200_000  # characters that are rendered; a longer text is shown as it stands

_TAGS = {
    *("p", "br", "hr", "em", "strong", "s", "blockquote", "pre", "code", "ul", "ol", "li", "div", "span"),
    *("h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
}


@runtime_checkable
class Turn(Protocol):
    """One message of a conversation."""

    @property
    def role(self) -> str: ...

    @property
    def content(self) -> str: ...


def render(text: str | Sequence[Turn]) -> str:
    """A text, or the turns of a conversation with their roles, as HTML that is safe to insert."""
    if isinstance(text, str):
        return _markdown(text)
    turns = (f"<div><strong>{html.escape(turn.role)}</strong></div>{_markdown(turn.content)}" for turn in text)
    return "".join(turns)


def _markdown(text: str) -> str:
    text = text.encode("utf-8", "replace").decode()  # a lone surrogate cannot travel
    made = f"<pre>{html.escape(text)}</pre>" if len(text) > MOST else _parser().render(text)
    return nh3.clean(made, tags=_TAGS, attributes={"ol": {"start"}}, link_rel=None)


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": 20})
    parser.enable(["table", "strikethrough"]).disable(["link", "image", "autolink", "reference", "html_inline"])
    parser.disable("html_block")
    parser.core.ruler.push("headings_below_the_page's", _lower)
    return parser


def _lower(state) -> None:  # noqa: ANN001 - markdown-it's StateCore
    """A response's headings begin below those of the page."""
    for token in state.tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 3)}"
