"""A remote engine for tests, in front of stand-in upstreams or of real servers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from oprel.config import Remote
from oprel.config.remotes import Origin, read_remotes
from oprel.drivers import DriverOptions
from oprel.drivers.openai import OpenAIDriver
from oprel.drivers.openai.engine import RemoteEngine
from oprel.schema import Hardware, LoadOptions, Model
from oprel.store.remote_shelf import RemoteShelf
from support.http_upstream import (
    DONE,
    LAST_CHUNK,
    Handler,
    Peer,
    Received,
    chat_chunk,
    chunk,
    json_answer,
    sse,
    stream_head,
)

__all__ = ["HARDWARE", "MODEL", "chat_server", "listing", "model_of", "remote_engine", "remote_of", "story"]

MODEL = "big"
HARDWARE = Hardware("Linux", "x86_64", cores=2, threads=2, ram_total_bytes=2**34, ram_available_bytes=2**33)


def remote_of(*urls: str, name: str = "cluster", **fields: Any) -> Remote:
    """As the settings would read it; one model, `big`, which is `vendor/big` there, unless `models` says otherwise."""
    table = {"urls": list(urls), "models": {MODEL: "vendor/big"}, **fields}
    if table["models"] is None:
        del table["models"]
    origin = Origin("a test", Path.cwd(), Path.cwd(), written_at=1_700_000_000.0)
    return read_remotes({name: table}, origin)[0]


def model_of(remote: Remote, name: str = MODEL) -> Model:
    found = RemoteShelf((remote,)).find(name)
    assert found is not None
    return found


@asynccontextmanager
async def remote_engine(
    remote: Remote, *, run_dir: str = "/nonexistent", stall_timeout_s: float = 20.0
) -> AsyncGenerator[RemoteEngine, None]:
    driver = OpenAIDriver(DriverOptions(run_dir=run_dir, remotes=(remote,), stall_timeout_s=stall_timeout_s))
    engine = await driver.start(driver.plan(model_of(remote), LoadOptions(), HARDWARE))
    assert isinstance(engine, RemoteEngine)
    try:
        yield engine
    finally:
        await engine.stop()


def listing(*ids: str, **fields: Any) -> bytes:
    """An answer to GET /models."""
    rows = [{"id": name, "object": "model", "created": 1_700_000_001, "owned_by": "x", **fields} for name in ids]
    return json_answer({"object": "list", "data": rows})


def story(*words: str) -> list[bytes]:
    """A streamed chat, whole."""
    usage = {"prompt_tokens": 5, "completion_tokens": len(words), "total_tokens": 5 + len(words)}
    events = [*(chat_chunk(word) for word in words), chat_chunk(finish="stop"), {"choices": [], "usage": usage}]
    return [stream_head(), *(chunk(sse(event)) for event in events), chunk(DONE), LAST_CHUNK]


def chat_server(*pieces: bytes, ids: Sequence[str] = ("vendor/big",), **fields: Any) -> Handler:
    """Lists `ids`, and answers every other request with `pieces`."""

    async def answer(request: Received, peer: Peer) -> None:
        if request.path.endswith("/models"):
            await peer.send(listing(*ids, **fields))
        elif request.path.endswith("/version"):
            await peer.send(json_answer({"version": "0.1"}))
        else:
            await peer.send(*pieces)

    return answer
