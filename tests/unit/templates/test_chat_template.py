"""Conversations in templates of the usual kinds; what must come out is written by hand, by Ollama's rules."""

from __future__ import annotations

import datetime

import pytest

from oprel.errors import TemplateError
from oprel.schema import ChatRequest, ImagePart, Message, NamedTool, TextPart, Thinking, Tool, ToolCall
from oprel.templates.chat import ChatTemplate, chat_template

CHATML = """\
{{- if or .System .Tools }}<|im_start|>system
{{- if .System }}
{{ .System }}
{{- end }}
{{- if .Tools }}

You may call these functions:
<tools>
{{- range .Tools }}
{"type": "function", "function": {{ .Function }}}
{{- end }}
</tools>
{{- end }}<|im_end|>
{{ end }}
{{- range $i, $m := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}<|im_start|>user
{{ .Content }}<|im_end|>
{{ else if eq .Role "assistant" }}<|im_start|>assistant
{{ if and .Thinking $.IsThinkSet $.Think }}<think>
{{ .Thinking }}
</think>

{{ end -}}
{{ .Content }}
{{- range .ToolCalls }}
<tool_call>
{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}
</tool_call>
{{- end }}{{ if not $last }}<|im_end|>
{{ end }}
{{- else if eq .Role "tool" }}<|im_start|>user
<tool_response>
{{ .Content }}
</tool_response><|im_end|>
{{ end }}
{{- if and $last (ne .Role "assistant") }}<|im_start|>assistant
{{ if and $.IsThinkSet (not $.Think) }}<think>

</think>

{{ end }}
{{- end }}
{{- end }}"""

HEADERS = """\
<|start_header_id|>system<|end_header_id|>

{{ if .System }}{{ .System }}
{{ end }}Today is {{ currentDate }}.<|eot_id|>
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}<|start_header_id|>user<|end_header_id|>
{{ if and $.Tools $last }}
Answer with JSON like {"name": function name, "parameters": its arguments}.

{{ range $.Tools }}{{ json .Function }}
{{ end }}
{{- end }}
{{ .Content }}<|eot_id|>
{{- else if eq .Role "assistant" }}<|start_header_id|>assistant<|end_header_id|>
{{ if .ToolCalls }}
{{- range .ToolCalls }}{"name": "{{ .Function.Name }}", "parameters": {{ .Function.Arguments }}}{{ end }}
{{- else }}
{{ .Content }}
{{- end }}{{ if not $last }}<|eot_id|>{{ end }}
{{- else if eq .Role "tool" }}<|start_header_id|>ipython<|end_header_id|>

{{ .Content }}<|eot_id|>
{{- end }}
{{- if and $last (ne .Role "assistant") }}<|start_header_id|>assistant<|end_header_id|>

{{ end }}
{{- end }}"""

INST = """\
{{- range $index, $_ := .Messages }}
{{- if eq .Role "user" }}
{{- if and (le (len (slice $.Messages $index)) 2) $.Tools }}[AVAILABLE_TOOLS] {{ $.Tools }}[/AVAILABLE_TOOLS]
{{- end }}[INST] {{ if and $.System (eq (len (slice $.Messages $index)) 1) }}{{ $.System }}

{{ end }}{{ .Content }}[/INST]
{{- else if eq .Role "assistant" }}
{{- if .Content }} {{ .Content }}</s>
{{- else if .ToolCalls }}[TOOL_CALLS] [
{{- range $i, $call := .ToolCalls }}{{ if $i }}, {{ end -}}
{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}
{{- end }}]</s>
{{- end }}
{{- else if eq .Role "tool" }}[TOOL_RESULTS] {"content": {{ json .Content }}}[/TOOL_RESULTS]
{{- end }}
{{- end }}"""

TURNS = """\
{{- $system := "" }}
{{- range .Messages }}{{ if eq .Role "system" }}{{ if $system }}{{ $system = printf "%s\\n\\n%s" $system .Content }}\
{{ else }}{{ $system = .Content }}{{ end }}{{ end }}{{ end }}
{{- $first := true }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "system" }}{{ continue }}{{ end }}
{{- if eq .Role "assistant" }}<start_of_turn>model
{{ else }}<start_of_turn>user
{{ if and $first $system }}{{ $system }}
{{ end }}{{ $first = false }}{{ end }}{{ .Content }}{{ if not (and $last (eq .Role "assistant")) }}<end_of_turn>
{{ end }}{{ if and $last (ne .Role "assistant") }}<start_of_turn>model
{{ end }}
{{- end }}"""

BLOCKS = """\
{{ define "head" }}<|START|><|{{ . }}|>{{ end -}}
{{ define "args" }}{{ range $name, $p := . }}{{ $name }}: {{ toTypeScriptType $p }}, {{ end }}{{ end -}}
{{ with .System }}{{ template "head" "SYSTEM" }}{{ . }}<|END|>{{ end -}}
{{ range .Tools }}{{ template "head" "TOOL" }}{{ .Function.Name }}(\
{{ template "args" .Function.Parameters.Properties }}) -> {{ len .Function.Parameters.Required }} required:\
 {{ .Function.Description }}<|END|>{{ end -}}
{{ range .Messages }}{{ if eq .Role "user" "tool" }}{{ template "head" "USER" }}{{ .Content }}<|END|>\
{{ else if eq .Role "assistant" }}{{ template "head" "BOT" }}{{ .Content }}{{ if .ToolCalls }}Action: ```json
[
{{- range .ToolCalls }}
    {
        "tool_name": "{{ .Function.Name }}",
        "parameters": {{ .Function.Arguments }}
    }
{{- end }}
]```
{{ end }}<|END|>{{ end }}{{ end }}{{ template "head" "BOT" }}"""

PHI = """\
{{ if .System }}<|system|>
{{ .System }}<|end|>
{{ end }}{{ if .Prompt }}<|user|>
{{ .Prompt }}<|end|>
{{ end }}<|assistant|>
{{ .Response }}<|end|>
"""

WEATHER = Tool(
    "weather",
    "Tells it",
    '{"type":"object","required":["city"],"properties":{"unit":{"type":"string","enum":["C","F"],"description":"d"},'
    '"city":{"description":"<where>","type":"string","minLength":1},"days":{"type":["integer","null"]}}}',
)
WEATHER_JSON = (
    '{"name":"weather","description":"Tells it","parameters":{"type":"object","required":["city"],"properties":{'
    '"city":{"type":"string","description":"\\u003cwhere\\u003e","minLength":1},"days":{"type":["integer","null"]},'
    '"unit":{"type":"string","description":"d","enum":["C","F"]}}}}'
)
CALL = ToolCall("weather", '{"unit":"C","city":"Köln"}', "call_1")
ARGUMENTS = '{"city":"Köln","unit":"C"}'


def said(role: str, text: str = "", **more: object) -> Message:
    return Message(role, (TextPart(text),), **more)  # type: ignore[arg-type]  # a role


SYSTEM, HI, HO, BYE = said("system", "be kind"), said("user", "hi"), said("assistant", "ho"), said("user", "bye")
CALLED = (said("user", "warm?"), said("assistant", tool_calls=(CALL,)), said("tool", "20", tool_name="weather"))


def rendered(template: str, *messages: Message, **more: object) -> str:
    return chat_template(template).conversation(ChatRequest(messages, **more))  # type: ignore[arg-type]  # its fields


def test_chatml() -> None:
    assert rendered(CHATML, SYSTEM, HI, HO, BYE) == (
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>\n"
        "<|im_start|>user\nbye<|im_end|>\n<|im_start|>assistant\n"
    )
    assert rendered(CHATML, HI, HO) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho"


def test_chatml_with_tools() -> None:
    assert rendered(CHATML, *CALLED, tools=(WEATHER,)) == (
        "<|im_start|>system\n\nYou may call these functions:\n<tools>\n"
        f'{{"type": "function", "function": {WEATHER_JSON}}}\n</tools><|im_end|>\n'
        "<|im_start|>user\nwarm?<|im_end|>\n<|im_start|>assistant\n\n<tool_call>\n"
        f'{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n20\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_chatml_with_thinking() -> None:
    thought = said("assistant", "ho", thinking="hm")
    on = rendered(CHATML, HI, thought, BYE, thinking=Thinking(True))
    assert "<|im_start|>assistant\n<think>\nhm\n</think>\n\nho<|im_end|>" in on
    assert on.endswith("<|im_start|>assistant\n")
    off = rendered(CHATML, HI, thought, BYE, thinking=Thinking(False))
    assert "hm" not in off
    assert off.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    unsaid = rendered(CHATML, HI)
    assert unsaid.endswith("<|im_start|>assistant\n")


def test_headers_with_tools_and_the_date() -> None:
    before = datetime.datetime.now().astimezone().date()
    text = rendered(HEADERS, SYSTEM, *CALLED, BYE, tools=(WEATHER,))
    today = next(d for d in (before, datetime.datetime.now().astimezone().date()) if d.isoformat() in text)
    assert text == (
        f"<|start_header_id|>system<|end_header_id|>\n\nbe kind\nToday is {today.isoformat()}.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nwarm?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n"
        f'{{"name": "weather", "parameters": {ARGUMENTS}}}<|eot_id|>'
        "<|start_header_id|>ipython<|end_header_id|>\n\n20<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n"
        'Answer with JSON like {"name": function name, "parameters": its arguments}.\n\n'
        f"{WEATHER_JSON}\n\nbye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_instructions_with_tools() -> None:
    tools = f'[{{"type":"function","function":{WEATHER_JSON}}}]'
    assert rendered(INST, SYSTEM, HI, HO, BYE, tools=(WEATHER,)) == (
        f"[INST] hi[/INST] ho</s>[AVAILABLE_TOOLS] {tools}[/AVAILABLE_TOOLS][INST] be kind\n\nbye[/INST]"
    )
    two = said("assistant", tool_calls=(CALL, ToolCall("now", "{}")))
    assert rendered(INST, said("user", "warm?"), two, said("tool", '2"0')) == (
        f'[INST] warm?[/INST][TOOL_CALLS] [{{"name": "weather", "arguments": {ARGUMENTS}}}, '
        '{"name": "now", "arguments": {}}]</s>[TOOL_RESULTS] {"content": "2\\"0"}[/TOOL_RESULTS]'
    )


def test_turns_with_the_system_message_in_the_first() -> None:
    assert rendered(TURNS, SYSTEM, HI, HO, said("system", "be brief"), BYE) == (
        "<start_of_turn>user\nbe kind\n\nbe brief\nhi<end_of_turn>\n<start_of_turn>model\nho<end_of_turn>\n"
        "<start_of_turn>user\nbye<end_of_turn>\n<start_of_turn>model\n"
    )


def test_blocks_that_are_defined_and_types_of_arguments() -> None:
    assert rendered(BLOCKS, SYSTEM, *CALLED, tools=(WEATHER,)) == (
        "<|START|><|SYSTEM|>be kind<|END|>"
        "<|START|><|TOOL|>weather(city: string, days: number | null, unit: string, ) -> 1 required: Tells it<|END|>"
        "<|START|><|USER|>warm?<|END|>"
        "<|START|><|BOT|>Action: ```json\n[\n    {\n"
        f'        "tool_name": "weather",\n        "parameters": {ARGUMENTS}\n    }}\n]```\n<|END|>'
        "<|START|><|USER|>20<|END|><|START|><|BOT|>"
    )


def test_one_question_and_its_answer_turn_by_turn() -> None:
    assert rendered(PHI, SYSTEM, HI, HO, BYE) == (
        "<|system|>\nbe kind<|end|>\n<|user|>\nhi<|end|>\n<|assistant|>\nho<|end|>\n"
        "<|user|>\nbye<|end|>\n<|assistant|>\n"
    )
    assert rendered(PHI, HI, HO) == "<|user|>\nhi<|end|>\n<|assistant|>\nho"
    assert rendered(PHI, HI, SYSTEM, BYE) == (
        "<|user|>\nhi<|end|>\n<|assistant|>\n<|end|>\n<|system|>\nbe kind<|end|>\n<|user|>\nbye<|end|>\n<|assistant|>\n"
    )


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ .Prompt }}", "hihobye"),
        ("Q: {{ .Prompt }}\nA: ", "Q: hi\nA: hoQ: bye\nA: "),
        ("{{ if .Response }}A{{ .Response }}B{{ else }}C{{ end }}D", "AhoBDC"),
        ("{{ if .Prompt }}Q{{ .Prompt }}{{ end }}{{ if .Response }}A{{ .Response }}B{{ end }}D", "QhiAhoBDQbye"),
        ("{{ .Prompt }}[{{ .Response | printf `%s` }}]", "hi[ho]bye["),
        ("no place at all", "no place at allhono place at all"),
    ],
)
def test_an_answer_ends_a_template_of_one_question(template: str, text: str) -> None:
    """Where there is no place for it, it is appended; what stands behind the last answer is left to the model."""
    assert rendered(template, HI, HO, BYE) == text


def test_neighbours_of_one_role_are_one_message() -> None:
    assert rendered(
        "{{ range .Messages }}<{{ .Role }}>{{ .Content }}{{ end }}", HI, BYE, HO, said("developer", "d")
    ) == ("<user>hi\n\nbye<assistant>ho<system>d")
    results = (said("tool", "1"), said("tool", "2"))
    assert rendered("{{ range .Messages }}<{{ .Role }}>{{ .Content }}{{ end }}", *results) == "<tool>1<tool>2"
    calls = (said("assistant", "a", tool_calls=(CALL,)), said("assistant", "b", tool_calls=(CALL,)))
    assert rendered("{{ range .Messages }}{{ .Content }}{{ len .ToolCalls }}{{ end }}", *calls) == "a\n\nb2"


def test_the_system_messages_are_told_apart_and_together() -> None:
    both = (SYSTEM, HI, said("developer", "be brief"))
    assert rendered("{{ .System }}|{{ range .Messages }}{{ .Role }} {{ end }}", *both) == (
        "be kind\n\nbe brief|system user system "
    )


def test_thoughts_in_earlier_answers_are_left_out() -> None:
    template = "{{ range .Messages }}{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }};{{ end }}"
    before = said("assistant", "<think>\nhm\n</think>\n\nho")
    assert rendered(template, HI, before, BYE) == "hi;ho;bye;"
    assert rendered(template, HI, before) == "hi;<think>\nhm\n</think>\n\nho;"
    assert rendered("{{ range .Messages }}{{ .Content }};{{ end }}", HI, before, BYE).count("hm") == 1


def test_tools_that_may_not_be_called_are_not_told() -> None:
    names = "{{ .Messages | len }}{{ range .Tools }} {{ .Function.Name }}{{ end }}{{ if not .Tools }} none{{ end }}"
    tools = (WEATHER, Tool("now"))
    assert rendered(names, HI, tools=tools) == "1 weather now"
    assert rendered(names, HI, tools=tools, tool_choice="none") == "1 none"
    assert rendered(names, HI, tools=tools, tool_choice=NamedTool("now")) == "1 now"


def test_a_tool_without_parameters_takes_nothing() -> None:
    assert rendered("{{ len .Messages }}{{ .Tools }}", HI, tools=(Tool("now"),)) == (
        '1[{"type":"function","function":{"name":"now","parameters":{"type":"object","properties":{}}}}]'
    )


def test_messages_as_json() -> None:
    assert rendered("{{ json .Messages }}", HI, said("assistant", tool_calls=(CALL,))) == (
        '[{"role":"user","content":"hi"},{"role":"assistant","content":"","tool_calls":[{"id":"call_1","function":'
        f'{{"index":0,"name":"weather","arguments":{ARGUMENTS}}}}}]}}]'
    )


def test_images_have_their_place_in_the_text() -> None:
    image = ImagePart(b"x")
    messages = (
        Message("user", (image, TextPart("one"))),
        HO,
        Message("user", (TextPart("two [img] and [img]"), image, image)),
        HO,
        Message("user", (TextPart("three [img]"), image, image)),
    )
    assert rendered("{{ range .Messages }}{{ .Content }}{{ len .Images }};{{ end }}", *messages) == (
        "[img-0]one1;ho0;two [img-1] and [img-2]2;ho0;three [img-3][img-4]2;"
    )


def test_what_stands_between_two_texts() -> None:
    template = chat_template("{{ if .Suffix }}<P>{{ .Prompt }}<S>{{ .Suffix }}<M>{{ else }}{{ .Prompt }}{{ end }}")
    assert template.has_suffix
    assert template.infill("a", "b") == "<P>a<S>b<M>"
    assert not chat_template(CHATML).has_suffix


def test_what_a_template_has_a_place_for() -> None:
    def places(template: ChatTemplate) -> tuple[bool, bool, bool]:
        return template.has_tools, template.has_thinking, template.has_suffix

    assert places(chat_template(CHATML)) == (True, True, False)
    assert places(chat_template(HEADERS)) == (True, False, False)
    assert places(chat_template(PHI)) == (False, False, False)


def test_a_field_that_there_is_not_is_refused() -> None:
    with pytest.raises(TemplateError, match=r"can't evaluate field Nope in type api\.Message"):
        rendered("{{ range .Messages }}{{ .Nope }}{{ end }}", HI)
    assert rendered("{{ .Nope }}|{{ len .Messages }}", HI) == "<no value>|1"
