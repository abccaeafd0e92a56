"""Messages of every role and form, and what is wrong with others."""

from __future__ import annotations

import base64
import struct
from typing import Any

import msgspec
import pytest

from oprel.dialects.openai.messages import conversation
from oprel.dialects.openai.wire import MessageBody
from oprel.errors import InvalidRequestError, UnsupportedError
from oprel.schema import AudioPart, ImagePart, Message, TextPart, ToolCall

PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 2, 2) + b"\x08\x06\0\0\0"
PNG_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
WAV = base64.b64encode(b"RIFFxxxxWAVE").decode()


def translated(*messages: dict[str, Any]) -> tuple[Message, ...]:
    return conversation(msgspec.convert(list(messages), list[MessageBody]))


def text(*texts: str) -> tuple[TextPart, ...]:
    return tuple(TextPart(each) for each in texts)


ROWS = {
    "system": ({"role": "system", "content": "be brief"}, Message("system", text("be brief"))),
    "developer": ({"role": "developer", "content": "be brief"}, Message("developer", text("be brief"))),
    "user": ({"role": "user", "content": "hi", "name": "Ann"}, Message("user", text("hi"))),
    "empty": ({"role": "user", "content": ""}, Message("user")),
    "parts": (
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        Message("user", text("a", "b")),
    ),
    "image": (
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG_URL, "detail": "low"}}]},
        Message("user", (ImagePart(PNG, "image/png"),)),
    ),
    "image, bare, with another type in its URL": (
        {"role": "user", "content": [{"type": "image_url", "image_url": PNG_URL.replace("image/png", "image/jpeg")}]},
        Message("user", (ImagePart(PNG, "image/png"),)),
    ),
    "sound": (
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": WAV, "format": "wav"}}]},
        Message("user", (AudioPart(b"RIFFxxxxWAVE", "audio/wav"),)),
    ),
    "assistant": ({"role": "assistant", "content": "yes"}, Message("assistant", text("yes"))),
    "assistant, nothing": ({"role": "assistant", "content": None}, Message("assistant")),
    "assistant, refusal": ({"role": "assistant", "refusal": "no"}, Message("assistant", text("no"))),
    "assistant, refusal part": (
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        Message("assistant", text("no")),
    ),
    "assistant, thinking": (
        {"role": "assistant", "content": "yes", "reasoning_content": "hm", "reasoning": "hm"},
        Message("assistant", text("yes"), thinking="hm"),
    ),
    "assistant, thinking by its other name": (
        {"role": "assistant", "content": "yes", "reasoning": "hm"},
        Message("assistant", text("yes"), thinking="hm"),
    ),
    "assistant, call": (
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
        },
        Message("assistant", tool_calls=(ToolCall("f", '{"a": 1}', id="c1"),)),
    ),
    "assistant, call without arguments": (
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": ""}}]},
        Message("assistant", tool_calls=(ToolCall("f", "{}"),)),
    ),
    "assistant, function_call": (
        {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
        Message("assistant", tool_calls=(ToolCall("f", "{}"),)),
    ),
    "tool": (
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
        Message("tool", text("42"), tool_call_id="c1"),
    ),
    "tool, parts": (
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "42"}]},
        Message("tool", text("42"), tool_call_id="c1"),
    ),
    "function": (
        {"role": "function", "name": "f", "content": "42"},
        Message("tool", text("42"), tool_name="f"),
    ),
    "function, nothing": ({"role": "function", "name": "f", "content": None}, Message("tool", tool_name="f")),
}


@pytest.mark.parametrize(("body", "message"), ROWS.values(), ids=ROWS.keys())
def test_each_form(body: dict[str, Any], message: Message) -> None:
    assert translated(body) == (message,)


def test_a_tools_answer_knows_the_tool_that_was_called() -> None:
    call = {"id": "c7", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    answer = translated(
        {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c7", "content": "rain"}
    )[1]
    assert (answer.tool_call_id, answer.tool_name) == ("c7", "weather")


def image(url: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}


def call_with(arguments: str) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}


URL = "messages[0].content[0].image_url.url"
ARGUMENTS = "messages[0].tool_calls[0].function.arguments"
REFUSED = {
    "unknown role": ({"role": "robot", "content": "x"}, "messages[0].role"),
    "user without content": ({"role": "user"}, "messages[0].content"),
    "system with null": ({"role": "system", "content": None}, "messages[0].content"),
    "tool without content": ({"role": "tool", "tool_call_id": "c"}, "messages[0].content"),
    "no parts": ({"role": "user", "content": []}, "messages[0].content"),
    "http image": (image("http://127.0.0.1:1/x.png"), URL),
    "https image": (image("https://example.com/x.png"), URL),
    "file image": (image("file:///etc/passwd"), URL),
    "empty URL": (image(""), URL),
    "data URL without base64": (image("data:image/png,xyz"), URL),
    "data URL without a comma": (image("data:image/png;base64"), URL),
    "bad base64": (image("data:image/png;base64,@@@"), URL),
    "no image": (image("data:image/png;base64,aGVsbG8="), URL),
    "image from the assistant": ({**image(PNG_URL), "role": "assistant"}, "messages[0].content[0]"),
    "file part": (
        {"role": "user", "content": [{"type": "file", "file": {"file_id": "x"}}]},
        "messages[0].content[0]",
    ),
    "sound of another format": (
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": WAV, "format": "ogg"}}]},
        "messages[0].content[0].input_audio.format",
    ),
    "bad sound": (
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "@", "format": "wav"}}]},
        "messages[0].content[0].input_audio.data",
    ),
    "arguments that are no JSON": (call_with("x"), ARGUMENTS),
    "arguments that are a list": (call_with("[1]"), ARGUMENTS),
    "arguments that are nested": (call_with('{"a":' + "[" * 100_000), ARGUMENTS),
    "arguments with half a pair": (call_with('{"a":"\\ud800"}'), ARGUMENTS),
    "a call of nothing": ({"role": "assistant", "tool_calls": [{"id": "x"}]}, "messages[0].tool_calls[0].function"),
    "a custom call": (
        {"role": "assistant", "tool_calls": [{"type": "custom", "custom": {"name": "f"}}]},
        "messages[0].tool_calls[0].type",
    ),
    "spoken answer": ({"role": "assistant", "audio": {"id": "x"}}, "messages[0].audio"),
}


@pytest.mark.parametrize(("body", "param"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_wrong_is_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        translated(body)
    assert caught.value.param == param
    assert param in caught.value.message


def test_no_messages() -> None:
    with pytest.raises(InvalidRequestError, match="'messages' is empty"):
        translated()


def test_images_are_counted_over_all_messages() -> None:
    translated(*[image(PNG_URL)] * 16)
    with pytest.raises(InvalidRequestError, match="17 images"):
        translated(*[image(PNG_URL)] * 17)


def test_a_file_is_unsupported() -> None:
    with pytest.raises(UnsupportedError):
        translated({"role": "user", "content": [{"type": "file", "file": {}}]})
