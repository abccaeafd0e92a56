"""The contract on remotes: another Oprel in front of a real engine, and a bare llama-server, both over TCP."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from support.models import CHAT_MODEL, EMBED_MODEL
from support.real_engine import real_engine_on_tcp
from support.remote import model_of, remote_of
from support.servers import RealServer

from oprel.config import Remote
from oprel.drivers import DriverOptions
from oprel.drivers.openai import OpenAIDriver
from oprel.testing.contract import DriverContract, Subject

KEY = "a-key-of-the-tests"


def make(remote: Remote, options: DriverOptions) -> OpenAIDriver:
    return OpenAIDriver(
        DriverOptions(run_dir=options.run_dir, remotes=(remote,), stall_timeout_s=options.stall_timeout_s)
    )


def subject_of(remote: Remote, **changes: object) -> Subject:
    """Nothing here is the driver's own to kill, to damage or to leave behind; the engine's processes are the test's."""
    return Subject(make=partial(make, remote), leftovers=tuple, **changes)  # type: ignore[arg-type]


class TestAnotherOprel(DriverContract):
    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls, real_server: RealServer) -> Subject:
        chat = remote_of(
            real_server.url,
            models={"chat": CHAT_MODEL, "embed": EMBED_MODEL},
            slots=2,  # no more than it has: the rules open streams that nobody reads
            capabilities=["chat", "complete", "json_schema", "logprobs"],
        )
        for model in (CHAT_MODEL, EMBED_MODEL):  # loaded before anything is timed
            httpx.post(f"{real_server.url}/api/generate", json={"model": model}, timeout=60)
        return subject_of(chat, chat=model_of(chat, "chat"))


class TestAnotherOprelsEmbeddings(DriverContract):
    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls, real_server: RealServer) -> Subject:
        remote = remote_of(real_server.url, models={"embed": EMBED_MODEL}, capabilities=["embed"])
        return subject_of(remote, embed=model_of(remote, "embed"))


class TestLlamaServer(DriverContract):
    """With a key, found out by what it says of itself."""

    @pytest.fixture(scope="class")
    @classmethod
    def engine_url(cls, smollm2_path: Path) -> Iterator[str]:
        with real_engine_on_tcp(smollm2_path, key=KEY) as engine:
            yield engine.address

    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls, engine_url: str, tmp_path_factory: pytest.TempPathFactory) -> Subject:
        key_file = tmp_path_factory.mktemp("key") / "key"
        key_file.write_text(KEY)
        stated = ["chat", "complete", "json_schema", "grammar", "logprobs"]
        remote = remote_of(engine_url, slots=2, key_file=str(key_file), capabilities=stated)
        return subject_of(remote, chat=model_of(remote))
