"""Recorded engines: what goes in comes out, at its time, and what isn't in is refused with the nearest that is."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from oprel.drivers import ContextLengthError, Engine, EngineFailedError, EngineStartError
from oprel.errors import BusyError
from oprel.schema import (
    ChatRequest,
    CompletionRequest,
    EmbedRequest,
    Hardware,
    ImagePart,
    LoadOptions,
    Message,
    Model,
    Sampling,
    TextPart,
)
from oprel.testing import FakeClock, Script, ScriptedDriver, scripted_model
from oprel.testing.cassette import (
    Cassette,
    CassetteError,
    NotRecordedError,
    asked,
    error_of,
    recorded_error,
    scrubbed,
)
from oprel.testing.cassette_server import OpenCassette, played
from oprel.testing.player import PlayingDriver
from oprel.testing.recorder import RecordingDriver
from oprel.testing.subject import Answer, ask, chat_request, completion_request

HARDWARE = Hardware("Linux", "x86_64", cores=2, threads=2, ram_total_bytes=2**34, ram_available_bytes=2**33)
CHAT = scripted_model("tiny:latest")
EMBED = scripted_model("mini:latest", capabilities=frozenset({"embedding"}))


async def start(driver: Any, model: Model = CHAT) -> Engine:
    return await driver.start(driver.plan(model, LoadOptions(), HARDWARE))


def recorded_on(path: Path, script: Script, *requests: Any) -> None:
    """Asks a scripted engine, and records it."""

    async def record() -> None:
        cassette = Cassette(name=path.name)
        driver = RecordingDriver(ScriptedDriver(script), cassette)
        engines = {"chat": await start(driver), "embed": await start(driver, EMBED)}
        for request in requests:
            try:
                if isinstance(request, EmbedRequest):
                    await engines["embed"].embed(request)
                else:
                    await ask(stream(engines["chat"], request))
            except (ContextLengthError, EngineFailedError):
                pass
        cassette.save(path)

    asyncio.run(record())


def stream(engine: Engine, request: Any) -> Any:
    return engine.chat(request) if isinstance(request, ChatRequest) else engine.complete(request)


def played_back(path: Path, request: Any, *, times: int = 1) -> list[Answer]:
    async def play() -> list[Answer]:
        engine = await start(PlayingDriver(Cassette.load(path)))
        return [await ask(stream(engine, request)) for _ in range(times)]

    return asyncio.run(play())


def test_what_was_recorded_is_played(tmp_path: Path) -> None:
    path = tmp_path / "tape.jsonl"
    script = Script(text=("Hé", "llo 🙂"), thinking=("hm",), batch=2)
    recorded_on(path, script, chat_request("a"), completion_request("b", logprobs=1))
    (answer,) = played_back(path, chat_request("a"))
    assert (answer.text, answer.written) == ("Héllo 🙂", "hmHéllo 🙂")
    assert answer.finish.usage.prompt == 2
    (other,) = played_back(path, completion_request("b", logprobs=1))
    assert other.events[-2].logprobs[0].token == "llo 🙂"  # type: ignore[union-attr]


def test_a_request_is_matched_however_it_is_written(tmp_path: Path) -> None:
    """Defaults that say nothing, and the server's own limit of time, make no difference."""
    path = tmp_path / "tape.jsonl"
    recorded_on(path, Script(), ChatRequest((Message("user", (TextPart("a"),)),), Sampling(max_tokens=3, stop=())))
    request = ChatRequest(
        (Message("user", (TextPart("a"),)),), Sampling(max_tokens=3, time_limit_s=9.0), tools=(), logprobs=None
    )
    assert played_back(path, request)[0].text


def test_the_same_request_has_its_answers_in_order_and_then_the_last_again(tmp_path: Path) -> None:
    path = tmp_path / "tape.jsonl"
    numbers = iter(("one", "two"))
    script = Script(text=lambda request: (next(numbers),))
    recorded_on(path, script, chat_request("a"), chat_request("a"))
    assert [answer.text for answer in played_back(path, chat_request("a"), times=4)] == ["one", "two", "two", "two"]


def test_what_is_not_recorded_names_what_is_nearest(tmp_path: Path) -> None:
    path = tmp_path / "tape.jsonl"
    recorded_on(path, Script(), chat_request("a", max_tokens=7), chat_request("a quite different thing"))
    with pytest.raises(NotRecordedError) as caught:
        played_back(path, chat_request("a", max_tokens=8))
    assert "tape.jsonl has no answer to this chat of 'tiny:latest'" in caught.value.message
    assert "sampling.max_tokens: 7 recorded, 8 asked" in caught.value.message
    assert "--oprel-record" in caught.value.message


def test_vectors_tokens_and_failures_are_played_too(tmp_path: Path) -> None:
    path = tmp_path / "tape.jsonl"
    long = completion_request("word " * 5000)
    recorded_on(path, Script(), EmbedRequest(("a", "b")), long)

    async def play() -> None:
        driver = PlayingDriver(Cassette.load(path))
        found = await (await start(driver, EMBED)).embed(EmbedRequest(("a", "b")))
        assert len(found.vectors) == 2
        assert len(found.vectors[0]) == 8
        with pytest.raises(ContextLengthError) as caught:
            await ask((await start(driver)).complete(long))
        assert (caught.value.prompt_tokens, caught.value.context_tokens) == (5000, 4096)

    asyncio.run(play())


def test_an_answer_whose_reader_left_ends_where_the_reader_left(tmp_path: Path) -> None:
    path = tmp_path / "tape.jsonl"

    async def record() -> None:
        cassette = Cassette(name=path.name)
        engine = await start(RecordingDriver(ScriptedDriver(Script(endless=True)), cassette))
        answer = engine.complete(completion_request("a", max_tokens=None))
        await anext(answer)
        await answer.aclose()
        cassette.save(path)

    asyncio.run(record())
    with pytest.raises(CassetteError, match="its reader left"):
        played_back(path, completion_request("a", max_tokens=None))


@pytest.mark.parametrize(("pace", "expected"), [(1.0, 3.0), (0.5, 1.5), (0.0, 0.0)])
def test_it_plays_at_the_pace_that_is_wanted(tmp_path: Path, pace: float, expected: float) -> None:
    path = tmp_path / "tape.jsonl"
    recorded_on(path, Script(text=("a", "b")), chat_request("a"))
    cassette = Cassette.load(path)
    answer = cassette.exchanges[0].answer
    assert answer is not None
    cassette.exchanges[0].answer = [((number + 1) * 1500.0, batch) for number, (_, batch) in enumerate(answer)][:2]

    async def play() -> float:
        clock = FakeClock()
        engine = await start(PlayingDriver(cassette, pace=pace, clock=clock))
        began = clock.monotonic()
        reading = asyncio.create_task(ask(engine.chat(chat_request("a"))))
        while not reading.done():
            await asyncio.sleep(0)
            await clock.advance(0.25)
            if clock.monotonic() - began >= expected:
                break
        for _ in range(20):
            await asyncio.sleep(0)
        assert reading.done()
        return clock.monotonic() - began

    assert asyncio.run(play()) == pytest.approx(expected, abs=0.3)


def test_a_cassette_holds_no_place_no_picture_and_no_licence(tmp_path: Path) -> None:
    path = tmp_path / "tape.jsonl"
    picture = ImagePart(b"\x89PNG" + b"x" * 10_000)
    request = ChatRequest((Message("user", (TextPart("a"), picture)),), Sampling())
    script = Script(capabilities=msgspec.structs.replace(ScriptedDriver.can, vision=True))
    recorded_on(path, script, request)
    text = path.read_text()
    assert "/models" not in text
    assert len(text) < 8000
    assert '"sha256":' in text
    with pytest.raises(NotRecordedError):
        other = ChatRequest((Message("user", (TextPart("a"), ImagePart(b"other"))),), Sampling())
        played_back(path, other)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "line 1"),
        (b"hello\n", "line 1"),
        (b'{"cassette":2}\n', "format 2, and this Oprel plays 1"),
        (b'{"cassette":1}\n{"engine":"a"}\n', "line 2"),
        (b'{"cassette":1}\n{"engine":"a","kind":"sing","request":{}}\n', "line 2"),
        (b'{"cassette":1}\n\xff\n', "line 2"),
        (b'{"cassette":1}\n{"engine":"a","kind":"chat","request":{},"answer":[[1,[{"type":"?"}]]]}\n', "line 2"),
    ],
    ids=["empty", "text", "newer", "short", "kind", "bytes", "event"],
)
def test_a_file_that_is_no_cassette_says_where(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "tape.jsonl"
    path.write_bytes(content)
    with pytest.raises(CassetteError, match=r"tape\.jsonl") as caught:
        Cassette.load(path)
    assert said in caught.value.message


def test_a_cassette_that_is_not_there_says_how_to_record_it(tmp_path: Path) -> None:
    with pytest.raises(CassetteError, match="--oprel-record"):
        Cassette.load(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    "error",
    [
        EngineStartError("no room", driver="x", cause="memory"),
        BusyError("later", retry_after_s=3.0),
        ContextLengthError("too long", prompt_tokens=2, context_tokens=1),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_come_back_as_they_were(error: Any) -> None:
    back = error_of(json.loads(json.dumps(recorded_error(error))))
    assert type(back) is type(error)
    assert str(back) == str(error)
    facts = {name: value for name, value in vars(error).items() if value is not None}
    assert facts.items() <= vars(back).items()


def test_an_error_of_no_kind_that_is_known_is_one_all_the_same() -> None:
    assert error_of({"type": "system", "message": "x"}).message == "x"


def test_paths_are_cut_down_to_their_last_part() -> None:
    assert scrubbed("can't open /home/me/models/a.gguf: no") == "can't open …/a.gguf: no"
    assert scrubbed("1/2 of a/b and n/a") == "1/2 of a/b and n/a"


def test_requests_are_told_without_what_says_nothing() -> None:
    assert asked(CompletionRequest("a", Sampling(max_tokens=0))) == {"prompt": "a", "sampling": {"max_tokens": 0}}


def test_an_application_tests_against_its_model_without_an_engine(tmp_path: Path) -> None:
    path = tmp_path / "tape.jsonl"
    request = CompletionRequest("Hello", Sampling(temperature=0.0, max_tokens=4))
    recorded_on(path, Script(), request)
    with played(path) as server:
        body = {"model": "tiny", "prompt": "Hello", "raw": True, "stream": False, "options": {"num_predict": 4}}
        answer = httpx.post(f"{server.url}/api/generate", json=body)
        assert answer.status_code == 400
        assert "sampling.temperature: 0.0 recorded, 0.8 asked" in answer.json()["error"]


def test_the_fixture_takes_its_tapes_from_beside_the_test(oprel_cassette: OpenCassette) -> None:
    server = oprel_cassette("cassettes/llama_cpp.jsonl", pace=0)
    models = httpx.get(f"{server.openai_url}/models").json()["data"]
    assert {model["id"] for model in models} == {"smollm2:135m", "all-minilm:latest"}
    assert {model["oprel"]["driver"] for model in models} == {"cassette"}
