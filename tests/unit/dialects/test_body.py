"""A body is read strictly: each way to be wrong is one sentence that names the field."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oprel.dialects.body import Read, read
from oprel.dialects.openai.wire import ChatBody
from oprel.errors import InvalidRequestError

OK = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def reading(body: bytes | dict[str, Any]) -> Read[ChatBody]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return asyncio.run(read(content, ChatBody))


def refusal(body: bytes | dict[str, Any]) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        reading(body)
    return caught.value


MALFORMED = {
    "empty": (b"", None, "no body"),
    "blank": (b" \n", None, "no body"),
    "cut": (b'{"model"', None, "not valid JSON"),
    "trailing": (b"{} x", None, "not valid JSON"),
    "byte order mark": (b"\xef\xbb\xbf{}", None, "not valid JSON"),
    "a list": (b"[1]", None, "must be an object, not an array"),
    "null": (b"null", None, "must be an object, not null"),
    "text": (b'"x"', None, "must be an object, not a string"),
    "form data": (b"model=m&messages=", None, "not valid JSON"),
    "not UTF-8": (b'{"model":"\xff"}', None, "not UTF-8"),
    "UTF-16": ("{}".encode("utf-16"), None, "not UTF-8"),
    "deep lists": (b"[" * 100_000, None, "nested too deep"),
    "deep objects": (b'{"a":' * 100_000, None, "nested too deep"),
    "deep in an unknown field": (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", None, "nested too deep"),
    "NaN": (b'{"temperature":NaN}', None, "NaN is not a JSON value"),
    "Infinity": (b'{"temperature":-Infinity}', None, "-Infinity is not a JSON value"),
    "a number too large": (b'{"temperature":1e999}', None, "1e999, which is too large"),
    "an integer beyond 64 bits": (b'{"seed":9223372036854775808}', None, "doesn't fit in 64 bits"),
    "an integer of 5,000 digits": (b'{"seed":' + b"9" * 5000 + b"}", None, "doesn't fit in 64 bits"),
    "a key twice": (b'{"model":"a","model":"b"}', "model", "more than once"),
    "a key twice, deep": (b'{"messages":[{"role":"user","role":"system"}]}', "role", "more than once"),
    "half a pair": (b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}', "messages[0].content", "ud800"),
    "half a pair in a key": (b'{"a\\udc00":1}', "a\\udc00", "surrogate"),
    "a pair turned around": (b'{"model":"\\udc00\\ud800"}', "model", "surrogate"),
}


@pytest.mark.parametrize(("body", "param", "words"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed(body: bytes, param: str | None, words: str) -> None:
    error = refusal(body)
    assert error.param == param
    assert words in error.message


WRONG = {
    "no model": ({"messages": []}, "model", "is required"),
    "no messages": ({"model": "m"}, "messages", "is required"),
    "model is a number": ({**OK, "model": 1}, "model", "must be a string, not an integer"),
    "model is null": ({**OK, "model": None}, "model", "must be a string, not null"),
    "messages is an object": ({**OK, "messages": {}}, "messages", "must be an array, not an object"),
    "a message is text": ({**OK, "messages": ["hi"]}, "messages[0]", "must be an object, not a string"),
    "a message without a role": ({**OK, "messages": [{}]}, "messages[0].role", "is required"),
    "content is a number": (
        {**OK, "messages": [{"role": "user", "content": 5}]},
        "messages[0].content",
        "must be a string or an array or null, not an integer",
    ),
    "a part without a type": (
        {**OK, "messages": [{"role": "user", "content": [{"text": "x"}]}]},
        "messages[0].content[0].type",
        "is required",
    ),
    "a part of an unknown type": (
        {**OK, "messages": [{"role": "user", "content": [{"type": "video"}]}]},
        "messages[0].content[0].type",
        "'video', which isn't known; these are: 'text'",
    ),
    "temperature is text": ({**OK, "temperature": "1"}, "temperature", "must be a number or null, not a string"),
    "max_tokens is a fraction": ({**OK, "max_tokens": 1.5}, "max_tokens", "must be an integer or null"),
    "max_tokens is true": ({**OK, "max_tokens": True}, "max_tokens", "not a boolean"),
    "stream is text": ({**OK, "stream": "yes"}, "stream", "must be a boolean or null, not a string"),
    "a stop is a number": ({**OK, "stop": ["a", 1]}, "stop[1]", "must be a string, not an integer"),
    "a bias is text": ({**OK, "logit_bias": {"1": "x"}}, "logit_bias[...]", "must be a number"),
    "metadata is text": ({**OK, "metadata": "x"}, "metadata", "must be an object or null"),
}


@pytest.mark.parametrize(("body", "param", "words"), WRONG.values(), ids=WRONG.keys())
def test_wrong_types(body: dict[str, Any], param: str, words: str) -> None:
    error = refusal(body)
    assert (error.param, words in error.message) == (param, True), error.message


def test_null_is_not_given() -> None:
    nulls = dict.fromkeys(("temperature", "stop", "tools", "stream", "n", "user", "response_format"))
    assert reading({**OK, **nulls}).body == reading(OK).body


def test_an_integer_may_be_written_with_a_point() -> None:
    body = reading(b'{"model":"m","messages":[],"max_tokens":5.0,"temperature":1.0,"top_p":0.5}').body
    assert (body.max_tokens, body.temperature, body.top_p) == (5, 1.0, 0.5)
    assert refusal(b'{"model":"m","messages":[],"max_tokens":5.5}').param == "max_tokens"


def test_unknown_fields_are_named_once_each_wherever_they_are() -> None:
    found = reading(
        {
            **OK,
            "zap": 1,
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "x", "zip": 1}], "zop": 1},
                {"role": "user", "content": "x", "zop": 2},
            ],
            "stream_options": {"include_usage": True, "zup": None},
            "metadata": {"any": "thing"},
        }
    )
    assert sorted(found.unknown) == ["messages[].content[].zip", "messages[].zop", "stream_options.zup", "zap"]


def test_unknown_fields_are_bounded() -> None:
    assert len(reading({**OK, **{f"x{n}": 1 for n in range(1000)}}).unknown) == 10


def test_a_large_body_is_read_the_same() -> None:
    body = {**OK, "messages": [{"role": "user", "content": "é" * 300_000}], "zap": 1}
    found = reading(body)
    assert found.body.messages[0].content == "é" * 300_000
    assert found.unknown == ("zap",)


def test_emoji_written_as_pairs_are_text() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"\\ud83d\\ude00 \\\\ud800"}]}'
    assert reading(body).body.messages[0].content == "😀 \\ud800"


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        reading(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(ChatBody.__struct_fields__), JSON))
def test_any_values_are_read_or_refused(fields: dict[str, Any]) -> None:
    try:
        reading({**OK, **fields})
    except InvalidRequestError as error:
        assert error.message
