"""HttpEngine against a stand-in upstream that answers, dies, stalls, refuses and talks nonsense."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any

import pytest
from support.http_upstream import (
    DONE,
    LAST_CHUNK,
    Handler,
    Peer,
    Received,
    Upstream,
    chat_chunk,
    chunk,
    json_answer,
    sse,
    stream_head,
    streamed,
    whole_answer,
)
from support.upstream_engine import ask, collect, make_engine

from oprel.errors import (
    BusyError,
    ContextLengthError,
    EngineFailedError,
    EngineTimeoutError,
    InvalidRequestError,
    OprelError,
    UnsupportedError,
)
from oprel.schema import (
    ChatRequest,
    CompletionRequest,
    EmbedRequest,
    Finish,
    ImagePart,
    Message,
    Sampling,
    Text,
    TextPart,
    Usage,
    events,
)

_ROLE = sse(chat_chunk(delta={"role": "assistant", "content": None}))
_USAGE = {"completion_tokens": 2, "prompt_tokens": 5, "total_tokens": 7}
_END = sse(chat_chunk(finish="stop"), {"choices": [], "usage": _USAGE})
_NATIVE_END = sse({"content": "", "stop": True, "stop_type": "limit", "tokens_predicted": 1, "tokens_evaluated": 3})
_OVERFLOW = {
    "error": {
        "code": 400,
        "message": "request (128 tokens) exceeds the available context size (64 tokens), try increasing it",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 128,
        "n_ctx": 64,
    }
}


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test

    asyncio.run(bounded())


def says(*tokens: str) -> Handler:
    return streamed([_ROLE, *(sse(chat_chunk(token)) for token in tokens), _END, DONE])


def refuses(answer: bytes) -> Handler:
    async def refuse(_: Received, peer: Peer) -> None:
        await peer.send(answer)

    return refuse


def test_chat() -> None:
    async def test() -> None:
        async with Upstream(says("Hel", "lo")) as upstream:
            engine = make_engine(upstream.address)
            for _ in range(2):
                found = await collect(engine.chat(ask(temperature=0.5)))
                assert found == [Text("Hel"), Text("lo"), Finish(("stop",), Usage(5, 2, 0))]
            assert upstream.connections == 1, "a finished answer leaves its connection for the next"
            assert upstream.requests[0].path == "/v1/chat/completions"
            assert upstream.requests[0].json["temperature"] == 0.5
            await engine.stop()

    run(test())


def test_what_arrives_together_is_one_batch() -> None:
    async def test() -> None:
        pieces = [_ROLE, sse(chat_chunk("a"), chat_chunk("b")) + sse(chat_chunk("c")), _END + DONE]
        async with Upstream(streamed(pieces)) as upstream:
            engine = make_engine(upstream.address)
            batches = [batch async for batch in engine.chat(ask())]
            texts = [tuple(event.text for event in batch if isinstance(event, Text)) for batch in batches]
            assert ("a", "b", "c") in [some[:3] for some in texts]
            await engine.stop()

    run(test())


def test_closing_the_iterator_closes_the_connection_at_once() -> None:
    gone = asyncio.Event()

    async def answer(_: Received, peer: Peer) -> None:
        await peer.send(stream_head(), chunk(_ROLE), chunk(sse(chat_chunk("a"))))
        await peer.wait_gone()
        gone.set()

    async def test() -> None:
        async with Upstream(answer) as upstream:
            engine = make_engine(upstream.address)
            async with aclosing(engine.chat(ask())) as stream:
                assert await anext(stream) == (Text("a"),)
            async with asyncio.timeout(1):
                await gone.wait()
            await engine.stop()

    run(test())


def test_cancelling_before_the_first_token_closes_the_connection() -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def answer(_: Received, peer: Peer) -> None:
        asked.set()
        await peer.wait_gone()
        gone.set()

    async def test() -> None:
        async with Upstream(answer) as upstream:
            engine = make_engine(upstream.address)
            task = asyncio.create_task(collect(engine.chat(ask())))
            await asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with asyncio.timeout(1):
                await gone.wait()
            await engine.stop()

    run(test())


def test_engine_that_dies_mid_stream_is_named_with_its_reason() -> None:
    async def answer(_: Received, peer: Peer) -> None:
        await peer.send(stream_head(), chunk(_ROLE), chunk(sse(chat_chunk("a"))))
        peer.cut()
        engine.death = "llama-server was killed by signal 9"

    upstream = Upstream(answer)

    async def test() -> None:
        nonlocal engine
        async with upstream:
            engine = make_engine(upstream.address)
            got: list[Any] = []
            with pytest.raises(EngineFailedError, match="killed by signal 9") as caught:
                async for batch in engine.chat(ask()):
                    got += batch
            assert got == [Text("a")]
            assert caught.value.log_tail == ("the last line",)
            await engine.stop()

    engine: Any = None
    run(test())


def test_cut_without_a_known_death(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oprel.drivers.upstream.engine._DEATH_NOTICE_S", 0.05)

    async def answer(_: Received, peer: Peer) -> None:
        await peer.send(stream_head(), chunk(_ROLE))
        peer.cut()

    async def test() -> None:
        async with Upstream(answer) as upstream:
            engine = make_engine(upstream.address)
            with pytest.raises(EngineFailedError, match="closed the connection before its answer was complete"):
                await collect(engine.chat(ask()))
            await engine.stop()

    run(test())


def test_engines_address_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oprel.drivers.upstream.engine._DEATH_NOTICE_S", 0.05)

    async def test() -> None:
        engine = make_engine("unix:/nonexistent/engine.sock")
        with pytest.raises(EngineFailedError, match="takes no connections") as caught:
            await collect(engine.chat(ask()))
        assert "engine.sock" not in str(caught.value)

    run(test())


def test_nobody_listens() -> None:
    async def test() -> None:
        engine = make_engine("unix:/nonexistent/engine.sock")
        engine.death = "llama-server ended with exit code 1"
        with pytest.raises(EngineFailedError, match="exit code 1"):
            await collect(engine.chat(ask()))
        with pytest.raises(EngineFailedError, match="exit code 1"):
            await engine.embed(EmbedRequest(("x",)))

    run(test())


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (json_answer(_OVERFLOW, status=400), ContextLengthError, "128 tokens, but the context holds 64"),
        (
            json_answer({"error": {"code": 500, "message": "image input is not supported - hint"}}, status=500),
            UnsupportedError,
            "takes no images",
        ),
        (json_answer({"error": {"code": 503, "message": "Loading model"}}, status=503), BusyError, "try again"),
        (json_answer({"error": {"code": 500, "message": "Compute error."}}, status=500), EngineFailedError, "Compute"),
        (json_answer({"error": {"code": 400, "message": "no"}}, status=400), InvalidRequestError, "refused"),
        (whole_answer(b"<html>bad gateway", status=502, content_type="text/html"), EngineFailedError, "<html>"),
        (whole_answer(b"<html>hello", content_type="text/html"), EngineFailedError, "not a stream"),
        (json_answer({"choices": []}), EngineFailedError, "not a stream"),
        (json_answer({"error": {"code": 400, "message": "'messages' is required"}}), InvalidRequestError, "required"),
        (json_answer({"error": {"code": 401, "message": "Invalid API Key"}}, status=401), EngineFailedError, "401"),
    ],
    ids=["overflow", "image", "loading", "compute", "400", "html", "html-200", "json-200", "error-200", "key"],
)
def test_refusals_before_the_stream(answer: bytes, kind: type[OprelError], words: str) -> None:
    async def test() -> None:
        async with Upstream(refuses(answer)) as upstream:
            engine = make_engine(upstream.address)
            with pytest.raises(kind, match=words) as caught:
                await collect(engine.chat(ask()))
            assert type(caught.value) is kind
            if isinstance(caught.value, ContextLengthError):
                assert (caught.value.prompt_tokens, caught.value.context_tokens) == (128, 64)
            await engine.stop()

    run(test())


@pytest.mark.parametrize("begins", [True, False], ids=["mid-stream", "before-the-head"])
def test_stall(begins: bool) -> None:
    """No progress for too long: the hook is called once, and the client is told. Comments aren't progress."""

    async def answer(_: Received, peer: Peer) -> None:
        if begins:
            await peer.send(stream_head(), chunk(_ROLE), chunk(sse(chat_chunk("a"))))
            while not peer.reader.at_eof():
                await peer.send(chunk(b":\n\n"))
                await asyncio.sleep(0.02)
        else:
            await peer.stall()

    async def test() -> None:
        async with Upstream(answer) as upstream:
            engine = make_engine(upstream.address, stall_timeout_s=0.2, context_tokens=1)
            with pytest.raises(EngineTimeoutError, match="made no progress") as caught:
                await collect(engine.chat(ask()))
            assert ("while it generated" in str(caught.value)) is begins
            assert engine.stalls == 1
            await engine.stop()

    run(test())


def test_another_streams_progress_counts() -> None:
    """llama-server reads one long prompt before the next: who waits behind it isn't on a stalled engine."""

    async def answer(request: Received, peer: Peer) -> None:
        if b"slow" in request.body:
            await released.wait()
            await says("late")(request, peer)
            return
        await peer.send(stream_head(), chunk(_ROLE))
        for _ in range(20):
            await peer.send(chunk(sse(chat_chunk("a"))))
            await asyncio.sleep(0.05)
        released.set()
        await peer.send(chunk(_END + DONE), LAST_CHUNK)

    released = asyncio.Event()

    async def test() -> None:
        async with Upstream(answer) as upstream:
            engine = make_engine(upstream.address, stall_timeout_s=0.4, context_tokens=1)
            slow, _ = await asyncio.gather(collect(engine.chat(ask("slow"))), collect(engine.chat(ask("busy"))))
            assert slow[0] == Text("late")
            assert engine.stalls == 0
            await engine.stop()

    run(test())


def test_slow_client_is_not_a_stalled_engine() -> None:
    async def test() -> None:
        async with Upstream(says("a", "b")) as upstream:
            engine = make_engine(upstream.address, stall_timeout_s=0.1, context_tokens=1)
            found = []
            async for batch in engine.chat(ask()):
                found += batch
                await asyncio.sleep(0.3)
            assert isinstance(found[-1], Finish)
            assert engine.stalls == 0
            await engine.stop()

    run(test())


def test_long_prompts_get_more_time() -> None:
    """Before the first token the limit grows with the prompt."""

    async def answer(_: Received, peer: Peer) -> None:
        await asyncio.sleep(0.5)
        await peer.send(stream_head(), chunk(_ROLE + sse(chat_chunk("a")) + _END + DONE), LAST_CHUNK)

    async def test() -> None:
        async with Upstream(answer) as upstream:
            engine = make_engine(upstream.address, stall_timeout_s=0.1, context_tokens=64)
            assert isinstance((await collect(engine.chat(ask("word " * 100))))[-1], Finish)
            await engine.stop()

    run(test())


def test_time_limit_ends_the_generation() -> None:
    gone = asyncio.Event()

    async def answer(_: Received, peer: Peer) -> None:
        progress = {"prompt_progress": {"total": 9, "cache": 4, "processed": 9}}
        await peer.send(stream_head(), chunk(sse({**chat_chunk(), **progress})))
        await peer.send(chunk(sse(chat_chunk("a"))), chunk(sse(chat_chunk("b"))))
        await peer.wait_gone()
        gone.set()

    async def test() -> None:
        async with Upstream(answer) as upstream:
            engine = make_engine(upstream.address)
            found = await collect(engine.chat(ask(time_limit_s=0.2)))
            assert [event.text for event in found if isinstance(event, Text)] == ["a", "b"]
            warning, finish = found[-2:]
            assert isinstance(warning, events.Warning)
            assert warning.code == "time_limit"
            assert finish == Finish(("length",), Usage(9, 2, 4))
            async with asyncio.timeout(1):
                await gone.wait()
            await engine.stop()

    run(test())


def test_no_tokens_wanted() -> None:
    """Engines make one token for `max_tokens` 0: nobody sees it."""

    async def test() -> None:
        async with Upstream(says("a")) as upstream:
            engine = make_engine(upstream.address)
            assert await collect(engine.chat(ask(max_tokens=0))) == [Finish(("length",), Usage(5, 0, 0))]
            await engine.stop()

    run(test())


def test_too_long_conversation_loses_its_oldest_turns() -> None:
    async def answer(request: Received, peer: Peer) -> None:
        if (tokens := 20 * len(request.json["messages"])) > 64:
            error = {**_OVERFLOW["error"], "n_prompt_tokens": tokens}
            await peer.send(json_answer({"error": error}, status=400))
        else:
            await says("ok")(request, peer)

    async def test() -> None:
        async with Upstream(answer) as upstream:
            engine = make_engine(upstream.address)
            turns = tuple(Message("user" if n % 2 else "assistant", (TextPart("x" * 100),)) for n in range(8))
            system = Message("system", (TextPart("be"),))
            request = ChatRequest((system, *turns), truncate=True)
            found = await collect(engine.chat(request))
            assert isinstance(found[0], events.Warning)
            assert found[0].code == "prompt_truncated"
            kept = upstream.requests[-1].json["messages"]
            assert kept[0] == {"role": "system", "content": "be"}
            assert len(kept) == 3, "no more turns than must"
            assert len(upstream.requests) <= 4
            with pytest.raises(ContextLengthError):
                await collect(engine.chat(ChatRequest((system, *turns))))
            await engine.stop()

    run(test())


def test_one_turn_that_is_too_long_is_refused() -> None:
    async def test() -> None:
        async with Upstream(refuses(json_answer(_OVERFLOW, status=400))) as upstream:
            engine = make_engine(upstream.address)
            with pytest.raises(ContextLengthError):
                await collect(engine.chat(ChatRequest(ask("x").messages, truncate=True)))
            assert len(upstream.requests) == 1
            await engine.stop()

    run(test())


def test_completion_and_infill() -> None:
    pieces = [sse({"content": " 5", "stop": False, "tokens_predicted": 1, "tokens_evaluated": 3}), _NATIVE_END]

    async def test() -> None:
        async with Upstream(streamed(pieces)) as upstream:
            engine = make_engine(upstream.address)
            expected = [Text(" 5"), Finish(("length",), Usage(3, 1, 0))]
            assert await collect(engine.complete(CompletionRequest((1, 2, 3)))) == expected
            assert upstream.requests[0].path == "/completion"
            assert upstream.requests[0].json["prompt"] == [1, 2, 3]
            assert await collect(engine.complete(CompletionRequest("a", suffix="b"))) == expected
            assert upstream.requests[1].path == "/infill"
            assert upstream.requests[1].json["input_suffix"] == "b"
            await engine.stop()

    run(test())


def test_images_beside_a_raw_prompt() -> None:
    async def answer(request: Received, peer: Peer) -> None:
        if request.path == "/props":
            await peer.send(json_answer({"media_marker": "<M>"}))
        else:
            await streamed([_NATIVE_END])(request, peer)

    async def test() -> None:
        async with Upstream(answer) as upstream:
            engine = make_engine(upstream.address)
            request = CompletionRequest("what?", images=(ImagePart(b"png"),))
            await collect(engine.complete(request))
            assert upstream.requests[-1].json["prompt"] == {
                "prompt_string": "<M>what?",
                "multimodal_data": [base64.b64encode(b"png").decode()],
            }
            await collect(engine.complete(request))
            assert [r.path for r in upstream.requests].count("/props") == 1
            with pytest.raises(InvalidRequestError, match="own mark for images"):
                await collect(engine.complete(CompletionRequest("<M>", images=(ImagePart(b"png"),))))
            await engine.stop()

    run(test())


def test_embeddings_in_batches_and_order() -> None:
    async def answer(request: Received, peer: Peer) -> None:
        inputs = request.json["input"]
        rows = [
            {"index": n, "embedding": base64.b64encode(struct.pack("<2f", float(text), 0.5)).decode()}
            for n, text in enumerate(inputs)
        ]
        await peer.send(json_answer({"data": rows[::-1], "usage": {"prompt_tokens": len(inputs)}}))

    async def test() -> None:
        async with Upstream(answer) as upstream:
            engine = make_engine(upstream.address)
            answered = await engine.embed(EmbedRequest(tuple(str(n) for n in range(150)), normalize=False))
            assert answered.vectors == tuple((float(n), 0.5) for n in range(150))
            assert answered.prompt_tokens == 150
            assert [len(r.json["input"]) for r in upstream.requests] == [64, 64, 22]
            assert upstream.requests[0].json["embd_normalize"] == -1
            assert upstream.requests[0].json["encoding_format"] == "base64"
            await engine.stop()

    run(test())


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"index": 0, "embedding": "AAA"}],
        [{"index": 0, "embedding": "!!!!"}],
        [{"index": 1, "embedding": [1.0]}],
        [{"index": 0, "embedding": []}],
        [{"index": 0}],
    ],
    ids=["none", "cut", "not-base64", "wrong-index", "empty", "missing"],
)
def test_embeddings_that_are_nonsense(rows: list[Any]) -> None:
    async def test() -> None:
        answer = json_answer({"data": rows, "usage": {"prompt_tokens": 1}})
        async with Upstream(refuses(answer)) as upstream:
            engine = make_engine(upstream.address)
            with pytest.raises(EngineFailedError, match="nonsense"):
                await engine.embed(EmbedRequest(("x",)))
            await engine.stop()

    run(test())


def test_embedding_input_that_is_too_long() -> None:
    message = "input (602 tokens) is too large to process. increase the physical batch size (current batch size: 512)"

    async def test() -> None:
        async with Upstream(refuses(json_answer({"error": {"code": 500, "message": message}}, status=500))) as upstream:
            engine = make_engine(upstream.address)
            with pytest.raises(ContextLengthError) as caught:
                await engine.embed(EmbedRequest(("x",)))
            assert (caught.value.prompt_tokens, caught.value.context_tokens) == (602, 512)
            await engine.stop()

    run(test())


def test_embedding_engine_that_stalls() -> None:
    async def answer(_: Received, peer: Peer) -> None:
        await peer.stall()

    async def test() -> None:
        async with Upstream(answer) as upstream:
            engine = make_engine(upstream.address, stall_timeout_s=0.1, context_tokens=1)
            with pytest.raises(EngineTimeoutError, match="made no progress"):
                await engine.embed(EmbedRequest(("x",)))
            assert engine.stalls == 1
            await engine.stop()

    run(test())


def test_tokens_and_templates() -> None:
    async def answer(request: Received, peer: Peer) -> None:
        answers = {
            "/tokenize": {"tokens": [1, 2]},
            "/detokenize": {"content": "hi"},
            "/apply-template": {"prompt": "<p>"},
        }
        await peer.send(json_answer(answers[request.path]))

    async def test() -> None:
        async with Upstream(answer) as upstream:
            engine = make_engine(upstream.address)
            assert await engine.tokenize("hi", add_special=True) == (1, 2)
            assert upstream.requests[0].json["add_special"] is True
            assert await engine.detokenize((1, 2)) == "hi"
            assert await engine.render(ask()) == "<p>"
            assert "stream" not in upstream.requests[2].json
            await engine.stop()

    run(test())


def test_stopping_the_engine_ends_its_streams() -> None:
    begun = asyncio.Event()

    async def answer(_: Received, peer: Peer) -> None:
        await peer.send(stream_head(), chunk(_ROLE))
        begun.set()
        await peer.stall()

    async def test() -> None:
        async with Upstream(answer) as upstream:
            engine = make_engine(upstream.address)
            task = asyncio.create_task(collect(engine.chat(ask())))
            await begun.wait()
            engine.death = "it was stopped"
            await engine.stop()
            with pytest.raises(EngineFailedError, match="it was stopped"):
                await task

    run(test())


def test_suffix_needs_infill() -> None:
    async def test() -> None:
        engine = make_engine("unix:/nonexistent", quirks=no_infill)
        with pytest.raises(UnsupportedError) as caught:
            await collect(engine.complete(CompletionRequest("a", Sampling(), suffix="b")))
        assert caught.value.capability == "infill"

    from oprel.drivers.upstream import Quirks

    no_infill = Quirks(infill_path=None)
    run(test())
