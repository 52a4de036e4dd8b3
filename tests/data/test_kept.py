"""Texts are tokenised once where that is asked for, and then to the same tokens."""

from modeseek.data.kept import kept_tokens
from modeseek.data.template import Template

TEXTS = ["the fox helps the owl", "the fox", "the fox helps the owl", ""]


def test_what_is_kept_is_what_was_said_and_is_not_asked_again(tiny, monkeypatch):
    template, asked = Template.load(str(tiny)), []
    plain = template.encode_prompts(TEXTS), template.encode_responses(TEXTS)
    real = Template._asked
    monkeypatch.setattr(Template, "_asked", lambda self, texts, how: asked.extend(texts) or real(self, texts, how))
    with kept_tokens():
        first = template.encode_prompts(TEXTS), template.encode_responses(TEXTS)
        assert asked
        asked.clear()
        other = Template.load(str(tiny))  # the same tokenizer, met again by another run
        asked.clear()
        again = other.encode_prompts(TEXTS), other.encode_responses(TEXTS)
    assert first == again == plain and not asked
    template.encode_prompts(TEXTS)
    assert asked  # outside nothing is kept
