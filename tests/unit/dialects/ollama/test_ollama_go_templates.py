"""Models that chat by a Go template: what their engine is given as a raw prompt, and what comes of its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from oprel.schema import ALL_SAMPLING, Capabilities, CompletionRequest, Message, TextPart
from oprel.testing import Script, scripted_model

if TYPE_CHECKING:
    from conftest import Serve

PLAIN = Capabilities(complete=True, json_schema=True, logprobs=True, tokenize=True, sampling=ALL_SAMPLING)
TURNS = (
    "{{- range .Messages }}<{{ .Role }}>{{ .Content }}"
    '{{ if .ToolCalls }}<call>{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": '
    "{{ .Function.Arguments }}}{{ end }}</call>{{ end }}</>\n{{ end }}"
    "{{ if .Tools }}tools: {{ .Tools }}\n{{ end }}<assistant>"
)
OLD = "{{ if .System }}[S]{{ .System }}[/S]{{ end }}[I]{{ .Prompt }}[/I]{{ .Response }}</s>"
THINKING = (
    "{{ range .Messages }}{{ if .Thinking }}<th>{{ .Thinking }}</th>{{ end }}{{ .Content }}{{ end }}{{ .Think }}:"
)
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def go_model(template: str = TURNS, *words: str, **changes: Any) -> Any:
    fields = {"chat_template": None, "template": template, "capabilities": frozenset({"completion", *words})}
    return scripted_model("tiny:latest", **{**fields, **changes})


def script(*text: str) -> Script:
    return Script(text=text, capabilities=PLAIN)


def chat(*messages: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": r, "content": c} for r, c in messages], **more}


def test_a_conversation_is_put_into_the_template_and_completed(serve: Serve) -> None:
    served = serve(script("Hel", "lo"), go_model())
    *pieces, last = served.lines("/api/chat", chat(("system", "be kind"), ("user", "hi")))
    assert [piece["message"]["content"] for piece in pieces] == ["Hel", "lo"]
    assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "stop", 2)
    assert isinstance(served.request, CompletionRequest)
    assert served.request.prompt == "<system>be kind</>\n<user>hi</>\n<assistant>"


def test_the_models_own_system_messages_and_stops_count(serve: Serve) -> None:
    own = (Message("user", (TextPart("1+1"),)), Message("assistant", (TextPart("2"),)))
    model = go_model(system="count", messages=own, parameters=(("stop", ("</>",)), ("temperature", 0.25)))
    served = serve(script("ok"), model)
    served.json("/api/chat", chat(("user", "2+2"), stream=False))
    assert served.request.prompt == ("<system>count</>\n<user>1+1</>\n<assistant>2</>\n<user>2+2</>\n<assistant>")
    assert served.request.sampling.stop == ("</>",)
    assert served.request.sampling.temperature == 0.25


def test_a_template_of_one_question_is_applied_turn_by_turn(serve: Serve) -> None:
    served = serve(script("ok"), go_model(OLD))
    served.json("/api/chat", chat(("system", "k"), ("user", "a"), ("assistant", "b"), ("user", "c"), stream=False))
    assert served.request.prompt == "[S]k[/S][I]a[/I]b</s>[I]c[/I]"


def test_thinking_is_split_off_and_asked_for(serve: Serve) -> None:
    served = serve(script("<th", ">h", "m</t", "h>\n", "yes"), go_model(THINKING, "thinking"))
    answer = served.json("/api/chat", chat(("user", "x"), stream=False))
    assert answer["message"] == {"role": "assistant", "content": "yes", "thinking": "hm"}
    assert served.request.prompt == "xtrue:"
    hidden = served.json("/api/chat", chat(("user", "x"), stream=False, think=False))
    assert hidden["message"] == {"role": "assistant", "content": "yes"}
    assert served.request.prompt == "xfalse:"


def test_calls_come_whole_in_a_line_of_their_own(serve: Serve) -> None:
    served = serve(
        script("Wait. <ca", 'll>{"name": "weat', 'her", "arguments": {"b": 1}}</call>'), go_model(TURNS, "tools")
    )
    lines = served.lines("/api/chat", chat(("user", "x"), tools=[WEATHER]))
    calls = [line["message"]["tool_calls"] for line in lines if "tool_calls" in line["message"]]
    assert "".join(line["message"]["content"] for line in lines) == "Wait. "
    [[call]] = calls
    assert call["function"] == {"index": 0, "name": "weather", "arguments": {"b": 1}}
    assert len(call["id"]) == len("call_") + 8
    assert lines[-1]["done_reason"] == "stop"
    assert 'tools: [{"type":"function","function":{"name":"weather"' in served.request.prompt


def test_calls_and_their_answers_go_back_into_the_template(serve: Serve) -> None:
    served = serve(script("ok"), go_model(TURNS, "tools"))
    said = {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"b": 1, "a": "<x>"}}}]}
    tool = {"role": "tool", "content": "sun", "tool_name": "weather"}
    body = {"model": "tiny", "messages": [{"role": "user", "content": "?"}, said, tool, tool], "stream": False}
    served.json("/api/chat", body)
    assert served.request.prompt == (
        '<user>?</>\n<assistant><call>{"name": "weather", "arguments": {"a":"\\u003cx\\u003e","b":1}}</call></>\n'
        "<tool>sun</>\n<tool>sun</>\n<assistant>"
    )


def test_tools_need_a_template_that_has_a_place_for_them(serve: Serve) -> None:
    status, text = serve(script("x"), go_model(OLD)).refused("/api/chat", chat(("user", "x"), tools=[WEATHER]))
    assert (status, text) == (400, "registry.ollama.ai/library/tiny:latest does not support tools")


def test_what_is_too_long_loses_its_oldest_turns_as_the_template_counts_them(serve: Serve) -> None:
    long = [("user", "word " * 30), ("assistant", "word " * 30), ("user", "word " * 30), ("assistant", "fine")]
    served = serve(
        Script(text=("ok",), capabilities=PLAIN, context_tokens=300),
        go_model("{{ range .Messages }}{{ .Content }} {{ end }}"),
    )
    body = chat(("system", "be kind"), *long * 6, ("user", "last"), stream=False)
    response = served.ask("/api/chat", body)
    assert response.status_code == 200
    assert "prompt_truncated" in response.headers["x-oprel-warning"]
    prompt = served.request.prompt
    assert prompt.startswith("be kind") and prompt.endswith("last ")
    assert len(prompt) < 300
    served.refused("/api/chat", {**body, "truncate": False})


def test_a_prompt_is_put_into_the_template_unless_it_is_raw(serve: Serve) -> None:
    served = serve(script("ok"), go_model(system="own"))
    answer = served.json("/api/generate", {"model": "tiny", "prompt": "x", "stream": False})
    assert served.request.prompt == "<system>own</>\n<user>x</>\n<assistant>"
    assert bytes(answer["context"]).decode() == "<system>own</>\n<user>x</>\n<assistant>ok"
    served.json("/api/generate", {"model": "tiny", "prompt": "x", "system": "other", "stream": False})
    assert served.request.prompt.startswith("<system>other</>")
    served.json("/api/generate", {"model": "tiny", "prompt": "x", "raw": True, "stream": False})
    assert served.request.prompt == "x"


def test_a_suffix_takes_its_place_in_the_template(serve: Serve) -> None:
    template = "{{ if .Suffix }}<pre>{{ .Prompt }}<suf>{{ .Suffix }}<mid>{{ else }}{{ .Prompt }}{{ end }}"
    served = serve(script("ok"), go_model(template, "insert"))
    served.json("/api/generate", {"model": "tiny", "prompt": "def f(", "suffix": "return 1", "stream": False})
    assert (served.request.prompt, served.request.suffix) == ("<pre>def f(<suf>return 1<mid>", None)


def test_a_template_in_the_request_is_used_for_any_model(serve: Serve) -> None:
    body = {"model": "tiny", "prompt": "x", "system": "s", "stream": False, "template": "{{ .System }}|{{ .Prompt }}|"}
    for model in (go_model(), scripted_model("tiny:latest"), go_model(None, chat_template=None)):
        served = serve(None, model)
        served.json("/api/generate", body)
        assert served.request.prompt == "s|x|"


def test_a_template_in_the_request_that_does_not_parse_is_told_in_gos_words(serve: Serve) -> None:
    served = serve(None)
    for template, text in (
        ("{{ .Prompt", "template: :1: unclosed action"),
        ("a\n{{ nope .Prompt }}", 'template: :2: function "nope" not defined'),
        ("{{ if .System }}", "template: :1: unexpected EOF"),
    ):
        assert served.refused("/api/generate", {"model": "tiny", "prompt": "x", "template": template}) == (500, text)
    assert served.driver.engines == []


def test_a_template_that_can_not_be_applied_is_told_where_and_why(serve: Serve) -> None:
    served = serve(None, go_model("{{ .System.Nope }}{{ .Prompt }}"))
    assert served.refused("/api/chat", chat(("user", "x"))) == (
        500,
        "template: :1: can't evaluate field Nope in type string",
    )
    broken = serve(None, go_model("{{ range .Messages }}"))
    assert broken.refused("/api/chat", chat(("user", "x"))) == (500, "template: :1: unexpected EOF")
    broken.json("/api/generate", {"model": "tiny", "prompt": "x", "raw": True, "stream": False})


def test_the_prompt_is_shown_when_it_is_asked_for(serve: Serve) -> None:
    served = serve(None, go_model())
    for path, body in (
        ("/api/chat", chat(("user", "x"))),
        ("/api/generate", {"model": "tiny", "prompt": "x"}),
    ):
        shown = served.json(path, {**body, "_debug_render_only": True})["_debug_info"]
        assert shown["rendered_template"] == "<user>x</>\n<assistant>"


def test_show_tells_which_template_is_used(serve: Serve) -> None:
    go = serve(None, go_model()).json("/api/show", {"model": "tiny"})
    assert (go["template"], go["oprel"]["template"]) == (TURNS, "go")
    assert go["oprel"]["plan"]["reasons"]["template"] == "the Go template of its manifest, applied by Oprel"
    assert "chat" in go["oprel"]["capabilities"]
    jinja = scripted_model("tiny:latest", chat_template="{{ tools }}", template=TURNS.replace(".Tools", ".T"))
    shown = serve(None, jinja).json("/api/show", {"model": "tiny"})
    assert (shown["template"], shown["oprel"]["template"]) == ("{{ tools }}", "jinja")
    bare = serve(None, scripted_model("tiny:latest", chat_template=None)).json("/api/show", {"model": "tiny"})
    assert "template" not in bare["oprel"]
