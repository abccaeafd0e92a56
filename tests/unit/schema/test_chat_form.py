"""Which of two templates is used, and that the rule's look at a Go template agrees with its parse."""

from __future__ import annotations

import pytest

from oprel.schema import Capabilities, promised
from oprel.schema.chat_form import chat_form, of_go
from oprel.templates import parse
from oprel.testing import scripted_model

GO = "{{ range .Messages }}{{ .Content }}{{ end }}"
GO_TOOLS = GO + "{{ .Tools }}"
GO_BOTH = GO_TOOLS + "{{ range .Messages }}<t>{{ .Thinking }}</t>{{ end }}"
JINJA = "{% for m in messages %}{% endfor %}"
JINJA_TOOLS = JINJA + "{{ tools }}"
JINJA_THINKS = JINJA + "<think></think>"
JINJA_BOTH = JINJA_TOOLS + JINJA_THINKS
BARE = "{{ .Prompt }}"


@pytest.mark.parametrize(
    ("jinja", "go", "form"),
    [
        (None, None, None),
        (JINJA, None, "jinja"),
        (None, GO, "go"),
        (JINJA, GO, "go"),
        (JINJA_TOOLS, GO, "jinja"),
        (JINJA_THINKS, GO, "jinja"),
        (JINJA_TOOLS, GO_TOOLS, "go"),
        (JINJA_BOTH, GO_TOOLS, "jinja"),
        (JINJA_THINKS, GO_TOOLS, "go"),
        (JINJA_BOTH, GO_BOTH, "go"),
        (JINJA, GO_BOTH, "go"),
        (JINJA, BARE, "jinja"),
        (None, BARE, "go"),
        (None, f" {BARE}\n", "go"),
        (JINJA, "{{.Prompt}}", "jinja"),
        (JINJA, "", "jinja"),
        (None, " ", None),
    ],
)
def test_the_go_template_is_used_unless_the_jinja_has_more(jinja: str | None, go: str | None, form: str | None) -> None:
    assert chat_form(jinja, go) == form


def test_models_with_a_form_of_their_own_are_left_to_the_engine() -> None:
    assert chat_form(JINJA, GO_BOTH, architecture="gptoss") == "jinja"
    assert chat_form(None, GO_BOTH, architecture="gptoss") == "go"


def test_code_in_a_templates_place_is_not_replaced_by_a_bare_prompt() -> None:
    assert chat_form(None, BARE, renderer="r") is None
    assert chat_form(JINJA, BARE, renderer="r") == "jinja"
    assert chat_form(None, GO, renderer="r") == "go"


def test_a_model_is_promised_to_chat_by_either_template() -> None:
    most = Capabilities(chat=True, complete=True)
    for changes, chats in (
        ({}, True),
        ({"chat_template": None}, False),
        ({"chat_template": None, "template": GO}, True),
        ({"chat_template": None, "template": BARE, "renderer": "r"}, False),
    ):
        assert promised(scripted_model(**changes), most).chat is chats


@pytest.mark.parametrize(
    "template", [GO, GO_TOOLS, GO_BOTH, BARE, BARE + "{{ if .Suffix }}{{ end }}", "{{- $.Tools -}}"]
)
def test_what_is_read_off_the_text_is_what_the_parse_says(template: str) -> None:
    words = {"tools": "Tools", "thinking": "Thinking", "insert": "Suffix"}
    parsed = parse(template)
    assert set(of_go(template)) == {word for word, name in words.items() if parsed.uses(name)}
