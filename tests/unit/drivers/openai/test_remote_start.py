"""From a plan to an engine: what is asked of a remote first, and what is wrong with settings."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.certificates import make_certificate
from support.http_upstream import Handler, Peer, Received, Upstream, json_answer, whole_answer
from support.remote import HARDWARE, chat_server, listing, model_of, remote_engine, remote_of, story
from support.upstream_engine import ask, collect

from oprel.drivers import DriverOptions, EngineStartError, UnsupportedError
from oprel.drivers.openai import OpenAIDriver
from oprel.drivers.openai.servers import SERVERS, capabilities_of, server_by_owner
from oprel.errors import EngineFailedError
from oprel.schema import ALL_SAMPLING, LoadOptions, Sampling, Thinking

KEY = "sk-canary-4f1d2c3b5a697887"


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test()

    asyncio.run(bounded())


def driver_of(*remotes: Any) -> OpenAIDriver:
    return OpenAIDriver(DriverOptions(run_dir="/nonexistent", remotes=remotes))


class TestDriver:
    def test_without_remotes_it_says_how_to_have_one(self) -> None:
        available = driver_of().availability(HARDWARE)
        assert not available.usable
        assert "[remote.NAME]" in available.reason

    def test_with_remotes_it_names_them(self) -> None:
        available = driver_of(remote_of("http://a", "http://b"), remote_of("http://c", name="x")).availability(HARDWARE)
        assert (available.usable, available.reason) == (True, "remotes: cluster (2 replicas), x (1 replica)")

    def test_a_plan_takes_nothing_here_and_explains_itself(self) -> None:
        remote = remote_of("http://a:1", "https://b/v1", context=4096, slots=3, key_env="K", verify=False)
        plan = driver_of(remote).plan(model_of(remote), LoadOptions(context_tokens=99, slots=1), HARDWARE)
        assert (plan.device, plan.bytes_by_device, plan.files, plan.argv, plan.threads) == ("remote", (), (), (), 0)
        assert (plan.context_tokens, plan.slots, plan.engine) == (4096, 6, "cluster")
        reasons = dict(plan.reasons)
        assert "'vendor/big' at http://a:1/v1 and https://b/v1" in reasons["remote"]
        assert "environment variable K" in reasons["key"]
        assert {"certificate", "plain_http", "options"} <= set(reasons)

    @pytest.mark.parametrize("changes", [{"remote": None}, {"format": "gguf"}])
    def test_other_models_are_others(self, changes: dict[str, Any]) -> None:
        remote = remote_of("http://a")
        model = msgspec.structs.replace(model_of(remote), **changes)
        assert not driver_of(remote).supports(model).supported
        with pytest.raises(UnsupportedError):
            driver_of(remote).plan(model, LoadOptions(), HARDWARE)

    def test_a_remote_that_was_taken_out_of_the_settings(self) -> None:
        remote = remote_of("http://a")
        assert "no [remote.cluster]" in driver_of().supports(model_of(remote)).reason
        plan = driver_of(remote).plan(model_of(remote), LoadOptions(), HARDWARE)
        with pytest.raises(EngineStartError, match="isn't configured any more"):
            asyncio.run(driver_of().start(plan))


class TestServers:
    @pytest.mark.parametrize(
        ("owner", "version", "kind"),
        [
            ("vllm", {}, "vllm"),
            ("sglang", {}, "sglang"),
            ("llamacpp", {}, "llama_server"),
            ("library", {"version": "0.33.0", "oprel": "1.0.0"}, "oprel"),
            ("library", {"version": "0.33.0"}, "openai"),
            ("somebody", None, "openai"),
        ],
    )
    def test_it_is_found_out_by_what_it_says_of_itself(
        self, owner: str, version: dict[str, str] | None, kind: str
    ) -> None:
        async def answer(request: Received, peer: Peer) -> None:
            if request.path == "/v1/models":
                await peer.send(listing("vendor/big", owned_by=owner, max_model_len=777))
            elif version is None:
                await peer.send(whole_answer(b"<html>", status=404, content_type="text/html"))
            else:
                await peer.send(json_answer(version))

        async def test() -> None:
            async with Upstream(answer, tcp=True) as one, remote_engine(remote_of(one.address)) as engine:
                assert ("server", f"it is asked as {kind}") in engine.plan.reasons
                assert engine.capabilities.sampling == SERVERS[kind].sampling
                assert (engine.plan.context_tokens, engine.capabilities.context_tokens) == (777, 777)

        run(test)

    def test_what_is_configured_is_not_asked(self) -> None:
        fields: dict[str, Any] = {"server": "vllm", "context": 512, "capabilities": ["chat", "tools"]}

        async def test() -> None:
            async with (
                Upstream(chat_server(*story("a")), tcp=True) as one,
                remote_engine(remote_of(one.address, **fields)) as engine,
            ):
                assert one.requests == []
                assert engine.capabilities.chat and engine.capabilities.tools and not engine.capabilities.embed
                assert engine.plan.context_tokens == 512

        run(test)

    def test_openais_own_server_is_known_by_its_name(self) -> None:
        remote = remote_of("https://api.openai.com/v1", context=8, capabilities=["chat"])

        async def test() -> None:
            async with remote_engine(remote) as engine:
                assert ("server", "it is asked as openai.com") in engine.plan.reasons

        run(test)

    @pytest.mark.parametrize(
        "answer",
        [
            whole_answer(b"<html>", content_type="text/html"),
            whole_answer(b"{}", status=404),
            json_answer({"data": [{"id": "something else"}]}),
            json_answer([1, 2]),
            b"nonsense\r\n\r\n",
        ],
        ids=["page", "404", "not listed", "garbage", "not HTTP"],
    )
    def test_a_remote_that_tells_rubbish_starts_all_the_same(self, answer: bytes) -> None:
        """Who answers nothing at all does too: whether it is there is found out by asking it for something."""

        async def rubbish(_: Received, peer: Peer) -> None:
            await peer.send(answer)
            await peer.close()

        async def test() -> None:
            async with Upstream(rubbish, tcp=True) as one, remote_engine(remote_of(one.address)) as engine:
                assert (await engine.health()).state == "ready"
            async with remote_engine(remote_of("http://127.0.0.1:9")) as engine:
                assert (await engine.health()).state == "ready"

        run(test)

    @pytest.mark.parametrize("name", SERVERS)
    def test_rows_are_sound(self, name: str) -> None:
        server = SERVERS[name]
        assert server.sampling <= ALL_SAMPLING
        assert {field for field, _ in server.quirks.renamed} <= set(Sampling.__struct_fields__)
        everything = capabilities_of(server, stated=None, told=frozenset(), context_tokens=None)
        assert not any(getattr(everything, denied) for denied in server.denies)
        assert all(server_by_owner([owner]) == name for owner in server.owners)

    def test_capabilities_that_a_remote_tells(self) -> None:
        told = capabilities_of(SERVERS["oprel"], stated=None, told=frozenset({"embedding"}), context_tokens=None)
        assert (told.embed, told.chat, told.complete) == (True, False, False)


class TestRequests:
    """What is said to servers of different kinds."""

    @pytest.mark.parametrize(
        ("kind", "expected"),
        [
            ("oprel", {"reasoning_effort": "none"}),
            ("vllm", {"chat_template_kwargs": {"enable_thinking": False}}),
            ("openai", {}),
        ],
    )
    def test_no_thinking(self, kind: str, expected: dict[str, Any]) -> None:
        async def test() -> None:
            async with Upstream(chat_server(*story("a")), tcp=True) as one:
                async with remote_engine(remote_of(one.address, server=kind)) as engine:
                    request = msgspec.structs.replace(ask(), thinking=Thinking(enabled=False))
                    await collect(engine.chat(request))
                sent = one.requests[-1].json
                for known in ("model", "stream", "stream_options", "messages"):
                    del sent[known]
                assert sent == expected

        run(test)

    def test_penalties_have_other_names_elsewhere(self) -> None:
        async def test() -> None:
            async with Upstream(chat_server(*story("a")), tcp=True) as one:
                async with remote_engine(remote_of(one.address, server="vllm")) as engine:
                    await collect(engine.chat(ask(repeat_penalty=1.5, top_k=3)))
                    with pytest.raises(UnsupportedError, match="typical_p"):
                        await collect(engine.chat(ask(typical_p=0.5)))
                sent = one.requests[-1].json
                assert (sent["repetition_penalty"], sent["top_k"]) == (1.5, 3)

        run(test)


class TestSettings:
    @pytest.fixture
    def chat(self) -> Handler:
        return chat_server(*story("a"))

    def test_a_key_that_is_missing(self) -> None:
        async def test() -> None:
            with pytest.raises(EngineStartError, match=r"the key of remote 'cluster' is missing: .* NOBODY_SET_THIS"):
                async with remote_engine(remote_of("http://127.0.0.1:9", key_env="NOBODY_SET_THIS")):
                    pass

        run(test)

    def test_certificates_that_are_none(self, tmp_path: Path) -> None:
        (tmp_path / "bad.pem").write_text("no certificate")

        async def test() -> None:
            for name in ("missing.pem", "bad.pem"):
                remote = remote_of("https://127.0.0.1:9", ca_file=str(tmp_path / name))
                with pytest.raises(EngineStartError, match=f"the certificates of remote 'cluster' .*{name}"):
                    async with remote_engine(remote):
                        pass

        run(test)

    def test_an_own_authority(self, chat: Handler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        certificate = make_certificate(tmp_path)
        monkeypatch.setenv("CANARY", KEY)

        async def test() -> None:
            async with Upstream(chat, tls=certificate.server_context()) as one:
                fields: dict[str, Any] = {"ca_file": str(certificate.file), "key_env": "CANARY"}
                async with remote_engine(remote_of(one.address, **fields)) as engine:
                    await collect(engine.chat(ask()))
                assert one.requests[-1].headers["authorization"] == f"Bearer {KEY}"

        run(test)

    def test_a_certificate_that_nobody_vouches_for(
        self, chat: Handler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Told at once, since waiting won't make it better; the key never left."""
        certificate = make_certificate(tmp_path)
        monkeypatch.setenv("CANARY", KEY)

        async def test() -> None:
            async with Upstream(chat, tls=certificate.server_context()) as one:
                async with remote_engine(remote_of(one.address, key_env="CANARY")) as engine:
                    with pytest.raises(
                        EngineFailedError, match=r"a certificate that isn't trusted \(.*\): name its .*ca_file"
                    ):
                        await collect(engine.chat(ask()))
                assert one.requests == []

        run(test)
        assert KEY not in caplog.text

    def test_a_certificate_of_another_host(self, chat: Handler, tmp_path: Path) -> None:
        certificate = make_certificate(tmp_path, host="elsewhere.test")

        async def test() -> None:
            async with (
                Upstream(chat, tls=certificate.server_context()) as one,
                remote_engine(remote_of(one.address, ca_file=str(certificate.file))) as engine,
            ):
                with pytest.raises(EngineFailedError, match=r"[Hh]ostname mismatch"):
                    await collect(engine.chat(ask()))

        run(test)
