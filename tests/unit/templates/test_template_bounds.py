"""Whatever a template says: nothing but TemplateError escapes, and it ends within its bounds."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oprel.schema import ChatRequest, Message, TextPart, Tool, ToolCall
from oprel.templates import MAX_TEMPLATE_BYTES, JsonMap, Limits, Record, TemplateError, parse
from oprel.templates.chat import ChatTemplate

DATA = {
    "Messages": [{"Role": "user", "Content": "hi"}, {"Role": "tool", "Content": ""}],
    "System": "be kind",
    "Tools": [Record("Tool", {"Name": "f", "Parameters": JsonMap({"b": 1, "a": None})}, is_json=True)],
    "N": 3,
    "Z": None,
}
_PIECES = st.sampled_from(
    [
        "{{", "}}", "{{-", "-}}", " ", "\n", "(", ")", "|", ":=", "=", ",", ".", "$", "$x", "$.N", ".Messages", ".Role",
        ".N", ".Z", ".Tools", ".Nope", "range", "if", "else", "end", "with", "define", "template", "block", "break",
        "continue", '"t"', '"', "`", "'a'", "1", "-2", "1.5", "true", "nil", "len", "index", "slice", "eq", "and", "or",
        "not", "json", "printf", '"%v %d"', "print", "html", "lt", "/*", "*/", "toTypeScriptType", "é", "\0", "\ud800",
    ]
)  # fmt: skip
_SMALL = Limits(steps=5000, output_chars=20_000)


@given(st.lists(_PIECES, max_size=40).map("".join) | st.text(max_size=60))
@settings(max_examples=400, deadline=None)
def test_nothing_but_template_error_escapes(source: str) -> None:
    with contextlib.suppress(TemplateError):
        assert len(parse(source).render(DATA, limits=_SMALL)) <= 20_000


@given(st.lists(_PIECES, max_size=30).map("".join))
@settings(max_examples=200, deadline=None)
def test_nothing_else_escapes_a_conversation(source: str) -> None:
    call = ToolCall("f", '{"a":1}')
    tool = Tool("f", "d", '{"type":5,"properties":{"a":{"type":[1,{}],"anyOf":[3]},"b":7},"required":"x"}')
    messages = (Message("user", (TextPart("hi"),)), Message("assistant", tool_calls=(call,)))
    with contextlib.suppress(TemplateError):
        template = ChatTemplate(parse(source + "{{ range .Tools }}{{ . }}{{ end }}"))
        template.conversation(ChatRequest(messages, tools=(tool,)))
        template.infill("a", "b")


@given(st.recursive(
    st.sampled_from(["x", "{{ .N }}", "{{ $.System }}", "{{ json . }}", "{{ print . . }}", "{{ break }}"]),
    lambda inner: st.tuples(
        st.sampled_from(["{{ range .Messages }}", "{{ range $.Messages }}", "{{ if .N }}", "{{ with .Z }}",
                         "{{ range 9 }}", "{{ with $x := . }}", "{{ range $i, $m := $.Messages }}"]), inner, inner,
    ).map(lambda parts: f"{parts[0]}{parts[1]}{{{{ else }}}}{parts[2]}{{{{ end }}}}"),
    max_leaves=25,
))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_nested_templates_end_within_their_bounds(source: str) -> None:
    with contextlib.suppress(TemplateError):
        assert len(parse(source).render(DATA, limits=_SMALL)) <= 20_000


def test_a_loop_in_a_loop_in_a_loop_ends() -> None:
    source = "{{ range 999999 }}{{ range 999999 }}{{ range 999999 }}{{ end }}{{ end }}{{ end }}"
    began = time.perf_counter()
    with pytest.raises(TemplateError, match="more than 100000 steps"):
        parse(source).render({}, limits=Limits(steps=100_000))
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    "source",
    [
        '{{ $x := "ab" }}{{ range 60 }}{{ $x = print $x $x }}{{ end }}',
        '{{ $x := "ab" }}{{ range 60 }}{{ $x = printf "%s%s" $x $x }}{{ end }}',
        '{{ $x := "<" }}{{ range 60 }}{{ $x = html $x }}{{ $x = json $x }}{{ end }}',
        '{{ $x := "ab" }}{{ range 60 }}{{ $x = print $x $x | json }}{{ end }}',
        "{{ range 9999999 }}{{ $.System }}{{ end }}",
        '{{ range 9999999 }}{{ printf "%4000d" 1 }}{{ end }}',
    ],
)
def test_texts_that_grow_and_grow_are_stopped(source: str) -> None:
    with pytest.raises(TemplateError, match=r"it (makes|writes|takes)"):
        parse(source).render(DATA)


def test_a_template_that_calls_itself_is_stopped() -> None:
    with pytest.raises(TemplateError, match="maximum template depth"):
        parse('{{ define "t" }}{{ template "t" . }}{{ end }}{{ template "t" . }}').render({})


def test_a_template_that_calls_itself_twice_is_stopped_early() -> None:
    with pytest.raises(TemplateError):
        parse('{{ define "t" }}{{ template "t" . }}{{ template "t" . }}{{ end }}{{ template "t" . }}').render({})


@pytest.mark.parametrize(
    "source",
    ["{{ if 1 }}" * 2000 + "{{ end }}" * 2000, "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
     "{{ if 1 }}" + "{{ else if 1 }}" * 2000 + "{{ end }}"],
)  # fmt: skip
def test_nesting_is_bounded_before_anything_runs(source: str) -> None:
    with pytest.raises(TemplateError, match="deep"):
        parse(source)


def test_a_template_may_have_64_kib() -> None:
    assert parse("x" * MAX_TEMPLATE_BYTES).render({}) == "x" * MAX_TEMPLATE_BYTES
    with pytest.raises(TemplateError, match="64 KiB at most"):
        parse("é" * (MAX_TEMPLATE_BYTES // 2 + 1))


def test_data_that_is_nested_deeper_than_python_goes_is_refused() -> None:
    nested: object = "x"
    for _ in range(100_000):
        nested = [nested]
    for source in ("{{ .A }}", "{{ json .A }}"):
        with pytest.raises(TemplateError, match="nested too deep"):
            parse(source).render({"A": nested})
    while isinstance(nested, list):  # so that taking it apart needs no recursion either
        nested = nested.pop()


@pytest.mark.parametrize("name", ["__class__", "__init__", "fields", "wire", "keys", "mro", "render"])
def test_no_attribute_of_a_python_object_can_be_reached(name: str) -> None:
    """Names are looked up in plain data alone."""
    for of in (".System", ".N", ".Tools", "(index .Tools 0)", "(index .Messages 0)", "."):
        text = ""
        with contextlib.suppress(TemplateError):
            text = parse("{{ (" + of + ")." + name + " }}").render(DATA)
        assert text in ("", "<no value>")


def test_types_that_no_schema_has_are_any() -> None:
    for said in ({"type": 5}, {"type": [1, {}]}, {"anyOf": [3]}, 7, {"type": "odd"}, {}):
        schema = json.dumps({"type": "object", "properties": {"a": said}})
        template = (
            "{{ len .Messages }}{{ range .Tools }}{{ toTypeScriptType .Function.Parameters.Properties.a }}{{ end }}"
        )
        request = ChatRequest((Message("user", (TextPart("hi"),)),), tools=(Tool("f", parameters=schema),))
        assert set(ChatTemplate(parse(template)).conversation(request)[1:].split(" | ")) == {"any"}


def test_what_a_tool_message_says_is_not_read_as_a_template() -> None:
    said = "{{ .System }}{{ range 99 }}x{{ end }}"
    assert parse("{{ .C }}|{{ print .C }}").render({"C": said}) == f"{said}|{said}"
