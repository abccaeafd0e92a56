"""The clients' way to make models: files are sent once, what is refused is our error."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.servers import ScriptedServer, scripted_server
from support.tiny_gguf import write_tiny_gguf

from oprel import AsyncClient, Client
from oprel.errors import InvalidRequestError
from oprel.store import Catalog, Store


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ScriptedServer]:
    with scripted_server(catalog=Catalog(Store(tmp_path / "models", state_dir=tmp_path / "state"))) as server:
        yield server


def test_a_file_becomes_a_model(server: ScriptedServer, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf")
    with Client(server.url) as client:
        digest = client.create_blob(path)
        assert digest == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        assert client.has_blob(digest)
        assert client.create_blob(str(path)) == digest
        parts = client.create("m", files={"m.gguf": digest}, system="S", parameters={"top_k": 3}, stream=True)
        assert parts is not None
        assert [part.status for part in parts][-2:] == ["writing manifest", "success"]
        assert client.create("n", from_="m", license=["MIT"]) is None
        shown = client.show("n")
        assert (shown.system, shown.license) == ("S", "MIT")


def test_and_without_waiting(server: ScriptedServer, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf")

    async def run() -> None:
        async with AsyncClient(server.url) as client:
            digest = await client.create_blob(path)
            assert await client.has_blob(digest)
            assert not await client.has_blob("sha256:" + "ab" * 32)
            assert await client.create("m", files={"m.gguf": digest}) is None
            assert (await client.show("m")).details.format == "gguf"

    asyncio.run(run())


def test_what_is_refused_late_is_the_requests_fault(server: ScriptedServer, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"no model")
    with Client(server.url) as client:
        digest = client.create_blob(other)
        with pytest.raises(InvalidRequestError, match=r"^supplied file was not in GGUF format$"):
            client.create("m", files={"other.gguf": digest})
        with pytest.raises(InvalidRequestError, match=r"^unknown parameter 'x'$"):
            client.create("m", from_="n", parameters={"x": 1})
        with pytest.raises(InvalidRequestError, match="isn't a file that can be read"):
            client.create_blob(tmp_path)
