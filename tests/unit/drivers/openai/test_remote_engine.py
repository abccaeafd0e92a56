"""A remote's engine: replicas, trying again before the first token, and one clear sentence for all that goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
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
    whole_answer,
)
from support.remote import chat_server, listing, remote_engine, remote_of, story
from support.upstream_engine import ask, collect

from oprel.drivers.openai.engine import RETRY_WAIT_S, RemoteEngine
from oprel.drivers.openai.failures import RemoteGoneError
from oprel.errors import (
    BusyError,
    ContextLengthError,
    EngineFailedError,
    EngineTimeoutError,
    InvalidRequestError,
    OprelError,
)
from oprel.schema import EmbedRequest, Event, Finish, Text
from oprel.testing import eventually

KEY = "sk-canary-4f1d2c3b5a697887"


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test()

    asyncio.run(bounded())


def text(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


class Slept:
    """Takes the place of the engine's clock: nothing is waited for, all that would be is noted."""

    def __init__(self, engine: RemoteEngine) -> None:
        self.waits: list[float] = []
        self.now = asyncio.get_running_loop().time()
        engine._sleep = self.sleep
        engine._now = lambda: self.now

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


def answering(*answers: bytes | Handler) -> Handler:
    """Each request gets the next of these, the last one for ever; listings are answered beside."""
    left = list(answers)

    async def answer(request: Received, peer: Peer) -> None:
        if request.path.endswith(("/models", "/version")):
            await peer.send(listing("vendor/big") if request.path.endswith("/models") else json_answer({}))
            return
        one = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(one, bytes):
            await peer.send(one)
        else:
            await one(request, peer)

    return answer


async def cut(_: Received, peer: Peer) -> None:
    peer.cut()


async def cut_after_head(_: Received, peer: Peer) -> None:
    await peer.send(stream_head(), chunk(b": ping\n\n"))
    peer.cut()


async def cut_after_a_token(_: Received, peer: Peer) -> None:
    await peer.send(stream_head(), chunk(sse(chat_chunk("Once"))))
    peer.cut()


async def tell(_: Received, peer: Peer) -> None:
    await peer.send(*story("Once", " upon"))


def refusing(status: int, body: bytes = b'{"error":{"message":"no"}}', **headers: str) -> bytes:
    return whole_answer(body, status=status, headers={name.replace("_", "-"): value for name, value in headers.items()})


class TestTryingAgain:
    """Only before the first token, and only where another try can help."""

    @pytest.mark.parametrize(
        "first",
        [
            pytest.param(cut, id="cut at once"),
            pytest.param(cut_after_head, id="cut before the first event"),
            pytest.param(refusing(502), id="502"),
            pytest.param(refusing(503), id="503"),
            pytest.param(refusing(503, b"<html>busy</html>"), id="503 with a page"),
            pytest.param(refusing(429, Retry_After="0"), id="429"),
        ],
    )
    @pytest.mark.parametrize("replicas", [1, 2])
    def test_a_request_survives(self, first: bytes | Handler, replicas: int) -> None:
        """On the other replica at once, or on the same one a little later."""

        async def test() -> None:
            async with Upstream(answering(first, tell), tcp=True) as one, Upstream(answering(tell), tcp=True) as two:
                urls = (one.address, two.address)[:replicas]
                async with remote_engine(remote_of(*urls)) as engine:
                    slept = Slept(engine)
                    found = await collect(engine.chat(ask()))
                    assert text(found) == "Once upon"
                    if replicas == 2:
                        assert slept.waits in ([], [0.0]), "another one was ready"

        run(test)

    def test_a_replica_that_takes_no_connections(self) -> None:
        async def test() -> None:
            async with (
                Upstream(answering(tell), tcp=True) as two,
                remote_engine(remote_of("http://127.0.0.1:9", two.address)) as engine,
            ):
                slept = Slept(engine)
                for _ in range(5):
                    assert text(await collect(engine.chat(ask()))) == "Once upon"
                assert sum(slept.waits) == 0
                assert "1 resting" in (await engine.health()).detail

        run(test)

    def test_never_after_the_first_token(self) -> None:
        async def test() -> None:
            async with (
                Upstream(answering(cut_after_a_token, tell), tcp=True) as one,
                remote_engine(remote_of(one.address)) as engine,
            ):
                found: list[Event] = []
                with pytest.raises(EngineFailedError, match="the remote 'cluster' broke off its answer"):
                    async for batch in engine.chat(ask()):
                        found += batch
                assert text(found) == "Once"
                assert sum(request.path.endswith("/completions") for request in one.requests) == 1

        run(test)

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 500])
    def test_never_where_it_cannot_help(self, status: int) -> None:
        async def test() -> None:
            async with (
                Upstream(answering(refusing(status), tell), tcp=True) as one,
                remote_engine(remote_of(one.address)) as engine,
            ):
                with pytest.raises(OprelError):
                    await collect(engine.chat(ask()))

        run(test)

    def test_embeddings_too(self) -> None:
        vectors = json_answer({"data": [{"index": 0, "embedding": [0.6, 0.8]}]})

        async def test() -> None:
            async with (
                Upstream(answering(cut, vectors), tcp=True) as one,
                remote_engine(remote_of(one.address)) as engine,
            ):
                Slept(engine)
                made = await engine.embed(EmbedRequest(("x",)))
                assert (made.vectors, made.prompt_tokens) == (((0.6, 0.8),), 0)

        run(test)

    def test_retry_after_is_honoured_within_a_limit(self) -> None:
        async def test() -> None:
            async with (
                Upstream(answering(refusing(429, Retry_After="3"), tell), tcp=True) as one,
                remote_engine(remote_of(one.address)) as engine,
            ):
                slept = Slept(engine)
                assert text(await collect(engine.chat(ask()))) == "Once upon"
                assert slept.waits == [pytest.approx(3.0)]
            async with (
                Upstream(answering(refusing(429, Retry_After="120")), tcp=True) as one,
                remote_engine(remote_of(one.address)) as engine,
            ):
                slept = Slept(engine)
                with pytest.raises(BusyError, match="is busy") as caught:
                    await collect(engine.chat(ask()))
                assert (slept.waits, caught.value.retry_after_s) == ([], 120.0)

        run(test)

    def test_a_remote_that_is_gone_keeps_nobody_waiting_for_long(self) -> None:
        """Some seconds when that is news, and none afterwards; each request has one try all the same."""

        async def test() -> None:
            async with remote_engine(remote_of("http://127.0.0.1:9")) as engine:
                slept = Slept(engine)
                with pytest.raises(RemoteGoneError, match="can't be reached: Connection refused"):
                    await collect(engine.chat(ask()))
                assert 1 < sum(slept.waits) <= RETRY_WAIT_S
                slept.waits.clear()
                slept.now += RETRY_WAIT_S
                with pytest.raises(RemoteGoneError):
                    await collect(engine.chat(ask()))
                assert slept.waits == []

        run(test)

    def test_it_comes_back_by_itself(self) -> None:
        async def test() -> None:
            async with (
                Upstream(answering(cut, cut, cut, cut, cut, cut, tell), tcp=True) as one,
                remote_engine(remote_of(one.address)) as engine,
            ):
                slept = Slept(engine)
                with pytest.raises(RemoteGoneError):
                    await collect(engine.chat(ask()))
                while slept.now < 1e9:
                    slept.now += 60
                    try:
                        found = await collect(engine.chat(ask()))
                    except RemoteGoneError:
                        continue
                    assert text(found) == "Once upon"
                    assert (await engine.health()).detail == "Its replicas: 1 ready."
                    return

        run(test)

    def test_a_stalled_replica_is_left_for_another(self) -> None:
        async def stall(_: Received, peer: Peer) -> None:
            await peer.stall()

        async def test() -> None:
            async with Upstream(answering(stall), tcp=True) as one, Upstream(answering(tell), tcp=True) as two:
                urls = (one.address, two.address)
                async with remote_engine(remote_of(*urls, timeout=0.2, context=4)) as engine:
                    for _ in range(3):
                        assert text(await collect(engine.chat(ask("x")))) == "Once upon"
                async with remote_engine(remote_of(one.address, timeout=0.2, context=4)) as engine:
                    with pytest.raises(EngineTimeoutError, match="the remote 'cluster' made no progress"):
                        await collect(engine.chat(ask("x")))

        run(test)


class TestReplicas:
    def test_load_is_shared(self) -> None:
        """Streams that run at once go to the least busy replica."""
        go = asyncio.Event()

        async def wait(_: Received, peer: Peer) -> None:
            await peer.send(stream_head(), chunk(sse(chat_chunk("a"))))
            await go.wait()
            await peer.send(chunk(sse(chat_chunk(finish="stop")) + DONE), LAST_CHUNK)

        async def test() -> None:
            async with (
                Upstream(answering(wait), tcp=True) as one,
                Upstream(answering(wait), tcp=True) as two,
                remote_engine(remote_of(one.address, two.address)) as engine,
            ):
                asked = [asyncio.create_task(collect(engine.chat(ask()))) for _ in range(6)]
                await eventually(lambda: sum(replica.standing.in_use for replica in engine.replicas) == 6)
                assert [replica.standing.in_use for replica in engine.replicas] == [3, 3]
                go.set()
                await asyncio.gather(*asked)
                assert [replica.standing.in_use for replica in engine.replicas] == [0, 0]

        run(test)

    def test_leaving_a_stream_gives_everything_back(self) -> None:
        gone = asyncio.Event()

        async def endless(_: Received, peer: Peer) -> None:
            await peer.send(stream_head(), chunk(sse(chat_chunk("a"))))
            await peer.wait_gone()
            gone.set()

        async def test() -> None:
            async with Upstream(answering(endless), tcp=True) as one, remote_engine(remote_of(one.address)) as engine:
                async with aclosing(engine.chat(ask())) as stream:
                    await anext(stream)
                await gone.wait()
                assert engine.replicas[0].standing.in_use == 0
                assert (await engine.health()).state == "ready"

        run(test)

    def test_cancelled_while_it_waits(self) -> None:
        async def silent(_: Received, peer: Peer) -> None:
            await peer.wait_gone()

        async def test() -> None:
            async with Upstream(answering(silent), tcp=True) as one, remote_engine(remote_of(one.address)) as engine:
                asking = asyncio.create_task(collect(engine.chat(ask())))
                await eventually(lambda: any(request.path.endswith("completions") for request in one.requests))
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
                assert engine.replicas[0].standing.in_use == 0
                assert engine.replicas[0].standing.state(0) == "ready"

        run(test)

    def test_stopping_ends_what_runs_and_tries_nothing_again(self) -> None:
        async def endless(_: Received, peer: Peer) -> None:
            await peer.send(stream_head(), chunk(sse(chat_chunk("a"))))
            await peer.wait_gone()

        async def test() -> None:
            async with Upstream(answering(endless), tcp=True) as one, remote_engine(remote_of(one.address)) as engine:
                ending = asyncio.create_task(engine.wait_dead())
                async with aclosing(engine.chat(ask())) as stream:
                    await anext(stream)
                    await engine.stop()
                    with pytest.raises(EngineFailedError):
                        await anext(stream)
                assert "given up" in await ending
                assert (await engine.health()).state == "dead"
                with pytest.raises(EngineFailedError):
                    await collect(engine.chat(ask()))
                await engine.stop()

        run(test)


class TestSentences:
    """What goes wrong is one sentence that names the remote and says what to do; no key and no address in it."""

    PAGE = b"<!DOCTYPE html><title>Log in</title>"

    @pytest.mark.parametrize(
        ("answer", "kind", "says"),
        [
            pytest.param(
                refusing(401), EngineFailedError, r"refuses its key \(status 401\): look at the .*CANARY", id="401"
            ),
            pytest.param(refusing(403), EngineFailedError, "refuses its key", id="403"),
            pytest.param(refusing(404), EngineFailedError, "doesn't have the model 'vendor/big'", id="no such model"),
            pytest.param(refusing(404, b'{"detail":"Not Found"}'), EngineFailedError, "Not Found", id="no such path"),
            pytest.param(refusing(404, PAGE), EngineFailedError, "web page", id="404 page"),
            pytest.param(whole_answer(PAGE, content_type="text/html"), EngineFailedError, "web page", id="page"),
            pytest.param(refusing(308, b"", Location="https://evil"), EngineFailedError, "redirects", id="redirect"),
            pytest.param(
                refusing(429, b'{"error":{"message":"You exceeded your current quota"}}'),
                EngineFailedError,
                "no quota left",
                id="quota",
            ),
            pytest.param(
                refusing(400, b'{"object":"error","message":"top_k must be positive","type":"BadRequest","code":400}'),
                InvalidRequestError,
                "the remote 'cluster' refused the request: top_k",
                id="vLLM of old",
            ),
            pytest.param(
                refusing(422, b'{"detail":[{"loc":["body","messages"],"msg":"field required","type":"x"}]}'),
                InvalidRequestError,
                "body.messages: field required",
                id="FastAPI",
            ),
            pytest.param(
                refusing(
                    400,
                    b'{"error":{"message":"This model\'s maximum context length is 8192 tokens. However, your messages '
                    b'resulted in 9001 tokens.","type":"invalid_request_error","code":"context_length_exceeded"}}',
                ),
                ContextLengthError,
                "9001 tokens",
                id="OpenAI's context",
            ),
            pytest.param(
                refusing(
                    400,
                    b'{"message":"The input (9000 tokens) is longer than the model\'s context length (8192 tokens)."}',
                ),
                ContextLengthError,
                "9000",
                id="SGLang's context",
            ),
            pytest.param(json_answer({"id": 1}), EngineFailedError, "nonsense", id="not a stream"),
            pytest.param(b"SSH-2.0-OpenSSH_9\r\n", EngineFailedError, "doesn't speak HTTP", id="not HTTP"),
            pytest.param(refusing(500, b'{"error":"boom"}'), EngineFailedError, "status 500: boom", id="500"),
        ],
    )
    def test_a_refusal(self, answer: bytes, kind: type[OprelError], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CANARY", KEY)

        async def test() -> None:
            async with (
                Upstream(answering(answer), tcp=True) as one,
                remote_engine(remote_of(one.address, key_env="CANARY")) as engine,
            ):
                with pytest.raises(kind, match=says) as caught:
                    await collect(engine.chat(ask()))
                message = caught.value.message
                assert "cluster" in message or isinstance(caught.value, ContextLengthError)
                assert "127.0.0.1" not in message
                assert "\n" not in message

        run(test)

    @pytest.mark.parametrize(
        "answer",
        [
            refusing(400, b'{"error":{"message":"invalid token ' + KEY.encode() + b'"}}'),
            refusing(500, b'{"error":"' + KEY.encode() + b'"}'),
            refusing(404, b'{"error":"' + KEY.encode() + b'"}'),
            refusing(429, b'{"error":"' + KEY.encode() + b'"}', Retry_After="99"),
            json_answer({"authorization": f"Bearer {KEY}"}),
            b"".join([stream_head(), chunk(b'data: {"error":{"message":"' + KEY.encode() + b'"}}\n\n')]),
        ],
        ids=["400", "500", "404", "429", "nonsense", "in the stream"],
    )
    def test_a_server_that_says_our_key_aloud(
        self, answer: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("CANARY", KEY)
        caplog.set_level(0)

        async def test() -> None:
            async with (
                Upstream(answering(answer), tcp=True) as one,
                remote_engine(remote_of(one.address, key_env="CANARY")) as engine,
            ):
                assert one.requests[0].headers["authorization"] == f"Bearer {KEY}"
                with pytest.raises(OprelError) as caught:
                    await collect(engine.chat(ask()))
                seen = [str(caught.value), repr(caught.value), repr(caught.value.args), *engine.log_tail()]
                seen += [repr(engine), repr(engine.plan), str((await engine.health()).detail)]
                assert KEY not in "\n".join(seen)

        run(test)
        assert KEY not in caplog.text

    def test_no_key_where_one_is_wanted(self) -> None:
        async def test() -> None:
            async with (
                Upstream(answering(refusing(401)), tcp=True) as one,
                remote_engine(remote_of(one.address)) as engine,
            ):
                with pytest.raises(EngineFailedError, match=r"wants a key .* name one with key_env or key_file"):
                    await collect(engine.chat(ask()))

        run(test)

    def test_an_error_in_the_stream(self) -> None:
        told = chunk(b'data: {"object":"error","message":"the worker died","code":500}\n\n')

        async def test() -> None:
            async with (
                Upstream(answering(b"".join([stream_head(), told])), tcp=True) as one,
                remote_engine(remote_of(one.address)) as engine,
            ):
                with pytest.raises(EngineFailedError, match="the worker died"):
                    await collect(engine.chat(ask()))

        run(test)


class TestHabits:
    """Servers that are OpenAI's more or less."""

    @pytest.mark.parametrize(
        ("pieces", "expected"),
        [
            pytest.param(sse(chat_chunk("a"), chat_chunk(finish="stop")) + DONE, (0, 1), id="no usage"),
            pytest.param(sse(chat_chunk("a"), chat_chunk("b")) + DONE, (0, 2), id="DONE without a finish"),
            pytest.param(sse(chat_chunk("a"), chat_chunk(finish="stop", usage=None)), (0, 1), id="no DONE"),
        ],
    )
    def test_ends(self, pieces: bytes, expected: tuple[int, int]) -> None:
        async def test() -> None:
            answer = b"".join([stream_head(), chunk(pieces), LAST_CHUNK])
            async with Upstream(answering(answer), tcp=True) as one, remote_engine(remote_of(one.address)) as engine:
                finish = (await collect(engine.chat(ask())))[-1]
                assert isinstance(finish, Finish)
                assert (finish.reasons, (finish.usage.prompt, finish.usage.completion)) == (("stop",), expected)

        run(test)

    def test_an_answer_without_an_end_is_a_failure(self) -> None:
        async def test() -> None:
            answer = b"".join([stream_head(), chunk(sse(chat_chunk("a"))), LAST_CHUNK])
            async with Upstream(answering(answer), tcp=True) as one, remote_engine(remote_of(one.address)) as engine:
                with pytest.raises(EngineFailedError, match="the remote 'cluster' ended its answer without a finish"):
                    await collect(engine.chat(ask()))

        run(test)

    def test_a_request_to_a_server_that_nobody_knows(self) -> None:
        """Its own name for the model, and nothing that isn't OpenAI's."""

        async def test() -> None:
            async with Upstream(chat_server(*story("a")), tcp=True) as one:
                async with remote_engine(remote_of(f"{one.address}/openai/v1")) as engine:
                    await collect(engine.chat(ask(temperature=0.5, max_tokens=3, logit_bias=((5, -1.0),), seed=1)))
                sent: Any = one.requests[-1].json
                assert one.requests[-1].path == "/openai/v1/chat/completions"
                assert sent.pop("messages") == [{"role": "user", "content": "hi"}]
                assert sent == {
                    "model": "vendor/big", "stream": True, "stream_options": {"include_usage": True},
                    "temperature": 0.5, "max_tokens": 3, "seed": 1, "logit_bias": {"5": -1.0},
                }  # fmt: skip

        run(test)
