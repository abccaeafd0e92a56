"""Two real engines as replicas behind a real server, one of them killed under load."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from openai import APIError, AsyncOpenAI
from support.real_engine import RealEngine, real_engine_on_tcp
from support.servers import RealServer, real_server

from oprel.testing import eventually

pytest.importorskip("xllamacpp")

REQUESTS = 8
SLOTS = 2


@dataclass
class Outcome:
    """What one client saw. `error` is what its stream said at its end, if it didn't end well."""

    tokens: int = 0
    is_whole: bool = False
    error: str | None = None


@pytest.fixture
def engines(smollm2_path: Path) -> Iterator[list[RealEngine]]:
    with ExitStack() as running:
        yield [running.enter_context(real_engine_on_tcp(smollm2_path, slots=SLOTS)) for _ in range(2)]


@pytest.fixture
def server(engines: list[RealEngine], tmp_path: Path) -> Iterator[RealServer]:
    config = tmp_path / "config.toml"
    urls = ", ".join(f'"{engine.address}"' for engine in engines)
    config.write_text(f'[remote.pair]\nurls = [{urls}]\nmodels = {{ pair = "x" }}\n')
    with real_server(environ={"OPREL_CONFIG": str(config)}) as server:
        yield server


async def ask(client: AsyncOpenAI, outcome: Outcome, *, max_tokens: int) -> None:
    try:
        stream = await client.chat.completions.create(
            model="pair",
            messages=[{"role": "user", "content": "Tell a long story about a lighthouse."}],
            max_tokens=max_tokens,
            temperature=0,
            stream=True,
        )
        async for chunk in stream:
            outcome.tokens += bool(chunk.choices and chunk.choices[0].delta.content)
            outcome.is_whole |= bool(chunk.choices and chunk.choices[0].finish_reason)
    except APIError as error:
        outcome.error = error.message


def test_no_request_that_had_not_begun_is_lost(server: RealServer, engines: list[RealEngine]) -> None:
    """Each replica has two slots, so that of eight requests four stream and four wait when one replica dies. Those
    that stream from it are told; those that wait for it are answered by the other; later ones never notice."""

    async def test() -> list[Outcome]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0, timeout=90) as client:
            outcomes = [Outcome() for _ in range(REQUESTS)]
            asking = [asyncio.create_task(ask(client, outcome, max_tokens=150)) for outcome in outcomes]
            await eventually(lambda: sum(outcome.tokens > 0 for outcome in outcomes) >= 2 * SLOTS, limit_s=60)
            begun = [outcome for outcome in outcomes if outcome.tokens]
            engines[0].kill()
            await asyncio.gather(*asking)
            failed = [outcome for outcome in outcomes if outcome.error is not None]
            assert 1 <= len(failed) <= SLOTS, outcomes
            assert all(outcome in begun for outcome in failed), "only those that had begun"
            assert all("broke off" in (outcome.error or "") for outcome in failed), failed
            assert all(outcome.is_whole for outcome in outcomes if outcome not in failed)
            later = [Outcome() for _ in range(REQUESTS)]
            await asyncio.gather(*(ask(client, outcome, max_tokens=8) for outcome in later))
            return later

    later = asyncio.run(test())
    assert all(outcome.is_whole and outcome.error is None for outcome in later), later
    loaded = httpx.get(f"{server.url}/api/ps").json()["models"]
    assert [(model["name"], model["oprel"]["device"], model["size"]) for model in loaded] == [
        ("pair:latest", "remote", 0)
    ]


def test_with_all_of_them_gone_it_is_one_sentence(server: RealServer, engines: list[RealEngine]) -> None:
    for engine in engines:
        engine.kill()
    answer = httpx.post(
        f"{server.url}/v1/chat/completions",
        json={"model": "pair", "messages": [{"role": "user", "content": "hi"}]},
        timeout=60,
    )
    assert answer.status_code == 502
    assert answer.json()["error"]["message"] == "the remote 'pair' can't be reached: Connection refused"
