"""Streams and errors in the shapes of servers that are OpenAI's own, or say the same in other words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.http_upstream import DONE, chat_chunk, sse

from oprel.drivers.upstream import Quirks
from oprel.drivers.upstream.failures import Failures, retry_after_s
from oprel.drivers.upstream.reading import ChatReader
from oprel.drivers.upstream.vectors import read_vectors
from oprel.drivers.upstream.writing import RequestWriter
from oprel.errors import BusyError, ContextLengthError, EngineFailedError, InvalidRequestError, OprelError
from oprel.schema import (
    ChatRequest,
    CompletionRequest,
    Event,
    Finish,
    Message,
    Sampling,
    Text,
    TextPart,
    TokenLogprob,
    TopLogprob,
    events,
)

FAILURES = Failures("openai", "m:1", named="the remote 'x'")


def read(data: bytes, *, is_done_enough: bool = False) -> list[Event]:
    out: list[Event] = []
    reader = ChatReader(FAILURES, is_done_enough=is_done_enough)
    reader.feed(data, out)
    reader.end(out)
    return out


def text_chunk(text: str, **more: Any) -> dict[str, Any]:
    return {"object": "text_completion", "choices": [{"index": 0, "text": text, "finish_reason": None, **more}]}


class TestLogprobs:
    """Legacy completions tell them as lists side by side."""

    def told(self, **logprobs: Any) -> tuple[TokenLogprob, ...]:
        (first, *_) = read(sse(text_chunk("a b", logprobs=logprobs), text_chunk("", finish_reason="stop")) + DONE)
        assert isinstance(first, Text)
        assert first.text == "a b"
        return first.logprobs or ()

    def test_as_rows(self) -> None:
        told = self.told(
            tokens=["a", " b"],
            token_logprobs=[-0.5, -1.0],
            top_logprobs=[{"x": -3.0, "a": -0.5}, {" b": -1.0, "y": None}],
            text_offset=[0, 1],
        )
        assert told == (
            TokenLogprob("a", -0.5, (97,), (TopLogprob("a", -0.5, (97,)), TopLogprob("x", -3.0, (120,)))),
            TokenLogprob(" b", -1.0, (32, 98), (TopLogprob(" b", -1.0, (32, 98)), TopLogprob("y", -9999.0, (121,)))),
        )

    def test_with_lists_that_are_too_short(self) -> None:
        assert [row.logprob for row in self.told(tokens=["a", " b"], token_logprobs=[-0.5])] == [-0.5, -9999.0]
        assert [row.top for row in self.told(tokens=["a", " b"], token_logprobs=[None, -1], top_logprobs=[None])] == [
            (),
            (),
        ]

    def test_chats_own_shape_comes_first(self) -> None:
        (row,) = self.told(content=[{"token": "q", "logprob": -2.0}], tokens=["a"])
        assert row.token == "q"


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "both"])
def test_thinking_under_either_name_once(field: str) -> None:
    names = ("reasoning_content", "reasoning") if field == "both" else (field,)
    delta = dict.fromkeys(names, "hm")
    found = read(sse(chat_chunk(delta=delta), chat_chunk("a"), chat_chunk(finish="stop")) + DONE)
    assert found[:2] == [events.Thinking("hm"), Text("a")]


class TestEnds:
    def test_done_is_enough_where_the_server_is_like_that(self) -> None:
        stream = sse(chat_chunk("a")) + DONE
        finish = read(stream, is_done_enough=True)[-1]
        assert isinstance(finish, Finish) and finish.reasons == ("stop",)
        with pytest.raises(EngineFailedError):
            read(stream)

    @pytest.mark.parametrize("stream", [DONE, b"", sse(chat_chunk("a"))])
    def test_nothing_said_is_a_failure_all_the_same(self, stream: bytes) -> None:
        with pytest.raises(EngineFailedError, match="the remote 'x' ended its answer without a finish"):
            read(stream, is_done_enough=True)

    def test_usage_with_every_chunk(self) -> None:
        """The last one counts, and nothing is cut off."""
        usage = {"prompt_tokens": 4, "completion_tokens": 1}
        last = {"prompt_tokens": 4, "completion_tokens": 2}
        chunks = (chat_chunk("a", usage=usage), chat_chunk("b", usage=last), chat_chunk(finish="stop", usage=last))
        found = read(sse(*chunks) + DONE)
        assert [event.text for event in found if isinstance(event, Text)] == ["a", "b"]
        assert isinstance(found[-1], Finish) and (found[-1].usage.prompt, found[-1].usage.completion) == (4, 2)


class TestErrors:
    @pytest.mark.parametrize(
        ("status", "body", "kind", "says"),
        [
            (400, b'{"error":{"message":"m","code":"context_length_exceeded"}}', ContextLengthError, "longer"),
            (400, b'{"object":"error","message":"bad top_p","code":400}', InvalidRequestError, "bad top_p"),
            (422, b'{"detail":[{"loc":["body","n"],"msg":"too large"}]}', InvalidRequestError, "body.n: too large"),
            (400, b'{"error":{"message":null,"code":"x"}}', InvalidRequestError, "no reason given"),
            (500, b'{"error":{"message":"e","code":"429"}}', BusyError, "the remote 'x' can't take"),
            (500, b'{"error":{"message":"e","code":"server_error"}}', EngineFailedError, "status 500: e"),
            (
                400,
                b'{"error":{"message":"this model\'s maximum context length is 512 tokens, but \'messages\' came to '
                b'600 tokens"}}',
                ContextLengthError,
                "600",
            ),
        ],
    )
    def test_bodies(self, status: int, body: bytes, kind: type[OprelError], says: str) -> None:
        error = FAILURES.answered(status, body)
        assert type(error) is kind
        assert says in error.message

    def test_in_a_stream_without_the_word(self) -> None:
        with pytest.raises(EngineFailedError, match="worker died"):
            read(sse({"object": "error", "message": "the worker died", "code": 500}))

    def test_retry_after_comes_along(self) -> None:
        error = FAILURES.answered(429, b'{"error":{"message":"slow down"}}', "application/json", "7")
        assert isinstance(error, BusyError) and error.retry_after_s == 7.0

    @pytest.mark.parametrize(
        ("header", "seconds"),
        [
            ("5", 5.0),
            (" 0.5 ", 0.5),
            ("Thu, 01 Jan 1970 00:01:00 GMT", 50.0),
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
            ("soon", None),
            ("", None),
            ("-5", None),
            ("1e9", None),
        ],
    )
    def test_retry_after(self, header: str, seconds: float | None) -> None:
        assert retry_after_s(header, now=10.0) == seconds


def test_embeddings_without_usage() -> None:
    assert read_vectors(b'{"data":[{"index":0,"embedding":[1.0]}]}', count=1, driver="d") == ([(1.0,)], 0)


class TestWriting:
    def writer(self, **quirks: Any) -> RequestWriter:
        return RequestWriter(Quirks(completion_shape="openai", **quirks), context_tokens=64, can_think=True)

    def chat(self, writer: RequestWriter, **sampling: Any) -> Any:
        answered = Message("assistant", (TextPart("4"),), thinking="2+2")
        return json.loads(writer.chat(ChatRequest((answered,), Sampling(**sampling))))

    def test_thinking_goes_back_where_it_is_known(self) -> None:
        assert "reasoning_content" in self.chat(self.writer())["messages"][0]
        assert "reasoning_content" not in self.chat(self.writer(thinking_field=None))["messages"][0]

    def test_biases(self) -> None:
        bias = ((5, 1.0), (6, -1.0))
        assert self.chat(self.writer(), logit_bias=bias)["logit_bias"] == [[5, 1.0], [6, -1.0]]
        assert self.chat(self.writer(has_bias_map=True), logit_bias=bias)["logit_bias"] == {"5": 1.0, "6": -1.0}

    def test_the_limit_of_a_chat(self) -> None:
        sent = self.chat(self.writer(chat_limit_field="max_completion_tokens"), max_tokens=5)
        assert (sent.get("max_completion_tokens"), sent.get("max_tokens")) == (5, None)

    def test_infill_in_openais_shape(self) -> None:
        sent = self.writer().complete(CompletionRequest("a", suffix="b"))
        assert b'"suffix":"b"' in sent
