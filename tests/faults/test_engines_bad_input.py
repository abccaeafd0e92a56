"""What is wrong with an engine or a remote is one sentence to the clients of both dialects, and no key is in it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.certificates import make_certificate
from support.fake_vllm import install, runs
from support.http_upstream import (
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
from support.remote import listing
from support.servers import RealServer, real_server
from support.tree_folders import write_folder

from oprel.store import Trees

KEY = "sk-canary-4f1d2c3b5a697887"
PATHS = ("/v1/chat/completions", "/api/chat")
QUESTION: list[Any] = [{"role": "user", "content": "Hi"}]


@dataclass(frozen=True)
class Case:
    """A remote and the sentence about it. `answer` None: nobody listens. `status` of OpenAI's dialect, and Ollama's,
    whose own server says 500 of all that goes wrong."""

    says: str
    answer: Handler | None = None
    status: tuple[int, int] = (502, 500)
    tls: bool = False
    config: dict[str, Any] = field(default_factory=dict)


def answering(*pieces: bytes, cut: bool = False, stall: bool = False) -> Handler:
    """Lists the model, and answers a chat with these bytes."""

    async def answer(request: Received, peer: Peer) -> None:
        if request.path.endswith("/models"):
            await peer.send(listing("big"))
            return
        await peer.send(*pieces)
        if stall:
            await peer.stall()
        elif cut:
            peer.cut()

    return answer


def error(status: int, message: str, **more: str) -> bytes:
    return json_answer({"error": {"message": message, **more}}, status=status)


BEGUN = (stream_head(), chunk(sse(chat_chunk("Once"))))
REMOTES: dict[str, Case] = {
    "down": Case("can't be reached: Connection refused"),
    "slow": Case(
        "s before the first token, so it was given up", answering(stall=True), (504, 500), config={"timeout": 1}
    ),
    "lying about its models": Case("doesn't have the model 'big'", answering(error(404, f"no model big for {KEY}"))),
    "a web page": Case(
        "answered a web page (status 200) instead of the API",
        answering(whole_answer(b"<!doctype html><title>Log in</title>", content_type="text/html")),
    ),
    "a web page of a proxy": Case(
        "instead of the API", answering(whole_answer(b"<html>Bad gateway", status=500, content_type="text/html"))
    ),
    "cut at once": Case("broke off its answer", answering(cut=True)),
    "another certificate": Case("shows a certificate that isn't trusted", answering(), tls=True),
    "a key that is missing": Case(
        "is missing: the environment variable NOBODY", status=(500, 500), config={"key_env": "NOBODY"}
    ),
    "a key that is refused": Case("refuses its key (status 401)", answering(error(401, f"bad key {KEY}"))),
    "a quota that is used up": Case("has no quota left", answering(error(429, "pay", code="insufficient_quota"))),
}


def run(test: Any) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(bounded())


def assert_one_sentence(text: str, says: str) -> None:
    assert says in text
    assert "\n" not in text
    assert len(text) < 600
    assert KEY not in text
    assert not re.search(r"127\.0\.0\.1|localhost|Traceback", text), "an address is the operator's, and in the log"


async def ask(client: httpx.AsyncClient, path: str, *, stream: bool) -> httpx.Response:
    return await client.post(path, json={"model": "big", "messages": QUESTION, "stream": stream}, timeout=30)


def told(answer: httpx.Response) -> str:
    """What an answer that failed as a whole says."""
    body = answer.json()
    text: str = body["error"]["message"] if answer.url.path.startswith("/v1") else body["error"]
    return text


@pytest.mark.parametrize("case", REMOTES.values(), ids=REMOTES.keys())
def test_a_remote_that_goes_wrong_before_the_first_token(case: Case, tmp_path: Path) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            address = "http://127.0.0.1:9"
            if case.answer is not None:
                tls = make_certificate(tmp_path).server_context() if case.tls else None
                upstream = Upstream(case.answer, tcp=True, tls=tls)
                address = (await stack.enter_async_context(upstream)).address
            server = stack.enter_context(front(tmp_path, address, **case.config))
            client = await stack.enter_async_context(httpx.AsyncClient(base_url=server.url))
            ways = [(path, stream) for path in PATHS for stream in (False, True)]
            for answer in await asyncio.gather(*(ask(client, path, stream=stream) for path, stream in ways)):
                assert_one_sentence(told(answer), case.says)
                assert "'elsewhere'" in told(answer), "which one it was"
                assert answer.status_code == case.status[PATHS.index(answer.url.path)]
            assert KEY not in server.output

    run(test)


def test_a_remote_that_cuts_the_stream(tmp_path: Path) -> None:
    """The text so far, then one sentence; and a plain answer is a failure as a whole."""

    async def test() -> None:
        async with AsyncExitStack() as stack:
            address = (await stack.enter_async_context(Upstream(answering(*BEGUN, cut=True), tcp=True))).address
            server = stack.enter_context(front(tmp_path, address))
            client = await stack.enter_async_context(httpx.AsyncClient(base_url=server.url))
            for path in PATHS:
                whole = await ask(client, path, stream=False)
                assert whole.status_code == (502 if path.startswith("/v1") else 500)
                assert_one_sentence(told(whole), "broke off its answer")
                streamed = await ask(client, path, stream=True)
                assert streamed.status_code == 200
                lines = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line]
                assert "Once" in lines[0] + lines[1], "what came is the client's"
                last = json.loads(lines[-1])["error"]
                assert_one_sentence(last["message"] if path.startswith("/v1") else last, "broke off its answer")
            assert KEY not in server.output

    run(test)


def front(folder: Path, address: str, **config: Any) -> Any:
    """A real server before the remote `elsewhere`, with a key for it in its environment."""
    file = folder / "config.toml"
    table = {"url": address, "key_env": "CANARY", "models": ["big"], **config}
    file.write_text("[remote.elsewhere]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items()))
    return real_server("--verbose", environ={"OPREL_CONFIG": str(file), "CANARY": KEY})


# -- vLLM


@dataclass(frozen=True)
class Wrong:
    """A vLLM and the sentence about it. `script` None: there is none at all. `status` as with remotes."""

    says: tuple[str, ...]
    script: dict[str, Any] | None
    status: tuple[int, int]


VLLMS: dict[str, Wrong] = {
    "not installed": Wrong(("no vLLM was found", "pip install vllm", "--vllm-python"), None, (400, 400)),
    "another interpreter": Wrong(("has no vLLM", "--vllm-python"), {"distribution": None}, (400, 400)),
    "too old": Wrong(("vLLM 0.6.3, which is too old", "0.12"), {"version": "0.6.3"}, (400, 400)),
    "a model that it rejects": Wrong(
        ("vLLM doesn't know the model's architecture", "Model architectures ['Odd'] are not supported"),
        {"fails": "ValueError: Model architectures ['Odd'] are not supported for now."},
        (500, 500),
    ),
    "a GPU that is full": Wrong(
        ("the GPU has not enough free memory", "Tried to allocate 20.00 GiB"),
        {"fails": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB."},
        (500, 500),
    ),
    "a GPU that others use": Wrong(
        ("the GPU has not enough free memory", "less than desired"),
        {"fails": "ValueError: Free memory on device cuda:0 (1/24 GiB) on startup is less than desired GPU memory"},
        (500, 500),
    ),
}


@pytest.fixture
def trees(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "trees"
    Trees(folder, state_dir=tmp_path / "state").add(write_folder(tmp_path / "source"), "big")
    yield folder


def vllm_server(tmp_path: Path, trees: Path, script: dict[str, Any] | None) -> Any:
    environ = {"OPREL_TREES_DIR": str(trees), "PATH": str(tmp_path / "nothing")}
    if script is not None:
        environ["OPREL_VLLM_PYTHON"] = str(install(tmp_path / "env", **script))
    return real_server("--driver", "vllm", environ=environ)


@pytest.mark.parametrize("case", VLLMS.values(), ids=VLLMS.keys())
def test_a_vllm_that_goes_wrong(case: Wrong, tmp_path: Path, trees: Path) -> None:
    """With the engine's own words, where it got as far as to say some."""
    with vllm_server(tmp_path, trees, case.script) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        for path, status in zip(PATHS, case.status, strict=True):
            answer = client.post(path, json={"model": "big", "messages": QUESTION, "stream": False})
            for part in case.says:
                assert_one_sentence(told(answer), part)
            assert answer.status_code == status, told(answer)
        keys = [run.environment["VLLM_API_KEY"] for run in runs(tmp_path / "env")]
        assert len(keys) == len(set(keys))
        assert not any(key in server.output for key in keys)
        assert_is_well(server)


def assert_is_well(server: RealServer) -> None:
    assert httpx.get(f"{server.url}/health", timeout=5).status_code == 200
    assert httpx.get(f"{server.url}/api/ps", timeout=5).json()["models"] == []
