"""Bodies are read as Go reads them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oprel.dialects.ollama.errors import Refusal
from oprel.dialects.ollama.gojson import dumps, go_quoted
from oprel.dialects.ollama.reading import decode_first
from oprel.dialects.ollama.wire import ChatRequest, GenerateRequest, read


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a":1} rest', {"a": 1}),
        (b'{"a":1}{"a":2}', {"a": 1}),
        (b" \n[1]x", [1]),
        (b'"\xff"', "\ufffd"),
        (rb'"\ud800"', "\ufffd"),
        (rb'"\ud83d\ude00\udc00"', "\U0001f600\ufffd"),
        (rb'"\\ud800"', r"\ud800"),
    ],
)
def test_only_the_first_value_counts_and_broken_text_is_repaired(body: bytes, value: object) -> None:
    assert decode_first(body) == value


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "missing request body"),
        (b" \r\n\t", "missing request body"),
        (b"xyz", "invalid character 'x' looking for beginning of value"),
        (b'{"a":', "unexpected EOF"),
        (b"tru", "unexpected EOF"),
        (b"nope", "invalid character 'o' in literal null (expecting 'u')"),
        (b'{"a":trux}', "invalid character 'x' in literal true (expecting 'e')"),
        (b'{"a" 1}', "invalid character '1' after object key"),
        (b'{"a":1 "b"}', "invalid character '\"' after object key:value pair"),
        (b"[1 2]", "invalid character '2' after array element"),
        (b"{a:1}", "invalid character 'a' looking for beginning of object key string"),
        (b'{"a":1,}', "invalid character '}' looking for beginning of object key string"),
        (b'{"t":x}', "invalid character 'x' looking for beginning of value"),
        (rb'"\x"', "invalid character 'x' in string escape code"),
        (b'"a\nb"', r"invalid character '\n' in string literal"),
        (b"[" * 100_000, "exceeded max depth"),
    ],
)
def test_what_is_malformed_is_said_in_gos_words(body: bytes, text: str) -> None:
    with pytest.raises(Refusal) as refused:
        decode_first(body)
    assert refused.value.row.status == 400
    assert str(refused.value) == text


@pytest.mark.parametrize(
    ("body", "wanted", "text"),
    [
        (b'{"model":1}', GenerateRequest, "number into Go struct field GenerateRequest.model of type string"),
        (
            b'{"options":"x"}',
            GenerateRequest,
            "string into Go struct field GenerateRequest.options of type map[string]interface {}",
        ),
        (b'{"context":"x"}', GenerateRequest, "string into Go struct field GenerateRequest.context of type []int"),
        (b'{"context":[true]}', GenerateRequest, "bool into Go struct field GenerateRequest.context of type int"),
        (
            b'{"messages":[{"content":[]}]}',
            ChatRequest,
            "array into Go struct field ChatRequest.messages.content of type string",
        ),
        (
            b'{"tools":[{"function":{"name":{}}}]}',
            ChatRequest,
            "object into Go struct field ToolFunction.tools.function.name of type string",
        ),
        (b"[]", ChatRequest, "array into Go value of type api.ChatRequest"),
    ],
)
def test_a_wrong_type_is_refused_in_gos_words(body: bytes, wanted: type, text: str) -> None:
    with pytest.raises(Refusal) as refused:
        read(body, wanted)
    assert str(refused.value) == f"json: cannot unmarshal {text}"


def test_names_match_in_any_case_null_is_unset_and_the_unknown_is_named() -> None:
    body = b'{"Model":"m","STREAM":null,"messages":[{"ROLE":"user","content":null},null],"colour":"red"}'
    request, unknown = read(body, ChatRequest)
    assert (request.model, request.stream, unknown) == ("m", True, ("colour",))
    assert [(message.role, message.content) for message in request.messages] == [("user", ""), ("", "")]
    assert read(b"null", ChatRequest)[0] == ChatRequest()


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        decode_first(body)
    except Refusal as refused:
        assert refused.row.status == 400
        assert str(refused)


@given(st.recursive(st.none() | st.booleans() | st.text(), lambda inner: st.dictionaries(st.text(), inner)))
def test_what_is_written_reads_back_and_has_no_html(value: object) -> None:
    written = dumps(value)
    assert json.loads(written) == value
    assert not set(written) & set(b"<>&")


@pytest.mark.parametrize(
    ("value", "shown"), [('"xml"', r'"\"xml\""'), ("a\n\t\\", r'"a\n\t\\"'), ("\x01é\u2028", r'"\x01é\u2028"')]
)
def test_quoting_is_gos(value: str, shown: str) -> None:
    assert go_quoted(value) == shown
