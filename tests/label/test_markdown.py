"""What a model wrote can format itself and do nothing else."""

import html.parser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import ALLOWED, ATTACKS
from modeseek.data.records import Message
from modeseek.label.markdown import MOST, render


class Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    handle_startendtag = handle_starttag


def harmless(made):
    found = Reader()
    found.feed(made)
    assert set(found.tags) <= ALLOWED, made
    assert {name for name, _ in found.attributes} <= {"start"}, made


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_that_a_model_wrote_becomes_an_element_of_its_own(attack):
    for text in (attack, f"some words {attack} and more", f"> {attack}", f"- {attack}"):
        harmless(render(text))
    harmless(render((Message("user", attack), Message(attack, "hello"))))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from([*ATTACKS, "*", "`", "\n", "\n\n", "[", "](", ")", "<", ">", '"', "&", "|", "#", " "]),
        max_size=12,
    )
)
def test_no_mixture_of_them_does_either(parts):
    harmless(render("".join(parts)))


def test_an_attack_is_shown_as_it_was_typed():
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in render("<script>alert(1)</script>")
    assert render("[x](https://a.example)") == "<p>[x](https://a.example)</p>\n"


def test_markdown_is_rendered():
    made = render("# Title\n\n1. *one*\n2. **two**\n\n```\ncode\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n")
    for part in (
        "<h4>Title</h4>",
        "<em>one</em>",
        "<strong>two</strong>",
        "<pre><code>code\n</code></pre>",
        "<td>1</td>",
    ):
        assert part in made, part
    assert render("5. five").startswith('<ol start="5">')
    assert render("a\nb") == "<p>a<br>\nb</p>\n"


def test_turns_carry_their_roles():
    made = render((Message("system", "Be kind."), Message("user", "Hi")))
    assert made.index("system") < made.index("Be kind.") < made.index("user") < made.index("Hi")


def test_odd_texts_are_rendered_too():
    assert render("") == ""
    assert "\ud800" not in render("a \ud800 b")
    assert render("x" * (MOST + 1)).startswith("<pre>")
    harmless(render("<b>" * (MOST // 2)))
    harmless(render("> " * 2000 + "deep"))
    harmless(render("[" * 5000))
