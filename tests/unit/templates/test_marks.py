"""The texts around thinking and calls are read off the template."""

from __future__ import annotations

import pytest

from oprel.templates import parse
from oprel.templates.marks import Marks, find_marks


def in_turns(body: str) -> str:
    return "{{ range .Messages }}" + body + "{{ end }}"


@pytest.mark.parametrize(
    ("body", "thinking"),
    [
        ("<think>{{ .Thinking }}</think>", ("<think>", "</think>")),
        ("<|im_start|>assistant\n<think>\n{{ .Thinking }}\n</think>\n\n{{ .Content }}", ("<think>", "</think>")),
        ("{{ if .Thinking }}[THINK]{{ .Thinking }}[/THINK]{{ end }}", ("[THINK]", "[/THINK]")),
        ("{{ if and $.IsThinkSet .Thinking }}<|t|>{{- .Thinking -}}<|/t|>{{ end }}", ("<|t|>", "<|/t|>")),
        ("{{ with .Thinking }}x{{ end }}thought: {{ .Thinking }} ### {{ .Content }}", ("thought:", "###")),
        ("{{ .Thinking }}", ("<think>", "</think>")),
        ("{{ if .Thinking }}yes{{ end }}", ("<think>", "</think>")),
        ("{{ .Content }}", None),
    ],
)
def test_thinking(body: str, thinking: tuple[str, str] | None) -> None:
    assert find_marks(parse(in_turns(body))).thinking == thinking


@pytest.mark.parametrize(
    ("body", "call", "end"),
    [
        ('{{ range .ToolCalls }}<tool_call>\n{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}\n'
         "</tool_call>{{ end }}", "<tool_call>", "</tool_call>"),
        ('{{ if .Content }}{{ .Content }}{{ else if .ToolCalls }}<tool_call>{{ range .ToolCalls }}{"name": '
         '"{{ .Function.Name }}"}{{ end }}</tool_call>{{ end }}', "<tool_call>", "</tool_call>"),
        ('{{ if .ToolCalls }}[TOOL_CALLS] [{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": '
         "{{ .Function.Arguments }}}{{ end }}]</s>{{ end }}", "[TOOL_CALLS]", "</s>"),
        ('{{ if .ToolCalls }}{{ range .ToolCalls }}{"name": "{{ .Function.Name }}"}{{ end }}{{ end }}', "", ""),
        ("{{ if .ToolCalls }}{{ if .Content }}said {{ .Content }}{{ end }}<call>{{ range .ToolCalls }}"
         "{{ json .Function }}{{ end }}</call>{{ end }}", "<call>", "</call>"),
        ("{{ if .ToolCalls }}<|im_start|>assistant\n<call>{{ range .ToolCalls }}{{ json .Function }}{{ end }}"
         "{{ end }}", "<call>", ""),
        ('{{ if .ToolCalls }}Action: ```json\n[{{ range .ToolCalls }}{"tool_name": "{{ .Function.Name }}"}{{ end }}]```'
         "{{ end }}", "Action: ```json", "```"),
        ("{{ if not .ToolCalls }}<none>{{ end }}{{ range .ToolCalls }}<c>{{ .Function }}{{ end }}", "<c>", ""),
        ("{{ .Content }}", "", ""),
    ],
)  # fmt: skip
def test_calls(body: str, call: str, end: str) -> None:
    marks = find_marks(parse(in_turns(body)))
    assert (marks.call, marks.call_end) == (call, end)


def test_marks_in_a_template_that_is_defined_count() -> None:
    source = '{{ define "a" }}<th>{{ .Thinking }}</th>{{ end }}{{ range .Messages }}{{ template "a" . }}{{ end }}'
    assert find_marks(parse(source)).thinking == ("<th>", "</th>")


def test_only_a_whole_thought_at_the_beginning_is_taken_off() -> None:
    marks = Marks(("<t>", "</t>"))
    assert marks.without_thinking(" <t>a</t>\n b") == "b"
    for text in ("b<t>a</t>", "<t>a", "b"):
        assert marks.without_thinking(text) == text
    assert Marks().without_thinking("<t>a</t>b") == "<t>a</t>b"
