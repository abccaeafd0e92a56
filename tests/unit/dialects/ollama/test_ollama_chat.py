"""POST /api/chat."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest

from oprel.schema import ALL_SAMPLING, Capabilities, ImagePart, Message, TextPart, Thinking, Tool, ToolCall, events
from oprel.testing import Script, scripted_model

if TYPE_CHECKING:
    from conftest import Serve

PNG = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (3).to_bytes(4, "big") * 2 + bytes(9)
TOOLS = scripted_model("tiny:latest", capabilities=frozenset({"completion", "tools"}))
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a town",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
    },
}


def chat(*messages: tuple[str, str], **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": role, "content": text} for role, text in messages], **fields}


HI = chat(("user", "Hi"))


def asked(served: Any) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in served.request.messages]


def test_a_stream(serve: Serve) -> None:
    *pieces, last = serve(Script(text=("Hel", "lo"))).lines("/api/chat", HI)
    assert [piece["message"] for piece in pieces] == [
        {"role": "assistant", "content": "Hel"},
        {"role": "assistant", "content": "lo"},
    ]
    assert list(last) == [
        "model", "created_at", "message", "done", "done_reason", "total_duration", "load_duration",
        "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration",
    ]  # fmt: skip
    assert last["message"] == {"role": "assistant", "content": ""}
    assert (last["done"], last["done_reason"]) == (True, "stop")


def test_whole(serve: Serve) -> None:
    answer = serve(Script(text=("Hel", "lo"))).json("/api/chat", chat(("user", "Hi"), stream=False))
    assert answer["message"] == {"role": "assistant", "content": "Hello"}
    assert answer["done"] is True


@pytest.mark.parametrize("messages", [{}, {"messages": []}, {"messages": None}])
def test_no_messages_load_and_unload(serve: Serve, messages: dict[str, Any]) -> None:
    served = serve()
    loaded = served.json("/api/chat", {"model": "tiny", **messages})
    assert list(loaded) == ["model", "created_at", "message", "done", "done_reason"]
    assert (loaded["message"], loaded["done_reason"]) == ({"role": "assistant", "content": ""}, "load")
    assert len(served.driver.alive) == 1
    unloaded = served.json("/api/chat", {"model": "tiny", **messages, "keep_alive": 0})
    assert unloaded["done_reason"] == "unload"
    assert served.driver.alive == []


def test_roles_are_lower_cased_and_any_is_accepted(serve: Serve) -> None:
    served = serve()
    response = served.ask("/api/chat", chat(("SYSTEM", "a"), ("User", "b"), ("control", "c"), stream=False))
    assert asked(served) == [("system", "a"), ("user", "b"), ("user", "c")]
    assert response.headers["x-oprel-warning"] == "role_unknown; the role 'control' was read as 'user'"


def test_the_models_messages_come_first_and_its_system_message_unless_the_client_has_one(serve: Serve) -> None:
    served = serve(None, scripted_model("tiny:latest", system="S", messages=(Message("user", (TextPart("m"),)),)))
    served.json("/api/chat", chat(("user", "Hi"), stream=False))
    assert asked(served) == [("system", "S"), ("user", "m"), ("user", "Hi")]
    served.json("/api/chat", chat(("system", "mine"), ("user", "Hi"), stream=False))
    assert asked(served) == [("user", "m"), ("system", "mine"), ("user", "Hi")]


def test_content_is_text_or_null(serve: Serve) -> None:
    served = serve()
    body = {"model": "tiny", "messages": [{"role": "user", "content": None}], "stream": False}
    served.json("/api/chat", body)
    assert asked(served) == [("user", "")]
    wrong = {"model": "tiny", "messages": [{"role": "user", "content": [{"type": "text"}]}]}
    assert served.refused("/api/chat", wrong) == (
        400,
        "json: cannot unmarshal array into Go struct field ChatRequest.messages.content of type string",
    )


def test_tool_calls_go_out_whole_before_the_end(serve: Serve) -> None:
    script = Script(text=(), tool_calls=(ToolCall("weather", '{"town":"Ulm","days":2}', "call_x"),))
    served = serve(script, TOOLS)
    calls, last = served.lines("/api/chat", chat(("user", "?"), tools=[WEATHER]))
    expected = {"id": "call_x", "function": {"index": 0, "name": "weather", "arguments": {"town": "Ulm", "days": 2}}}
    assert calls["message"] == {"role": "assistant", "content": "", "tool_calls": [expected]}
    assert (last["done_reason"], last["message"]) == ("stop", {"role": "assistant", "content": ""})
    assert served.request.tools == (
        Tool(
            "weather",
            "of a town",
            '{"type":"object","properties":{"town":{"type":"string"}},"required":["town"]}',
        ),
    )
    whole = served.json("/api/chat", chat(("user", "?"), tools=[WEATHER], stream=False))
    assert whole["message"]["tool_calls"] == [expected]
    assert whole["done_reason"] == "stop"


def test_tool_calls_and_their_answers_come_in(serve: Serve) -> None:
    served = serve()
    call = {"id": "call_1", "function": {"name": "weather", "arguments": {"b": 1, "a": {"c": []}}}}
    body = {
        "model": "tiny",
        "stream": False,
        "messages": [
            {"role": "assistant", "content": "", "tool_calls": [call], "thinking": "hm"},
            {"role": "tool", "tool_name": "weather", "tool_call_id": "call_1", "content": "sun"},
        ],
    }
    served.json("/api/chat", body)
    assert served.request.messages == (
        Message("assistant", tool_calls=(ToolCall("weather", '{"b":1,"a":{"c":[]}}', "call_1"),), thinking="hm"),
        Message("tool", (TextPart("sun"),), tool_call_id="call_1", tool_name="weather"),
    )


def test_arguments_are_an_object_and_never_a_string(serve: Serve) -> None:
    call = {"function": {"name": "f", "arguments": '{"a":1}'}}
    body = {"model": "tiny", "messages": [{"role": "assistant", "tool_calls": [call]}]}
    assert serve().refused("/api/chat", body) == (400, "Value looks like object, but can't find closing '}' symbol")


@pytest.mark.parametrize(
    ("model", "fields", "refusal"),
    [
        (
            scripted_model("tiny:latest", capabilities=frozenset({"embedding"})),
            {},
            (400, '"tiny" does not support chat'),
        ),
        (
            scripted_model("tiny:latest"),
            {"tools": [WEATHER]},
            (400, "registry.ollama.ai/library/tiny:latest does not support tools"),
        ),
        (scripted_model("tiny:latest"), {"think": True}, (400, '"tiny" does not support thinking')),
        (
            scripted_model("tiny:latest"),
            {"think": "loud"},
            (400, 'invalid think value: "loud" (must be "high", "medium", "low", "max", true, or false)'),
        ),
        (
            scripted_model("tiny:latest"),
            {"think": 1},
            (400, 'think must be a boolean or string ("high", "medium", "low", "max", true, or false)'),
        ),
        (
            scripted_model("tiny:latest"),
            {"format": ["json"]},
            (500, r'invalid format: "[\"json\"]"; expected "json" or a valid JSON Schema object'),
        ),
    ],
)
def test_refusals_before_an_engine_is_started(
    serve: Serve, model: Any, fields: dict[str, Any], refusal: tuple[int, str]
) -> None:
    served = serve(None, model)
    assert served.refused("/api/chat", {**HI, **fields}) == refusal
    assert served.driver.starts == []


def test_several_capabilities_that_lack_are_told_a_line_each(serve: Serve) -> None:
    image = base64.b64encode(PNG).decode()
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "?", "images": [image]}],
        "tools": [WEATHER],
    }
    name = "registry.ollama.ai/library/tiny:latest"
    assert serve().refused("/api/chat", body) == (400, f"{name} does not support tools\n{name} does not support vision")


def test_think_false_is_always_fine(serve: Serve) -> None:
    served = serve()
    served.json("/api/chat", chat(("user", "x"), think=False, stream=False))
    assert served.request.thinking is None


def test_a_thinking_model_thinks_by_default(serve: Serve) -> None:
    model = scripted_model("tiny:latest", capabilities=frozenset({"completion", "thinking"}))
    served = serve(Script(text=("yes",), thinking=("hm",)), model)
    answer = served.json("/api/chat", chat(("user", "x"), stream=False))
    assert answer["message"] == {"role": "assistant", "content": "yes", "thinking": "hm"}
    assert served.request.thinking == Thinking(True)


def test_a_model_without_a_chat_template_is_refused_and_takes_one_that_is_named(serve: Serve) -> None:
    bare = scripted_model("tiny:latest", chat_template=None)
    status, text = serve(None, bare).refused("/api/chat", HI)
    assert status == 400
    assert "has no chat template" in text
    serve(None, bare, chat_template="chatml").json("/api/chat", chat(("user", "x"), stream=False))


def test_a_model_for_a_renderer_of_ollamas_own_is_refused_unless_its_file_has_a_template(serve: Serve) -> None:
    model = scripted_model("tiny:latest", chat_template=None, template="{{ .Prompt }}", renderer="qwen3-coder")
    status, text = serve(None, model).refused("/api/chat", HI)
    assert status == 400
    assert 'made for the renderer "qwen3-coder"' in text
    both = scripted_model("tiny:latest", template="{{ .Prompt }}", renderer="qwen3-coder")
    serve(None, both).json("/api/chat", chat(("user", "x"), stream=False))


def test_a_model_of_which_nothing_is_known_is_left_to_its_engine(serve: Serve) -> None:
    served = serve(None, scripted_model("tiny:latest", capabilities=frozenset()))
    served.json("/api/chat", chat(("user", "x"), tools=[WEATHER], think=True, stream=False))
    assert served.request.thinking == Thinking(True)
    served.json("/api/generate", {"model": "tiny", "prompt": "x", "stream": False})


def test_images_take_the_place_of_their_marks(serve: Serve) -> None:
    script = Script(capabilities=Capabilities(chat=True, vision=True, sampling=ALL_SAMPLING))
    served = serve(script, scripted_model("tiny:latest", capabilities=frozenset({"completion", "vision"})))
    image = base64.b64encode(PNG).decode()
    message = {"role": "user", "content": "Is [img] like [img]?", "images": [image, image]}
    served.json("/api/chat", {"model": "tiny", "messages": [message], "stream": False})
    part = ImagePart(PNG)
    assert served.request.messages[0].content == (TextPart("Is "), part, TextPart(" like "), part, TextPart("?"))


def test_a_long_conversation_loses_its_oldest_turns_and_keeps_system_and_last(serve: Serve) -> None:
    # The scripted engine counts words when asked to chat, and bytes when asked to tokenize.
    served = serve(Script(context_tokens=40))
    turns = [("system", "sys"), ("user", "old " * 60), ("assistant", "older " * 3), ("user", "new")]
    response = served.ask("/api/chat", chat(*turns, stream=False))
    assert response.status_code == 200
    assert asked(served) == [("system", "sys"), ("user", "new")]
    assert response.headers["x-oprel-warning"] == (
        "prompt_truncated; the conversation didn't fit: its 2 oldest messages were left out"
    )


def test_no_more_turns_are_left_out_than_must_be(serve: Serve) -> None:
    served = serve(Script(context_tokens=60))
    turns = [("user", "x " * 61), *(("user", f"turn {n}") for n in range(6))]
    served.json("/api/chat", chat(*turns, stream=False))
    assert asked(served) == [("user", f"turn {n}") for n in range(2, 6)]


@pytest.mark.parametrize("fields", [{"truncate": False}, {}])
def test_what_can_not_be_made_to_fit_is_refused(serve: Serve, fields: dict[str, Any]) -> None:
    served = serve(Script(context_tokens=40))
    turns = [("user", "old")] if not fields else [("user", "word " * 50), ("user", "new")]
    turns = [*turns, ("user", "word " * 50)] if not fields else turns
    status, text = served.refused("/api/chat", chat(*turns, **fields))
    assert status == 400
    assert text.startswith("the prompt is longer than the context length currently available to the model;")


def test_warnings_of_the_engine_are_headers(serve: Serve) -> None:
    script = Script(warnings=(events.Warning("odd", "something"),))
    assert serve(script).ask("/api/chat", HI).headers["x-oprel-warning"] == "odd; something"


def test_the_prompt_can_be_shown_instead(serve: Serve) -> None:
    answer = serve().json("/api/chat", chat(("user", "Hi"), _debug_render_only=True))
    assert answer["_debug_info"] == {"rendered_template": "user: Hi\n"}
