"""The small parts: the error table, repaired text, events in a byte stream, turns that go first."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oprel.drivers.upstream.failures import Failures
from oprel.drivers.upstream.repair import TextRepair
from oprel.drivers.upstream.sse import EventBlocks, payloads
from oprel.drivers.upstream.turns import without_oldest
from oprel.errors import (
    BusyError,
    ContextLengthError,
    EngineFailedError,
    InvalidRequestError,
    OprelError,
    UnsupportedError,
)
from oprel.schema import Message, Role, TextPart, ToolCall


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (400, "request (9031 tokens) exceeds the available context size (1024 tokens), try", ContextLengthError),
        (500, "input (602 tokens) is too large to process. (current batch size: 512)", ContextLengthError),
        (400, "model's maximum context length is 256 tokens. However, you requested 300", ContextLengthError),
        (500, "Context size has been exceeded.", ContextLengthError),
        (500, "image input is not supported - hint: you may need to provide the mmproj", UnsupportedError),
        (400, "Multimodal data provided, but model does not support multimodal requests.", UnsupportedError),
        (501, "This server does not support embeddings. Start it with `--embeddings`", UnsupportedError),
        (500, "the current context does not support logits computation. skipping", UnsupportedError),
        (501, "Infill is not supported by this model: prefix token is missing.", UnsupportedError),
        (500, "tools param requires --jinja flag", UnsupportedError),
        (501, "not here", UnsupportedError),
        (500, "Failed to parse messages: Missing 'role' in message: {}", InvalidRequestError),
        (500, "Failed to parse tool call arguments as JSON: [json.exception.parse_error.101]", InvalidRequestError),
        (400, "Failed to initialize samplers: failed to parse grammar", InvalidRequestError),
        (400, "Unable to generate parser: JSON schema error at #: unrecognized type objekt", InvalidRequestError),
        (400, "Field 'temperature': [json.exception.type_error.302] type must be number", InvalidRequestError),
        (400, "Prompt contains invalid tokens", InvalidRequestError),
        (422, "whatever", InvalidRequestError),
        (503, "Loading model", BusyError),
        (429, "busy", BusyError),
        (500, "Compute error.", EngineFailedError),
        (401, "Invalid API Key", EngineFailedError),
        (404, "File Not Found", EngineFailedError),
        (200, "?", EngineFailedError),
    ],
)  # fmt: skip
def test_error_table(status: int, message: str, kind: type[OprelError]) -> None:
    body = json.dumps({"error": {"code": status, "message": message, "type": "x"}}).encode()
    error = Failures("llama_cpp", "m:1").answered(status, body)
    assert type(error) is kind
    assert "\n" not in str(error)


def test_numbers_of_a_context_error() -> None:
    failures = Failures("llama_cpp", "m:1")
    error = failures.told(500, "input (602 tokens) is too large to process. (current batch size: 512)")
    assert isinstance(error, ContextLengthError)
    assert (error.prompt_tokens, error.context_tokens) == (602, 512)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[" * 100_000, b'{"error":5}', b"\xff", b"null", b"{}"])
def test_error_bodies_that_say_nothing(body: bytes) -> None:
    error = Failures("llama_cpp", "m:1").answered(500, body, "text/html")
    assert isinstance(error, EngineFailedError)
    assert len(str(error)) < 400


def test_other_engines_error_bodies() -> None:
    failures = Failures("vllm", "m:1")
    assert "Not Found" in str(failures.answered(404, b'{"detail":"Not Found"}'))
    assert isinstance(failures.answered(400, b'{"error":"bad"}'), InvalidRequestError)


@given(st.text(), st.data())
def test_repair_joins_bytes(text: str, data: st.DataObject) -> None:
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=8)))
    repair = TextRepair()
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert "".join(repair.feed(piece.decode("utf-8", "surrogateescape")) for piece in pieces) + repair.flush() == text


@given(st.text())
def test_repair_joins_surrogates(text: str) -> None:
    """Each UTF-16 unit on its own, as an engine that escapes its output might send it."""
    units = text.encode("utf-16-le")
    repair = TextRepair()
    halves = [units[n : n + 2].decode("utf-16-le", "surrogatepass") for n in range(0, len(units), 2)]
    assert "".join(map(repair.feed, halves)) + repair.flush() == text


@given(st.lists(st.text(alphabet=st.characters(codec=None), max_size=3)))
def test_repaired_text_is_always_unicode(pieces: list[str]) -> None:
    repair = TextRepair()
    ("".join(map(repair.feed, pieces)) + repair.flush()).encode("utf-8")


def test_event_fields() -> None:
    block = b": hello\n\nevent: a\ndata: 1\ndata:2\nid: x\n\nretry: 5\n\ndata\n\ndata: \n\ndata:  3"
    assert payloads(block) == [b"1\n2", b"", b" 3"]


def test_rest_is_what_is_not_whole() -> None:
    blocks = EventBlocks()
    assert blocks.feed(b"data: 1\n\ndata: 2\n") == b"data: 1"
    assert blocks.rest == b"data: 2\n"
    assert blocks.feed(b"\n") == b"data: 2"
    assert blocks.rest == b""


def said(role: Role, text: str = "x" * 80, **more: object) -> Message:
    return Message(role, (TextPart(text),), **more)  # type: ignore[arg-type]


def test_oldest_turns_go_first() -> None:
    system, last = said("system"), said("user", "last")
    turns = tuple(said("user" if n % 2 == 0 else "assistant", f"{n}" * 80) for n in range(6))
    assert without_oldest((system, *turns, last), excess=0.01) == (system, *turns[1:], last)
    assert without_oldest((system, *turns, last), excess=0.4) == (system, *turns[3:], last)
    assert without_oldest((system, *turns, last), excess=1.0) == (system, last)
    assert without_oldest((system, last), excess=0.5) is None
    assert without_oldest((last,), excess=0.5) is None


def test_tool_answers_go_with_their_call() -> None:
    call = said("assistant", "", tool_calls=(ToolCall("f", "{}"),))
    answers = (said("tool", "1" * 40), said("tool", "2" * 40))
    last = said("user", "last")
    assert without_oldest((said("user", "q"), call, *answers, last), excess=0.3) == (last,)
